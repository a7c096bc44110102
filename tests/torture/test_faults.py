"""A system call that fails, does a part, or is interrupted: one clear error and the old targets, or the new ones."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.torture.conftest import Tally
from tests.torture.harness import ALL, FAIL, INTERRUPT, INTERRUPT_EACH, PART, SORTS, Server, scene

CODES = (errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EACCES)
PARTS = " pread pwrite read write copy_file_range "


def some(calls: tuple[str, ...], step: int) -> list[int]:
    """Choose each n-th call, and with any step the renames."""
    return [at for at, call in enumerate(calls) if at % step == 0 or call == "rename"]


@pytest.mark.parametrize("sort", SORTS)
def test_a_system_call_that_fails(
    tmp_path: Path, server: Server, sort: str, tally: Callable[[str, str], Tally], effort: Callable[[int, int], int]
) -> None:
    bake = scene(tmp_path, sort)
    before, after, calls = bake.ends(server)
    faults = tally(f"a system call fails: {sort}", "one clear error and all targets old, or none and all new")
    tidy = tally(
        f"what is left of it: {sort}",
        "nothing, unless the removing itself failed: then a warning says so, and the next bake removes it",
    )
    for at in some(calls, effort(25, 1)):
        code = CODES[at % len(CODES)]
        bake.restore()
        done = server.bake(bake.recipe, at, FAIL, calls=ALL, code=code)
        what = f"{calls[at]} {at} {errno.errorcode[code]}: {done}"
        found = bake.contents()
        is_told = done.error is None or not done.error.startswith("traceback")
        faults.hold(is_told and found == (after if done.is_done else before), what)
        left = bake.left()
        again = server.bake(bake.recipe) if left else done
        is_told = bool(done.warnings) or calls[at] == "close"
        is_tidy = not left or (done.is_done and is_told and again.is_done and not bake.left())
        tidy.hold(is_tidy, f"{what}: {left}")


@pytest.mark.parametrize("sort", ["file", "folder"])
def test_a_system_call_that_does_only_a_part(
    tmp_path: Path, server: Server, sort: str, tally: Callable[[str, str], Tally], effort: Callable[[int, int], int]
) -> None:
    bake = scene(tmp_path, sort)
    _, after, _ = bake.ends(server)
    count = server.bake(bake.recipe, calls=PARTS).count
    parts = tally(f"a read or write does only a part: {sort}", "the bake goes on, and the bytes are the same")
    for at in range(0, count, effort(15, 1)):
        bake.restore()
        done = server.bake(bake.recipe, at, PART, calls=PARTS)
        parts.hold(done.is_done and bake.contents() == after and not bake.left(), f"{at}: {done}")


@pytest.mark.parametrize("how", [INTERRUPT, INTERRUPT_EACH], ids=["once", "again and again"])
@pytest.mark.parametrize("sort", ["file", "embeddings", "folder"])
def test_a_signal_at_a_system_call(
    tmp_path: Path,
    server: Server,
    sort: str,
    how: int,
    tally: Callable[[str, str], Tally],
    effort: Callable[[int, int], int],
) -> None:
    bake = scene(tmp_path, sort)
    before, after, calls = bake.ends(server)
    signals = tally(
        f"SIGINT at a system call, {'once' if how == INTERRUPT else 'and at each after it'}: {sort}",
        "exit 130 and all targets old, or exit 0 and all new; no traceback, nothing left",
    )
    output = tmp_path.parent / "output.txt"
    command = ["bake", str(bake.recipe), "--overwrite", "--workers", "2"]
    for at in some(calls, effort(25, 1)):
        bake.restore()
        done = server.bake(bake.recipe, at, how, calls=ALL, command=command, output=output)
        found, said = bake.contents(), output.read_text()
        is_right = (done.code == 130 and found == before) if done.code else found == after
        is_told = ("stopped; the target is what it was before" in said) == (done.code == 130)
        is_quiet = "Traceback" not in said and "Exception" not in said
        signals.hold(
            is_right and is_told and is_quiet and not bake.left(), f"{calls[at]} {at}: {done}: {bake.left()} {said}"
        )
