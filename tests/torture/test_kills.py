"""A bake that is killed at a system call leaves each target old or new, and the next run knows what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.torture.conftest import Tally
from tests.torture.harness import ALL, KILL, SORTS, Server, scene


@pytest.mark.parametrize("sort", SORTS)
def test_a_kill_at_a_system_call(
    tmp_path: Path, server: Server, sort: str, tally: Callable[[str, str], Tally], effort: Callable[[int, int], int]
) -> None:
    bake = scene(tmp_path, sort)
    other = bake.other()
    before, after, calls = bake.ends(server)
    at_once = tally(f"kill -9 at a system call: {sort}", "each target is the old one or the new one")
    next_run = tally(f"the same, then a run that is refused: {sort}", "all targets are old, or all are new")
    mended = tally(f"the same, then the same bake: {sort}", "all targets are new, and nothing else is left")
    step = effort(60, 1)
    renames = {near for at, call in enumerate(calls) if call == "rename" for near in (at, at + 1)}
    for at in [at for at in range(len(calls)) if at % step == 0 or at in renames]:
        bake.restore()
        killed = bake_of(server, bake.recipe, at)
        if not killed:  # two threads read and write: another run may make some calls less
            assert at > len(calls) - 20, at
            continue
        found = bake.contents()
        is_each = all(one in pair for one, *pair in zip(found, before, after, strict=True))
        at_once.hold(is_each, f"{calls[at]} {at}: {found}")
        server.bake(other, overwrite=False)
        found = bake.contents()
        next_run.hold(sort == "new file" or found in (before, after), f"{calls[at]} {at}: {found}")
        again = server.bake(bake.recipe)
        found, left = bake.contents(), bake.left()
        mended.hold(again.is_done and found == after and not left, f"{calls[at]} {at}: {again} {found} {left}")


def bake_of(server: Server, recipe: Path, at: int) -> bool:
    return server.bake(recipe, at, KILL, calls=ALL).killed
