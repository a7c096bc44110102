"""Shards of a batch, each a process, in any order or at once, killed, late: the bytes are those of single bakes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch.crowd import Crowd, Ended, Run, crowd_in
from tests.batch.sweep import empty, make_sweep, outputs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")

IN_PARTS = """
    import functools, lorabake.cli.batch as command
    command.BatchOptions = functools.partial(command.BatchOptions, part_bytes=6_000)
"""
"""A part is small, so that the base of the tests has several."""

AT = """
    import os, signal
    import lorabake.batch.joining as joining, lorabake.batch.work as work, lorabake.baking as baking
    import lorabake.writing.output as output, lorabake.writing.commit as commit

    def at(module, name, number, then):
        genuine, calls = getattr(module, name), []
        def counted(*words, **named):
            calls.append(name)
            if len(calls) == number:
                then()
            return genuine(*words, **named)
        setattr(module, name, counted)

    def die():
        os.kill(os.getpid(), signal.SIGKILL)
"""
"""Do something before a function is called for the so-manieth time."""


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    with crowd_in(tmp_path_factory.mktemp("crowd")) as running:
        yield running


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    return folder, make_sweep(folder)


@pytest.fixture
def folder(made: tuple[Path, dict[str, bytes]]) -> Path:
    empty(made[0])
    return made[0]


@pytest.fixture
def alone(made: tuple[Path, dict[str, bytes]]) -> dict[str, bytes]:
    return made[1]


def shard(folder: Path, text: str, *words: str, before: str = "") -> Run:
    line = ["batch", "sweep.yaml", "--device", "cpu", "--no-fsync", "--workers", "1", "--shard", text, *words]
    return Run(line, folder, {}, before)


def codes(ended: list[Ended]) -> list[int]:
    return [each.code for each in ended]


def receipts(folder: Path) -> dict[Path, int]:
    """Return the receipts that landed, with their times."""
    return {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*.partial/receipts/*.json")}


def statuses(ended: Ended) -> dict[str, str]:
    document = json.loads(ended.text[ended.text.index("{\n") :])
    return {output["name"]: output["status"] for output in document["outputs"]}


@pytest.mark.parametrize("before", ["", IN_PARTS], ids=["whole", "in parts"])
def test_shards_at_once_make_the_bytes_of_single_bakes(
    crowd: Crowd, folder: Path, alone: dict[str, bytes], before: str
) -> None:
    ended = crowd.run(*(shard(folder, f"{number}/3", before=before) for number in (1, 2, 3)))
    assert codes(ended) == [0, 0, 0], ended
    assert outputs(folder) == alone


def test_shards_one_after_the_other_in_any_order(crowd: Crowd, folder: Path, alone: dict[str, bytes]) -> None:
    told = [crowd.run(shard(folder, f"{number}/3", "--json", before=IN_PARTS))[0] for number in (3, 1, 2)]
    assert codes(told) == [0, 0, 0], told
    assert outputs(folder) == alone
    seen = [statuses(each) for each in told]
    assert set(seen[0].values()) == {"waiting"}
    assert set(seen[2].values()) == {"baked"}
    late = crowd.run(shard(folder, "2/3", "--json", before=IN_PARTS))[0]
    assert (late.code, set(statuses(late).values())) == (0, {"current"})
    assert outputs(folder) == alone


def test_a_single_shard_is_a_batch(crowd: Crowd, folder: Path, alone: dict[str, bytes]) -> None:
    (ended,) = crowd.run(shard(folder, "1/1", "--json", before=IN_PARTS))
    assert set(statuses(ended)) == {name.removesuffix(".safetensors") for name in alone}
    assert (ended.code, set(statuses(ended).values())) == (0, {"baked"})
    assert outputs(folder) == alone


def test_more_shards_than_work(crowd: Crowd, folder: Path, alone: dict[str, bytes]) -> None:
    ended = crowd.run(*(shard(folder, f"{number}/9") for number in range(1, 10)))
    assert codes(ended) == [0] * 9, ended
    assert sum("nothing to do" in each.text for each in ended) == 3
    assert outputs(folder) == alone


@pytest.mark.parametrize(
    "where",
    [
        'at(joining, "land_all", 2, die)',
        'at(joining, "run", 1, die)',
        'at(joining.Claim, "take", 1, die)',
        'at(joining.Member, "_make", 1, die)',
        'at(joining.sharing, "rename_new", 1, die)',
    ],
)
def test_a_killed_shard_is_repeated_alone(crowd: Crowd, folder: Path, alone: dict[str, bytes], where: str) -> None:
    (killed,) = crowd.run(shard(folder, "2/3", before=IN_PARTS + AT + f"\n    {where}"))
    assert killed.code == -9, killed
    landed = receipts(folder)
    assert bool(landed) == ("land_all" in where)
    others = crowd.run(*(shard(folder, f"{number}/3", before=IN_PARTS) for number in (1, 3)))
    assert codes(others) == [0, 0], others
    assert not any(path.suffix == ".safetensors" for path in (folder / "out").iterdir())
    assert landed.items() <= receipts(folder).items()
    (again,) = crowd.run(shard(folder, "2/3", before=IN_PARTS))
    assert again.code == 0, again
    assert outputs(folder) == alone


@pytest.mark.parametrize(
    "where",
    [
        'at(baking, "execute", 1, die)',
        'at(output.Complete, "commit", 1, die)',
        'at(output, "commit", 1, die)',
        'at(commit.Move, "do", 1, die)',
        'at(output.Partial, "clean", 1, die)',
    ],
)
def test_a_shard_that_is_killed_while_it_completes_is_followed_by_another(
    crowd: Crowd, folder: Path, alone: dict[str, bytes], where: str
) -> None:
    first = crowd.run(*(shard(folder, f"{number}/3", before=IN_PARTS) for number in (1, 2)))
    assert codes(first) == [0, 0], first
    (last,) = crowd.run(shard(folder, "3/3", before=IN_PARTS + AT + f"\n    {where}"))
    assert last.code == -9
    assert outputs(folder) != alone
    (other,) = crowd.run(shard(folder, "1/3", before=IN_PARTS))
    assert other.code == 0, other
    assert outputs(folder) == alone
