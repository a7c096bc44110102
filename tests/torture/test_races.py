"""Two bakes onto one target: one stops at a system call, the other runs, the first goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.torture.conftest import Tally
from tests.torture.harness import ALL, SORTS, STOP, Server, scene


@pytest.mark.parametrize("sort", SORTS)
def test_a_bake_that_runs_while_another_stands_still(
    tmp_path: Path, server: Server, sort: str, tally: Callable[[str, str], Tally], effort: Callable[[int, int], int]
) -> None:
    bake = scene(tmp_path, sort)
    other = bake.other()
    _, first_alone, calls = bake.ends(server)
    assert server.bake(other).is_done
    second_alone = bake.contents()
    races = tally(
        f"two bakes onto one target: {sort}",
        "the targets are those of a bake that ended well; a bake that did not says that another one is writing",
    )
    for at in range(0, len(calls), effort(20, 1)):
        bake.restore()
        first = server.bake(bake.recipe, at, STOP, calls=ALL)
        second = server.bake(other)
        if first.stopped is not None:
            first = server.go_on(first)
        ends = [alone for alone, done in ((first_alone, first), (second_alone, second)) if done.is_done]
        refusals = [done.error or "" for done in (first, second) if not done.is_done]
        is_told = all("another bake is writing" in words or "another program" in words for words in refusals)
        found, left = bake.contents(), bake.left()
        races.hold(found in ends and is_told and not left, f"{calls[at]} {at}: {first} {second} {found} {left}")
