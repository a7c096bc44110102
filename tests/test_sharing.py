"""Ranges that no LoRA changes share the base's blocks where a file system can do that; elsewhere they are copied."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lorabake.baking import RunOptions, bake
from lorabake.recipe import load_recipe
from lorabake.writing.copying import LEAST_SHARED, Range, blocks_of
from lorabake.writing.system import share_range
from tests import builders as b

BLOCK = 4096
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def write(folder: Path, rest: int = 0) -> None:
    """Write a base of which most is left as it is, in the middle of what is changed, and a LoRA."""
    values = b.Values(5)
    shapes: dict[str, tuple[int, ...]] = {
        "layers.0.mlp.up.weight": (40, 24),
        "embed.weight": (500, 301),
        "layers.1.mlp.up.weight": (40, 24),
    }
    shapes |= {f"rest.{number}.weight": (1000, 4001) for number in range(rest)}
    b.save(folder / "base.safetensors", {key: values(*shape, dtype=torch.float16) for key, shape in shapes.items()})
    modules = {f"lora_unet_layers_{n}_mlp_up": b.lora((40, 24), rank=4, seed=n) for n in range(2)}
    b.kohya(folder / "lora.safetensors", modules)


def baked(folder: Path, name: str) -> bytes:
    made = b.recipe(folder, loras=["lora.safetensors"], output={"path": "out.safetensors"})
    options = RunOptions(device="cpu", workers=1, fsync=False, force=True, overwrite=True)
    bake(load_recipe(made), options).path.rename(folder / name)
    return (folder / name).read_bytes()


class Asked:
    """Stand in for the system: answer with an error, or do what a file system does that shares blocks."""

    def __init__(self, code: int | None) -> None:
        self.code, self.ranges = code, list[tuple[int, int, int]]()

    def __call__(self, target: int, call: int, argument: bytes) -> int:
        source, start, count, to = struct.unpack("qQQQ", argument)
        self.ranges.append((start, count, to))
        assert call == 0x4020940D
        assert not any(value % BLOCK for value in (start, count, to)), "a file system refuses parts of blocks"
        if self.code is not None:
            raise OSError(self.code, os.strerror(self.code))
        os.pwrite(target, os.pread(source, count, start), to)
        return 0


def test_whole_blocks_are_shared_and_the_bytes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    wanted = baked(tmp_path, "copied.safetensors")
    system = Asked(None)
    monkeypatch.setattr(fcntl, "ioctl", system)
    assert baked(tmp_path, "shared.safetensors") == wanted
    ((_, count, _),) = system.ranges
    assert 500 * 301 * 2 - 2 * BLOCK < count <= 500 * 301 * 2


@pytest.mark.parametrize("name", ["EOPNOTSUPP", "EXDEV", "EINVAL", "ENOTTY", "EIO", "EPERM"])
def test_what_cannot_be_shared_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write(tmp_path)
    wanted = baked(tmp_path, "copied.safetensors")
    system = Asked(getattr(errno, name))
    monkeypatch.setattr(fcntl, "ioctl", system)
    assert baked(tmp_path, "again.safetensors") == wanted
    assert len(system.ranges) == 1, "it is asked once for each range"


def test_only_whole_blocks_in_the_same_places_are_shared() -> None:
    path, much = Path("base"), LEAST_SHARED + 3 * BLOCK
    shifted = Range(path, 100, much, 101)
    assert [*blocks_of(shifted)] == [shifted]
    few = Range(path, 100, LEAST_SHARED, 100)
    assert [*blocks_of(few)] == [few]
    cut = [*blocks_of(Range(path, 100, much + 7, 100 + 5 * BLOCK))]
    assert [(each.start, each.stop, each.to) for each in cut] == [
        (100, BLOCK, 100 + 5 * BLOCK),
        (BLOCK, much, 6 * BLOCK),
        (much, much + 7, much + 5 * BLOCK),
    ]
    assert [*blocks_of(Range(path, BLOCK, much, 0))] == [Range(path, BLOCK, much, 0)]


@pytest.fixture(params=["btrfs", "xfs"])
def sharing_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Mount a file system that shares blocks, in a file."""
    kind = request.param
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"no such program: mkfs.{kind}")
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(320 << 20)
    flags = {"btrfs": ["-q"], "xfs": ["-q", "-m", "reflink=1"]}[kind]
    subprocess.run([f"mkfs.{kind}", *flags, str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, check=False).returncode:
        pytest.skip(f"cannot mount {kind} here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)


def used(disk: Path) -> int:
    os.sync()
    told = os.statvfs(disk)
    return (told.f_blocks - told.f_bfree) * told.f_frsize


def test_on_a_real_disk_only_what_changes_takes_room(sharing_disk: Path) -> None:
    write(sharing_disk, rest=4)
    before, size = used(sharing_disk), (sharing_disk / "base.safetensors").stat().st_size
    shared = baked(sharing_disk, "out1.safetensors")
    assert size > 30 << 20
    assert used(sharing_disk) - before < size // 4
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lorabake.writing.copying.share_range", lambda *_: False)
        patched.setattr("lorabake.writing.copying.copy_range", lambda *_: None)  # which shares whole blocks, too
        assert baked(sharing_disk, "out2.safetensors") == shared
    assert used(sharing_disk) - before > size // 2, "what is copied takes room: the measure can fail"


def test_the_system_is_asked_for_what_it_may_lack(tmp_path: Path) -> None:
    """Between a pipe and a file nothing can be shared, on any system."""
    read, write_end = os.pipe()
    with (tmp_path / "file").open("w+b") as file:
        assert not share_range(read, file.fileno(), BLOCK, 0, 0)
    os.close(read)
    os.close(write_end)
