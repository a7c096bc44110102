"""Limits of the machine: memory, the size of files, open files, locks, disks that fail; the right code and words."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorabake import RunOptions, bake, load_recipe, plan
from lorabake.errors import LorabakeError
from lorabake.writing.partial import Partial, partial_of
from tests import builders as b
from tests.torture.conftest import Tally

MIB = 1 << 20

Tallies = Callable[[str, str], Tally]
Effort = Callable[[int, int], int]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Write a small recipe beside its output's own folder, and return it."""
    tensors = {f"model.layers.{i}.self_attn.q_proj.weight": torch.randn(64, 48) for i in range(40)}
    b.save_shards(tmp_path / "base", "model", tensors, 40)
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((64, 48), rank=2)})
    (tmp_path / "out").mkdir()
    return b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out/model"})


def limited(recipe: Path, name: int, value: int) -> tuple[int, str]:
    """Bake in a process with a limit; return its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "lorabake", "bake", str(recipe), "--quiet", "--no-fsync", "--workers", "2"],
        preexec_fn=lambda: resource.setrlimit(name, (value, value)),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def left(recipe: Path) -> list[str]:
    return sorted(str(path.relative_to(recipe.parent)) for path in (recipe.parent / "out").iterdir())


def test_too_little_memory(recipe: Path, tally: Tallies, effort: Effort) -> None:
    count = tally("bakes with too little memory (ulimit -v)", "exit code 3, words, and nothing left behind")
    sizes = [100 * MIB, 500 * MIB][: effort(2, 0)] or range(100 * MIB, 1800 * MIB, 70 * MIB)
    for size in sizes:
        code, err = limited(recipe, resource.RLIMIT_AS, size)
        if code == 0:
            (recipe.parent / "out" / "model").rename(recipe.parent / f"model{size}")
        words = ("out of memory", "no thread")
        told = code == 3 and any(word in err for word in words) and "Traceback" not in err
        count.hold((code == 0 or told) and not left(recipe), f"{size // MIB} MiB: {code} {err} {left(recipe)}")


def test_files_that_may_not_be_so_large(recipe: Path, tally: Tallies) -> None:
    count = tally("bakes beyond the size that files may have (ulimit -f)", "exit code 3 and words")
    code, err = limited(recipe, resource.RLIMIT_FSIZE, 4096)
    count.hold(code == 3 and "ulimit -f" in err and not left(recipe), f"{code} {err} {left(recipe)}")


def test_more_inputs_than_files_may_be_open(recipe: Path, tally: Tallies) -> None:
    count = tally("bakes of more files than may be open (ulimit -n)", "done, or exit code 3 and words")
    code, err = limited(recipe, resource.RLIMIT_NOFILE, 80)
    count.hold(code == 0 and left(recipe) == ["out/model"], f"{code} {err} {left(recipe)}")
    (recipe.parent / "out" / "model").rename(recipe.parent / "elsewhere")
    code, err = limited(recipe, resource.RLIMIT_NOFILE, 16)
    is_done = code == 0 and left(recipe) == ["out/model"]
    count.hold(is_done or (code == 3 and not left(recipe)), f"{code} {err} {left(recipe)}")


READING = ("preadv", "copy_file_range")
WRITING = ("pwrite", "fsync")
MACHINE = (errno.EIO, errno.ESTALE, errno.ENOMEM)


def failing(name: str, number: int, code: int, is_input: Callable[[int], bool]) -> Callable[..., object]:
    """Return a system call that fails the n-th time; reads fail on inputs alone."""
    calls = iter(range(1 << 30))
    real = getattr(os, name)

    def call(fd: int, *arguments: object) -> object:
        if (name not in READING or is_input(fd)) and next(calls) >= number:
            raise OSError(code, os.strerror(code))
        return real(fd, *arguments)

    return call


@pytest.mark.parametrize("name", [*READING, *WRITING])
def test_a_disk_that_fails(
    recipe: Path, tally: Tallies, effort: Effort, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, name):
        pytest.skip(f"this system has no {name}")
    count = tally("bakes during which a disk or a server fails", "exit code 3, the path that failed, old or new")

    def is_input(fd: int) -> bool:
        return "/base/" in os.readlink(f"/proc/self/fd/{fd}") or "/lora/" in os.readlink(f"/proc/self/fd/{fd}")

    options = RunOptions(overwrite=True, workers=1, fsync=True)
    bake(load_recipe(recipe), options)
    old = b.tree(recipe.parent / "out")
    for code in MACHINE if name != "copy_file_range" else MACHINE[:2]:
        for number in range(effort(2, 12)):
            planned = plan(load_recipe(recipe))
            with monkeypatch.context() as patched:
                patched.setattr(os, name, failing(name, number, code, is_input))
                if name == "copy_file_range":  # then it is done by hand, and reading fails, too
                    patched.setattr(os, "preadv", failing("preadv", 0, code, is_input))
                error: Exception | None = None
                try:
                    bake(planned, options)
                except Exception as raised:
                    error = raised
            now = b.tree(recipe.parent / "out")
            where = "cannot be read" if name in READING else "cannot write there"
            place = "/base" if name in READING else "/out/"
            told = code == errno.ENOMEM and "out of memory" in str(error)
            told |= where in str(error) and (place in str(error) or "/lora" in str(error))
            is_told = isinstance(error, LorabakeError) and error.exit_code == 3 and told
            is_kept = now == old if error else now.keys() == old.keys()
            count.hold((error is None or is_told) and is_kept, f"{name} {number} {os.strerror(code)}: {error!r}")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(
    recipe: Path, tally: Tallies, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def flock(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    count = tally(
        "bakes where the file system takes no locks", "done alone; refused where a folder of another is there"
    )
    done = bake(load_recipe(recipe), RunOptions())
    partial = partial_of(done.path)
    count.hold(done.path.exists() and not partial.exists(), "a bake alone")
    Partial(done.path).open()
    with pytest.raises(LorabakeError, match="this file system has no locks") as refused:
        bake(load_recipe(recipe), RunOptions(overwrite=True))
    count.hold(refused.value.exit_code == 2 and partial.exists(), str(refused.value))
