"""Bakes onto disks of every size around the one they need: the old state or the new one, and words for it."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import lorabake.writing.weights
from lorabake.cli import main
from tests import builders as b
from tests.torture.conftest import Tally

PAGE = 4096
LARGE = 64 << 20
PROMISE = "the old state or the new one, exit code 3 and words, nothing left behind"

Tallies = Callable[[str, str], Tally]
Effort = Callable[[int, int], int]


class Disk:
    """A file system in memory whose room can be changed."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def mount(self) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", str(self.place)],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"cannot mount a file system in memory: {done.stderr.decode().strip()}")

    def resize(self, **options: int) -> None:
        told = ",".join(f"{name}={value}" for name, value in {"size": LARGE, **options}.items())
        subprocess.run(["mount", "-o", f"remount,{told}", str(self.place)], check=True)

    @property
    def used(self) -> int:
        status = os.statvfs(self.place)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    @property
    def files(self) -> int:
        status = os.statvfs(self.place)
        return status.f_files - status.f_ffree

    def empty(self) -> None:
        self.resize(nr_inodes=10_000)
        for path in self.place.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root may mount a file system")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = Disk(place)
    mounted.mount()
    yield mounted
    subprocess.run(["umount", "-l", str(place)], check=True)


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lorabake", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return (code if isinstance(code, int) else 1), capsys.readouterr().err

    return run


def small_file(folder: Path, out: Path) -> None:
    b.save(folder / "base.safetensors", {f"{name}.weight": torch.randn(64, 48) for name in ("a", "b", "c")})
    modules = {"a": b.lora((64, 48), rank=2)}
    b.peft(folder / "lora", modules)
    b.recipe(folder, loras=["lora"], output={"path": str(out / "out.safetensors")})


def with_embeddings(folder: Path, out: Path) -> None:
    small_file(folder, out)
    tensors = {"bundle_emb.ohwx.clip_l": torch.randn(9, 768), "bundle_emb.other.clip_l": torch.randn(3, 768)}
    b.save(folder / "words.safetensors", tensors)
    b.recipe(folder, loras=["lora", "words.safetensors"], output={"path": str(out / "out.safetensors")})


def small_folder(folder: Path, out: Path) -> None:
    small_file(folder, out)
    b.recipe(folder, loras=["lora"], output={"path": str(out / "out"), "shard_size": 13_000})


FORMS = {"a file": small_file, "a file with embeddings": with_embeddings, "a folder": small_folder}


def place_old(form: str, out: Path) -> None:
    """Put what a bake of another strength left."""
    target = out / ("out" if form == "a folder" else "out.safetensors")
    if form == "a folder":
        target.mkdir()
        b.save(target / "model.safetensors", {"a": torch.zeros(70, 50)}, {"lorabake.version": "0"})
    else:
        b.save(target, {"a": torch.zeros(70, 50)})


ROOMS = ("room cannot be reserved", "free room is told", "free room is told wrongly")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_replaced", [False, True], ids=["new", "overwriting"])
def test_a_full_disk(
    disk: Disk,
    call: Call,
    tally: Tallies,
    effort: Effort,
    form: str,
    is_replaced: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FORMS[form](tmp_path, disk.place)
    large = shutil.disk_usage("/")._replace(free=1 << 40)

    def prepare() -> dict[str, bytes]:
        disk.empty()
        if is_replaced:
            place_old(form, disk.place)
        return b.tree(disk.place)

    arguments = ["bake", tmp_path / "recipe.yaml", "--overwrite", "--quiet", "--report", disk.place / "report.json"]
    old = prepare()
    begin = disk.used
    assert call(*arguments) == (0, "")
    new = b.tree(disk.place)
    need = disk.used + begin  # the old target goes at the end
    count = tally("bakes onto a full disk", PROMISE)
    steps = effort(5, 16)
    outcomes = set()
    for room, number in itertools.product(ROOMS[: effort(1, 3)], range(steps)):
        size = begin + PAGE + (need + PAGE - begin) * number // (steps - 1) // PAGE * PAGE
        old = prepare()
        disk.resize(size=size)
        with monkeypatch.context() as patched:
            if room != "free room is told":
                patched.setattr(shutil, "disk_usage", lambda path: large)
            if room == "room cannot be reserved":
                patched.setattr(lorabake.writing.weights, "reserve", os.ftruncate)
            code, err = call(*arguments)
        disk.resize()
        now = b.tree(disk.place)
        bare = {name: content for name, content in now.items() if name != "report.json"}
        done = {name: content for name, content in new.items() if name != "report.json"}
        told = "Traceback" not in err and ("disk is full" in err or " free, and the bake needs" in err)
        unreported = code == 3 and bare == done and "report.json" not in now and "is complete" in err
        is_new = code == 0 and bare == done and "report.json" in now
        is_old = code == 3 and now == old and told
        outcomes.add(code)
        count.hold(
            is_new or is_old or unreported, f"{form}, {room}, {size} of {need} bytes: {code} {err} {sorted(now)}"
        )
    assert outcomes == {0, 3}


def test_a_disk_without_inodes(disk: Disk, call: Call, tally: Tallies, effort: Effort, tmp_path: Path) -> None:
    count = tally("bakes onto a disk that takes no more files", PROMISE)
    for form, build in FORMS.items():
        build(tmp_path, disk.place)
        for more in range(1, effort(4, 10)):
            disk.empty()
            place_old(form, disk.place)
            old = b.tree(disk.place)
            disk.resize(nr_inodes=disk.files + more)
            code, err = call("bake", tmp_path / "recipe.yaml", "--overwrite", "--quiet")
            now = b.tree(disk.place)
            is_new = code == 0 and now != old and not any("partial" in name for name in now)
            count.hold(is_new or (code == 3 and now == old and "full" in err), f"{form}, {more} files: {code} {err}")
