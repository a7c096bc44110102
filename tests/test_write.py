"""Whatever stops a bake, the old target is what it was, and nothing else is left behind."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabake.baking import bake, plan
from lorabake.errors import FileError, LorabakeError, SurroundingsError, TargetError
from lorabake.options import RunOptions
from lorabake.recipe import load_recipe
from lorabake.writing import commit, weights
from lorabake.writing.inputs import Inputs
from lorabake.writing.journal import MARK, text_of
from lorabake.writing.output import Complete, Output
from lorabake.writing.partial import partial_of
from lorabake.writing.system import posix
from lorabake.writing.weights import Weights
from tests import builders as b

QUICK = RunOptions(fsync=False)
OLD = b"what was there before"


@functools.cache
def inputs() -> dict[str, bytes]:
    """Make a base, a LoRA and a diffusers folder, once."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        b.save(root / "base.safetensors", b.sd1())
        b.sd1_lora(root / "lora.safetensors")
        b.sd1_folder(root / "base")
        return b.tree(root)


def put_inputs(folder: Path, *, is_pipeline: bool) -> None:
    for name, content in inputs().items():
        if name == "lora.safetensors" or name.startswith("base/") == is_pipeline:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_inputs(tmp_path, is_pipeline=False)
    b.recipe(tmp_path)
    return tmp_path


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """Make a diffusers folder with an older target folder."""
    put_inputs(tmp_path, is_pipeline=True)
    b.recipe(tmp_path, base="base", output={"path": "out"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model_index.json").write_bytes(OLD)
    return tmp_path


def attempt(folder: Path, **options: object) -> Path:
    """Bake as a user does: without overwriting unless told."""
    return b.run(folder / "recipe.yaml", **{"overwrite": False, **options}).path


def overwriting(folder: Path, sort: str) -> tuple[Path, Path]:
    """Return a recipe, and its target, which is there already: a file or a folder."""
    put_inputs(folder, is_pipeline=sort == "folder")
    if sort == "file":
        (folder / "out.safetensors").write_bytes(OLD)
        return b.recipe(folder), folder / "out.safetensors"
    (folder / "out").mkdir()
    (folder / "out" / "model_index.json").write_bytes(OLD)
    return b.recipe(folder, base="base", output={"path": "out"}), folder / "out"


def contents(path: Path) -> object:
    return b.tree(path) if path.is_dir() else path.read_bytes()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def partials(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.partial")]


# -- Targets that exist ----------------------------------------------------------------------------------


def test_the_same_bake_again_is_accepted_and_other_content_is_not(folder: Path) -> None:
    target = attempt(folder)
    before = b.sha256(target)
    assert b.sha256(attempt(folder)) == before
    b.recipe(folder, loras=[{"path": "lora.safetensors", "strength": 2}])
    with pytest.raises(TargetError, match=r"out\.safetensors: exists and holds something else\n.*overwrite=True"):
        attempt(folder)
    assert b.sha256(target) == before
    assert b.sha256(attempt(folder, overwrite=True)) != before
    assert not partials(folder)


def test_a_bake_of_another_base_with_the_same_header_is_other_content(folder: Path) -> None:
    before = b.sha256(attempt(folder))
    b.save(folder / "base.safetensors", b.sd1(seed=1))  # two fine-tunes of one model have one header
    with pytest.raises(TargetError, match="exists and holds something else"):
        attempt(folder)
    assert b.sha256(folder / "out.safetensors") == before
    assert not partials(folder)


def test_any_other_file_is_refused_and_replaced_on_demand(folder: Path) -> None:
    (folder / "out.safetensors").write_bytes(OLD)
    with pytest.raises(TargetError):
        attempt(folder)
    assert (folder / "out.safetensors").read_bytes() == OLD
    attempt(folder, overwrite=True)
    assert b.header(folder / "out.safetensors")[0]


def test_a_folder_is_replaced_whole(pipeline: Path) -> None:
    with pytest.raises(TargetError, match="exists and holds something else"):
        attempt(pipeline)
    assert b.tree(pipeline / "out") == {"model_index.json": OLD}
    attempt(pipeline, overwrite=True)
    assert (pipeline / "out" / "model_index.json").read_bytes() != OLD
    before = b.tree(pipeline / "out")
    attempt(pipeline)
    assert b.tree(pipeline / "out") == before
    assert not partials(pipeline)


def test_a_file_that_a_user_added_to_the_output_folder_is_not_lost_silently(pipeline: Path) -> None:
    attempt(pipeline, overwrite=True)
    (pipeline / "out" / "notes.txt").write_bytes(OLD)
    with pytest.raises(TargetError, match="exists and holds something else"):
        attempt(pipeline)
    assert (pipeline / "out" / "notes.txt").read_bytes() == OLD


@pytest.mark.parametrize("name", ["other.safetensors", "unet/other.bin"])
def test_weights_that_a_user_added_are_not_lost_even_on_demand(pipeline: Path, name: str) -> None:
    attempt(pipeline, overwrite=True)
    (pipeline / "out" / name).write_bytes(OLD)
    with pytest.raises(TargetError, match=rf"out: holds {name}, which this bake does not put there"):
        attempt(pipeline, overwrite=True)
    assert (pipeline / "out" / name).read_bytes() == OLD


def test_a_folder_of_other_models_is_not_replaced_even_on_demand(pipeline: Path) -> None:
    shutil.rmtree(pipeline / "out")
    shutil.copytree(pipeline / "base" / "unet", pipeline / "out" / "precious")
    before = b.tree(pipeline / "out")
    with pytest.raises(TargetError, match=r"out: holds precious/.*, which this bake does not put there"):
        attempt(pipeline, overwrite=True)
    assert b.tree(pipeline / "out") == before


def test_what_another_bake_wrote_is_replaced_on_demand(pipeline: Path) -> None:
    attempt(pipeline, overwrite=True)
    unet = pipeline / "out" / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(unet, unet.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    attempt(pipeline, overwrite=True)
    assert b.tree(pipeline / "out").keys() == b.tree(pipeline / "base").keys()


def test_a_folder_in_a_files_place_and_the_reverse(folder: Path, tmp_path: Path) -> None:
    (folder / "out.safetensors").mkdir()
    with pytest.raises(TargetError, match="is a folder, and the output is to be a file"):
        attempt(folder, overwrite=True)
    (folder / "out").write_bytes(OLD)
    b.recipe(folder, output={"path": "out", "shard_size": 1000})
    with pytest.raises(TargetError, match="is a file, and the output is to be a folder"):
        attempt(folder, overwrite=True)
    assert (folder / "out").read_bytes() == OLD


def test_a_symbolic_link_at_the_target_is_replaced_not_followed(folder: Path) -> None:
    (folder / "precious.safetensors").write_bytes(OLD)
    (folder / "out.safetensors").symlink_to("precious.safetensors")
    attempt(folder, overwrite=True)
    assert (folder / "precious.safetensors").read_bytes() == OLD
    assert not (folder / "out.safetensors").is_symlink()


def test_a_symbolic_link_to_a_folder_is_replaced_not_followed(pipeline: Path) -> None:
    (pipeline / "out").rename(pipeline / "precious")
    (pipeline / "out").symlink_to("precious")
    attempt(pipeline, overwrite=True)
    assert b.tree(pipeline / "precious") == {"model_index.json": OLD}
    assert not (pipeline / "out").is_symlink()
    assert not partials(pipeline)


@pytest.mark.parametrize("where", ["target", "parent"])
def test_a_loop_of_symbolic_links(folder: Path, where: str) -> None:
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    path = "loop.safetensors" if where == "target" else "loop.safetensors/out.safetensors"
    b.recipe(folder, output={"path": path})
    with pytest.raises(TargetError, match=r"loop\.safetensors"):
        attempt(folder)
    assert not partials(folder)


# -- Outputs onto inputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base.safetensors", "lora.safetensors", "vae.safetensors"])
@pytest.mark.parametrize("link", [False, True])
def test_an_output_onto_an_input_is_refused(folder: Path, name: str, link: bool) -> None:
    b.save(folder / "vae.safetensors", b.vae_file("ldm", seed=2))
    before = b.tree(folder)
    path = name
    if link:
        (folder / "link.safetensors").symlink_to(name)
        path = "link.safetensors"
    b.recipe(folder, vae="vae.safetensors", output={"path": path})
    with pytest.raises(TargetError, match="is an input of this recipe"):
        attempt(folder, overwrite=True)
    after = b.tree(folder)
    assert all(after[each] == before[each] for each in before if each != "recipe.yaml")


@pytest.mark.parametrize("path", ["base", "base/unet", "base/new", "link/new", "."])
def test_an_output_that_is_in_or_around_a_folder_of_inputs_is_refused(pipeline: Path, path: str) -> None:
    (pipeline / "link").symlink_to("base")
    b.recipe(pipeline, base="base", output={"path": path})
    before = b.tree(pipeline)
    with pytest.raises(TargetError, match=r"(is|holds) an input of this recipe"):
        attempt(pipeline, overwrite=True)
    assert b.tree(pipeline) == before


def test_a_folder_that_holds_a_lora_is_not_replaced(pipeline: Path) -> None:
    (pipeline / "lora.safetensors").rename(pipeline / "out" / "lora.safetensors")
    b.recipe(pipeline, base="base", loras=["out/lora.safetensors"], output={"path": "out"})
    with pytest.raises(TargetError, match="holds an input of this recipe"):
        attempt(pipeline, overwrite=True)
    assert (pipeline / "out" / "lora.safetensors").exists()


def test_an_output_onto_a_hard_link_leaves_the_input(folder: Path) -> None:
    before = b.sha256(folder / "base.safetensors")
    os.link(folder / "base.safetensors", folder / "out.safetensors")
    attempt(folder, overwrite=True)
    assert b.sha256(folder / "base.safetensors") == before


# -- The disk --------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(folder: Path) -> None:
    (folder / "sealed").mkdir(mode=0o500)
    b.recipe(folder, output={"path": "sealed/out.safetensors"})
    with pytest.raises(SurroundingsError, match="cannot write there: Permission denied"):
        attempt(folder)


def test_a_parent_that_is_a_file(folder: Path) -> None:
    b.recipe(folder, output={"path": "base.safetensors/out.safetensors"})
    with pytest.raises(TargetError, match=r"base\.safetensors"):
        attempt(folder)


def test_too_little_room_is_told_before_anything_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(SurroundingsError, match="free, and the bake needs"):
        attempt(folder)
    assert not partials(folder)


def raise_error(code: int) -> object:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("function", ["pwrite", "copy_file_range", "fsync", "rename", "ftruncate"])
@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, SurroundingsError, "the disk is full"),
        (errno.EDQUOT, SurroundingsError, "the disk is full"),
        (errno.EIO, SurroundingsError, "cannot write there|cannot be read"),
    ],
    ids=["full", "quota", "broken"],
)
def test_failures_of_the_disk_leave_the_old_target(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int, kind: type[LorabakeError], words: str
) -> None:
    (folder / "out.safetensors").write_bytes(OLD)
    with monkeypatch.context() as patched:
        patched.setattr(os, function, raise_error(code))
        if function == "copy_file_range" and code == errno.EIO:  # may be of the input: a copy by hand tells
            function = "pwrite"
            patched.setattr(os, function, raise_error(code))
        with pytest.raises(kind, match=words):
            attempt(folder, overwrite=True, fsync=True)
    assert (folder / "out.safetensors").read_bytes() == OLD
    assert not partials(folder)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 128 KiB, where this process may."""
    place = tmp_path / "tiny"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("reserve", [True, False])
def test_a_disk_that_is_really_full(
    folder: Path, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, reserve: bool
) -> None:
    base = b.sd1() | {"padding": torch.zeros(100_000)}
    b.save(folder / "base.safetensors", base)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    if not reserve:
        monkeypatch.setattr(weights, "reserve", os.ftruncate)
    b.recipe(folder, output={"path": "tiny/out.safetensors"})
    with pytest.raises(SurroundingsError, match="the disk is full"):
        attempt(folder)
    assert list(tiny_disk.iterdir()) == []


@pytest.mark.parametrize("code", sorted(posix.NO_RANGE_COPY))
def test_where_the_kernel_cannot_copy_the_program_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    wanted = b.sha256(attempt(folder))
    monkeypatch.setattr(os, "copy_file_range", raise_error(code))
    assert b.sha256(attempt(folder, overwrite=True)) == wanted


def test_a_system_without_range_copies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = b.sha256(attempt(folder))
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.setattr(posix, "_libc", lambda: None)
    assert b.sha256(attempt(folder, overwrite=True)) == wanted


def test_short_reads_and_writes_are_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = b.sha256(attempt(folder))
    pwrite, preadv, range_copy = os.pwrite, os.preadv, os.copy_file_range
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data[:4096]), at))
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: preadv(fd, [into[0][:333]], at))
    monkeypatch.setattr(os, "copy_file_range", lambda a, to, n, x, y: range_copy(a, to, min(n, 777), x, y))
    assert b.sha256(attempt(folder, overwrite=True)) == wanted


# -- Two bakes, and one that was killed ------------------------------------------------------------------


def test_a_target_that_another_process_writes_is_left_alone(folder: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom pathlib import Path\nfrom lorabake.writing.partial import Partial\n"
            "Partial(Path('out.safetensors')).open(); print(flush=True); sys.stdin.read()",
        ],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder:
        holder.stdout.readline()
        with pytest.raises(TargetError, match="another bake is writing this target"):
            attempt(folder)
        assert partials(folder) == ["out.safetensors.partial"]
        holder.stdin.close()
    attempt(folder)
    assert not partials(folder)


@pytest.mark.parametrize("sort", ["file", "folder"])
def test_many_bakes_at_once_leave_one_right_target(folder: Path, sort: str) -> None:
    if sort == "folder":
        b.recipe(folder, output={"path": "out", "shard_size": 5000})
    target = attempt(folder)
    read = b.tree if sort == "folder" else b.sha256
    wanted = read(target)
    shutil.rmtree(target) if sort == "folder" else target.unlink()
    outcomes: list[object] = []

    def one() -> None:
        try:
            outcomes.append(attempt(folder, workers=1))
        except TargetError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 8
    assert target in outcomes
    assert all(outcome == target or "another bake is writing" in str(outcome) for outcome in outcomes)
    assert read(target) == wanted
    assert not partials(folder)


def left_by_a_killed_bake(folder: Path) -> None:
    """Make what a bake killed early leaves of its folder."""
    folder.mkdir()
    (folder / MARK).write_bytes(text_of([]))
    (folder / "new").mkdir()
    (folder / "new" / "link").symlink_to(folder.parent / "base")
    (folder / "beside").mkdir()
    (folder / "beside" / "stale.safetensors").write_bytes(OLD)


def test_what_a_killed_bake_left_is_taken_over(folder: Path) -> None:
    wanted = b.sha256(attempt(folder))
    (folder / "out.safetensors").unlink()
    left_by_a_killed_bake(folder / "out.safetensors.partial")
    assert b.sha256(attempt(folder)) == wanted
    assert not partials(folder)


def test_what_a_killed_bake_of_a_folder_left_is_taken_over(pipeline: Path) -> None:
    left_by_a_killed_bake(pipeline / "out.partial")
    attempt(pipeline, overwrite=True)
    assert b.tree(pipeline / "out").keys() == b.tree(pipeline / "base").keys()
    assert b.tree(pipeline / "base")
    assert not partials(pipeline)


def test_a_bake_killed_before_it_wrote_its_mark(folder: Path) -> None:
    place = folder / "out.safetensors.partial"
    place.mkdir()
    attempt(folder)
    place.mkdir()
    (place / MARK).write_bytes(b"")
    attempt(folder)
    assert not partials(folder)


STRANGERS: dict[str, Callable[[Path], object]] = {
    "a file": lambda place: place.write_bytes(OLD),
    "an empty file": lambda place: place.write_bytes(b""),
    "a folder": lambda place: (place.mkdir(), (place / "notes.txt").write_bytes(OLD)),
    "a folder in a folder": lambda place: (place / ".git").mkdir(parents=True),
    "a checkpoint": lambda place: b.save(place, b.sd1()),
    "a link": lambda place: (place.parent.joinpath("precious").write_bytes(OLD), place.symlink_to("precious")),
    "a hard link of the base": lambda place: os.link(place.parent / "base.safetensors", place),
    "a file beside the mark": lambda place: (left_by_a_killed_bake(place), (place / "notes.txt").write_bytes(OLD)),
}


def seen(folder: Path) -> dict[str, object]:
    """Say what is in a folder, links and empty folders too."""
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", ["out.safetensors.partial", "out.safetensors.old.partial"])
@pytest.mark.parametrize("sort", STRANGERS)
def test_what_no_bake_has_made_is_not_taken_over(folder: Path, sort: str, name: str) -> None:
    place = folder / name
    STRANGERS[sort](place)
    before = seen(folder)
    if name == "out.safetensors.partial":
        with pytest.raises(TargetError, match=r"out\.safetensors\.partial: .*no bake has"):
            attempt(folder)
        assert seen(folder) == before
    else:
        attempt(folder)  # no bake has any use for that name
        after = seen(folder)
        assert {key: after[key] for key in before} == before


SAID = json.loads(text_of([]))["lorabake"]
MARKS: dict[str, Callable[[Path], object]] = {
    "another program's": lambda mark: mark.write_text('{"name": "mine"}'),
    "empty, beside other files": lambda mark: mark.write_bytes(b""),
    "a link": lambda mark: (mark.parent.with_name("mine").write_bytes(text_of([])),
                            mark.symlink_to("../mine")),
    "a hard link": lambda mark: (mark.parent.with_name("mine").write_bytes(text_of([])),
                                 os.link(mark.parent.with_name("mine"), mark)),
    "a pipe": lambda mark: os.mkfifo(mark),
    "a folder": lambda mark: mark.mkdir(),
    "of another user": lambda mark: (mark.write_bytes(text_of([])), os.chown(mark.parent, 12345, -1)),
    "deep": lambda mark: mark.write_text("[" * 100_000),
    **{
        f"with the moves {moves}": lambda mark, moves=moves: mark.write_text(
            json.dumps({"lorabake": SAID, "moves": moves})
        )
        for moves in (
            None, {}, [1], [[]], [["new", "out.safetensors", {"a": 1}, None]],
            [["new", "out.safetensors", [1, 2.5], None]],
            [["../../precious", "out.safetensors", [1, 2], None]], [["new", "/etc/precious", [1, 2], None]],
            [["new", "..", [1, 2], None]], [["new", "a\0b", [1, 2], None]], [["new", "\ud800", [1, 2], None]],
        )
    },
}  # fmt: skip
"""Marks of folders that no bake has made, or that somebody has tampered with."""


@pytest.mark.parametrize("sort", MARKS)
def test_a_mark_that_is_not_lorabakes(folder: Path, sort: str) -> None:
    place = folder / "out.safetensors.partial"
    (place / "new").mkdir(parents=True)
    (place / "new" / "thesis.txt").write_bytes(OLD)
    try:
        MARKS[sort](place / MARK)
    except PermissionError:
        pytest.skip("only root can give a folder to another user")
    before = seen(folder)
    with pytest.raises(TargetError, match=r"out\.safetensors\.partial: is there, and no bake has made it"):
        attempt(folder)
    assert seen(folder) == before


def test_a_base_behind_another_mount(pipeline: Path) -> None:
    other = pipeline / "other"
    other.mkdir()
    if subprocess.run(["mount", "--bind", pipeline / "base", other], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        before = b.tree(pipeline / "base")
        for path in (other, other / "unet", other / "new"):
            b.recipe(pipeline, base="base", output={"path": str(path)})
            with pytest.raises(TargetError, match="is an input of this recipe"):
                attempt(pipeline, overwrite=True)
        assert b.tree(pipeline / "base") == before
    finally:
        subprocess.run(["umount", other], check=True)


@pytest.mark.parametrize("exchange", [True, False])
def test_what_another_bake_has_put_there_meanwhile_is_not_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(commit, "exchange", lambda one, other: False)
    made, target = tmp_path / "made", tmp_path / "target"
    made.write_bytes(b"one bake's")
    target.write_bytes(OLD)
    move = commit.Move(made, target, *(commit.identity(path) for path in (made, target)))  # type: ignore[arg-type]

    def refuse() -> None:
        target.unlink()
        target.write_bytes(b"the other bake's")
        raise TargetError("refused")

    with pytest.raises(TargetError, match="refused"):
        commit.commit([move], refuse)
    assert target.read_bytes() == b"the other bake's"


@pytest.mark.parametrize("what", ["link to a folder", "pipe", "link to baked weights", "empty folder", ".git"])
def test_what_is_no_file_of_a_bake_is_not_lost_even_on_demand(pipeline: Path, what: str) -> None:
    attempt(pipeline, overwrite=True)
    out = pipeline / "out"
    if what == "link to a folder":
        (out / "unet").rename(pipeline / "mine")
        (out / "unet").symlink_to("../mine")
    elif what == "pipe":
        (out / "unet" / "config.json").unlink(missing_ok=True)
        os.mkfifo(out / "unet" / "config.json")
    elif what == "link to baked weights":
        (out / "more.safetensors").symlink_to("unet/diffusion_pytorch_model.safetensors")
    else:
        (out / what / "x").mkdir(parents=True)
    before = {path: path.lstat().st_ino for path in out.rglob("*")}
    with pytest.raises(TargetError, match="which this bake does not put there"):
        attempt(pipeline, overwrite=True)
    assert {path: path.lstat().st_ino for path in out.rglob("*")} == before


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("which", ["base", "lora", "recipe"])
def test_inputs_in_the_folder_of_a_bake(folder: Path, which: str, inside: bool) -> None:
    place = folder / "out.safetensors.partial"
    if inside:
        left_by_a_killed_bake(place)
    name = {"base": "base.safetensors", "lora": "lora.safetensors", "recipe": "recipe.yaml"}[which]
    to = place / "new" / name if inside else place
    os.rename(folder / name, to)
    said = to.relative_to(folder).as_posix()
    recipe = folder / "recipe.yaml"
    if which == "recipe":
        recipe = to
        to.write_text(to.read_text().replace("path: ", f"path: {folder}/").replace("base: ", f"base: {folder}/"))
        to.write_text(to.read_text().replace("- lora", f"- {folder}/lora"))
    elif which == "base":
        b.recipe(folder, base=said)
    else:
        b.recipe(folder, loras=[said])
    before = b.tree(folder)
    with pytest.raises(LorabakeError, match=r"an input of this recipe"):
        b.run(recipe, overwrite=True)
    assert b.tree(folder) == before


def test_a_partial_that_is_a_link_is_not_followed(folder: Path) -> None:
    (folder / "precious").write_bytes(OLD)
    (folder / "out.safetensors.partial").symlink_to("precious")
    with pytest.raises(TargetError, match="symbolic link"):
        attempt(folder)
    assert (folder / "precious").read_bytes() == OLD


# -- Inputs that change ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base.safetensors", "lora.safetensors"])
@pytest.mark.parametrize("how", ["rewritten", "replaced", "removed", "longer"])
def test_an_input_that_changes_while_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    path, check = folder / name, Inputs.check_unchanged
    (folder / "out.safetensors").write_bytes(OLD)

    def change(inputs: Inputs) -> None:
        raw = path.read_bytes()
        if how in ("removed", "replaced"):
            path.unlink()
        if how != "removed":
            path.write_bytes(raw + (b"!" if how == "longer" else b""))
            os.utime(path, ns=(1, 1))
        check(inputs)

    monkeypatch.setattr(Inputs, "check_unchanged", change)
    with pytest.raises(FileError, match=f"{name}: changed while it was read; nothing was written"):
        attempt(folder, overwrite=True)
    assert (folder / "out.safetensors").read_bytes() == OLD
    assert not partials(folder)


def test_an_input_that_changes_between_plan_and_bake(folder: Path) -> None:
    made = plan(load_recipe(folder / "recipe.yaml"))
    b.save(folder / "base.safetensors", b.sd1(ema=True))
    with pytest.raises(FileError, match=r"base\.safetensors: changed since the bake was planned"):
        bake(made, QUICK)
    (folder / "base.safetensors").unlink()
    with pytest.raises(FileError, match=r"base\.safetensors: no such file"):
        bake(made, QUICK)
    assert not (folder / "out.safetensors").exists()
    assert not partials(folder)


def test_an_input_that_becomes_shorter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(load_recipe(folder / "recipe.yaml"))
    init = Inputs.__init__

    def truncate(inputs: Inputs, *arguments: object, **named: object) -> None:
        init(inputs, *arguments, **named)  # type: ignore[arg-type]
        os.truncate(folder / "base.safetensors", 30_000)

    monkeypatch.setattr(Inputs, "__init__", truncate)
    with pytest.raises(FileError, match="became shorter while it was read"):
        bake(made, QUICK)
    assert not partials(folder)


# -- Names change places ---------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("sort", ["file", "folder"])
def test_replacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool, sort: str) -> None:
    recipe, target = overwriting(tmp_path, sort)
    if not exchange:
        monkeypatch.setattr(commit, "exchange", lambda one, other: False)
    before = contents(target)
    b.run(recipe)
    new = contents(target)
    assert new != before
    shutil.rmtree(target) if sort == "folder" else target.unlink()
    b.run(recipe)
    assert contents(target) == new
    assert not partials(tmp_path)


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("sort", ["file", "folder"])
def test_a_rename_that_fails_leaves_the_old_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sort: str, exchange: bool
) -> None:
    recipe, target = overwriting(tmp_path, sort)

    def fail(source: Path, to: Path) -> bool:
        if Path(to) != target:
            return replace(source, to)
        if not exchange and not system_says:
            system_says.append(False)
            return False
        raise OSError(errno.EIO, "broken")

    system_says: list[bool] = []
    replace: Callable[..., Any] = os.replace
    monkeypatch.setattr(commit, "exchange", fail)
    monkeypatch.setattr(os, "replace", fail)
    before = b.tree(tmp_path)
    with pytest.raises(SurroundingsError, match="cannot write there: broken"):
        b.run(recipe)
    assert b.tree(tmp_path) == before


@pytest.mark.parametrize("sort", ["file", "folder"])
@pytest.mark.parametrize("when", ["before", "between"])
def test_a_target_that_another_program_puts_there_at_the_end_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sort: str, when: str
) -> None:
    recipe, target = overwriting(tmp_path, sort)
    do, exchange = commit.Move.do, commit.exchange
    stranger = tmp_path / "stranger"
    stranger.write_bytes(b"of another program")

    def put() -> None:
        if stranger.exists():
            shutil.rmtree(target) if sort == "folder" else target.unlink()
            os.rename(stranger, target)

    def do_late(move: commit.Move) -> None:
        put()
        do(move)

    def exchange_late(one: Path, other: Path) -> bool:
        put()
        return exchange(one, other)

    if when == "before":
        monkeypatch.setattr(commit.Move, "do", do_late)
    else:
        monkeypatch.setattr(commit, "exchange", exchange_late)
    with pytest.raises(TargetError, match="another program has put something else there"):
        b.run(recipe)
    assert target.read_bytes() == b"of another program"
    assert not partials(tmp_path)


def test_what_comes_into_the_target_folder_during_the_bake_is_kept(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = Output.complete

    def late(output: Output, *arguments: Any) -> Complete:
        is_complete = complete(output, *arguments)
        (pipeline / "out" / "notes.txt").write_bytes(OLD)
        return is_complete

    monkeypatch.setattr(Output, "complete", late)
    with pytest.raises(TargetError, match=r"out: holds notes\.txt, which this bake does not put there"):
        attempt(pipeline, overwrite=True)
    assert b.tree(pipeline / "out") == {"model_index.json": OLD, "notes.txt": OLD}
    assert not partials(pipeline)


MEDDLING: dict[str, Callable[[Path], object]] = {
    "folder removed": lambda place: shutil.rmtree(place),
    "folder renamed": lambda place: os.rename(place, place.with_name("elsewhere")),
    "folder replaced": lambda place: (os.rename(place, place.with_name("elsewhere")), place.mkdir()),
    "weights removed": lambda place: weights_in(place).unlink(),
    "weights replaced": lambda place: replace_by(weights_in(place), OLD),
    "weights shorter": lambda place: os.truncate(weights_in(place), 100),
    "weights empty": lambda place: os.truncate(weights_in(place), 0),
    "weights longer": lambda place: os.truncate(weights_in(place), 10**7),
}


def weights_in(place: Path) -> Path:
    new = place / "new"
    return next(new.rglob("*.safetensors")) if new.is_dir() else new


def replace_by(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


WHEN = {"copy": Weights, "check_finished": Weights, "complete": Output, "commit": Complete}
"""Moments of an output, and whose they are."""


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("sort", ["file", "folder"])
@pytest.mark.parametrize("what", MEDDLING)
def test_another_program_in_the_folder_of_a_bake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, sort: str, when: str
) -> None:
    recipe, target = overwriting(tmp_path, sort)
    before, real = contents(target), getattr(WHEN[when], when)
    seldom = iter([True])

    def meddled(*arguments: Any, **options: Any) -> object:
        if next(seldom, False):
            MEDDLING[what](partial_of(target))
        return real(*arguments, **options)

    monkeypatch.setattr(WHEN[when], when, meddled)
    with pytest.raises(LorabakeError, match="another program has"):
        b.run(recipe)
    assert contents(target) == before


# -- Signals -----------------------------------------------------------------------------------------------

INTERRUPTED = """
    import signal, sys, time
    from lorabake.execution import crew
    from lorabake.writing.output import Output
    from lorabake.writing.weights import Weights
    from lorabake.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what is in the background ignore it
    when = sys.argv.pop(1)

    class Swallowing:  # as torch's import does with a KeyboardInterrupt, now and then
        def find_spec(self, name, *_):
            if name == "torch":
                sys.meta_path.remove(self)
                print("ready", flush=True)
                try:
                    time.sleep(1)
                except BaseException:
                    pass

    def copy(self, copy, progress, stop):
        stop.wait(60)

    def join(self, *arguments):
        if when == "working":
            print("ready", flush=True)
        wait(self, *arguments)

    Weights.copy = copy
    wait, crew.Crew.join = crew.Crew.join, join
    def entered(self):
        if when == "importing":
            sys.meta_path.insert(0, Swallowing())
        return enter(self)

    enter, Output.__enter__ = Output.__enter__, entered
    sys.argv[0] = "lorabake"
    main()
"""


def test_sigint_and_sigterm_end_a_bake_cleanly(folder: Path, request: pytest.FixtureRequest) -> None:
    running = []
    for sign, when in ((signal.SIGTERM, "importing"), (signal.SIGINT, "working")):
        place = folder / when
        place.mkdir()
        (place / "out.safetensors").write_bytes(OLD)
        command = [when, "bake", "recipe.yaml", "-o", str(place / "out.safetensors"), "--overwrite"]
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(INTERRUPTED), *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append((place, sign, process))
    for _, _, process in running:
        request.addfinalizer(process.kill)
    for place, sign, process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert partials(place) == ["out.safetensors.partial"]
        process.send_signal(sign)
        try:
            _, errors = process.communicate(timeout=40)
        finally:
            process.kill()
        assert process.returncode == 130
        assert "stopped; the target is what it was before" in errors
        assert "Traceback" not in errors
        assert names(place) == {"out.safetensors"}
        assert (place / "out.safetensors").read_bytes() == OLD
