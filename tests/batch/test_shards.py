"""Shards: how one is named, by hand and by schedulers, and which part of the work is whose."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from lorabake.baking import plan
from lorabake.batch.groups import Limits, agreed_passes, memory_of, passes
from lorabake.batch.shards import Shard
from lorabake.errors import ArgumentError
from lorabake.planning import Plan
from lorabake.recipe import load_recipes
from tests.batch.sweep import write_sweep


@pytest.mark.parametrize(("text", "shard"), [("1/1", (1, 1)), ("3/8", (3, 8)), (" 8 / 8 ", (8, 8))])
def test_a_shard_is_a_number_and_a_count(text: str, shard: tuple[int, int]) -> None:
    assert Shard.of(text, {}) == Shard(*shard)
    assert str(Shard.of(text, {})) == "/".join(map(str, shard))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0/8", "Shards count from 1: 1/8 to 8/8."),
        ("9/8", "Shards count from 1: 1/8 to 8/8."),
        ("0/0", "The second number says how many shards there are: 1 or more."),
        ("1/0", "The second number says how many shards there are: 1 or more."),
    ],
)
def test_a_shard_that_does_not_exist_is_refused(text: str, words: str) -> None:
    with pytest.raises(ArgumentError) as error:
        Shard.of(text, {})
    assert str(error.value) == f"shard {text}: there is no such shard\n{words}"


@pytest.mark.parametrize(
    "text", ["", "3", "3/", "/8", "-1/8", "3/8/2", "a/b", "3.0/8", "٣/8", "automatic", "1e9/2e9"]
)
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="write the number and the count, as in 3/8, or auto"):
        Shard.of(text, {})


def array(number: int, count: int, first: int = 0, step: int = 1) -> dict[str, str]:
    """The variables that Slurm sets in a job of an array."""
    last = first + step * (count - 1)
    told = {"ID": first + step * number, "COUNT": count, "MIN": first, "MAX": last, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


AS_SAID = [
    (array(2, 8), "3/8"),
    (array(2, 8, first=1), "3/8"),
    (array(0, 4, first=10, step=5), "1/4"),
    (array(3, 4, first=10, step=5), "4/4"),
    (array(0, 1, first=7), "1/1"),
    ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3"}, "3/3"),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "1/2"),
    ({"RANK": "5", "WORLD_SIZE": "6"}, "6/6"),
    ({"JOB_COMPLETION_INDEX": "0", "LORABAKE_SHARDS": "3"}, "1/3"),
    ({"AWS_BATCH_JOB_ARRAY_INDEX": "9", "AWS_BATCH_JOB_ARRAY_SIZE": "10"}, "10/10"),
    ({**array(2, 8, first=1), "SLURM_PROCID": "0"}, "3/8"),
    ({**array(2, 8, first=1), "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, "3/8"),
    ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "RANK": "3", "WORLD_SIZE": "4"}, "4/4"),
    ({**array(2, 8), "LORABAKE_SHARDS": "8"}, "3/8"),
    ({"RANK": "1", "WORLD_SIZE": "2", "JOB_COMPLETION_INDEX": "1"}, "2/2"),
    ({"RANK": "0", "WORLD_SIZE": "1"}, "1/1"),
    ({"RANK": "", "WORLD_SIZE": "", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "2/2"),
]


@pytest.mark.parametrize(("environment", "shard"), AS_SAID)
def test_auto_asks_the_scheduler(environment: dict[str, str], shard: str) -> None:
    assert str(Shard.of("auto", environment)) == shard


@pytest.mark.parametrize("first", [0, 1, 5])
@pytest.mark.parametrize("step", [1, 3])
def test_the_jobs_of_an_array_are_all_shards(first: int, step: int) -> None:
    found = [Shard.of("auto", array(number, 5, first, step)) for number in range(5)]
    assert found == [Shard(number, 5) for number in range(1, 6)]


REFUSED = [
    ({}, "no scheduler says which shard this is\nThese variables were looked for: SLURM_ARRAY_TASK_ID and "),
    (
        {"JOB_COMPLETION_INDEX": "1"},
        "JOB_COMPLETION_INDEX is set, and LORABAKE_SHARDS is not\nKubernetes does not tell",
    ),
    ({"LORABAKE_SHARDS": "4"}, "LORABAKE_SHARDS is set, and JOB_COMPLETION_INDEX is not"),
    ({"SLURM_PROCID": "0"}, "SLURM_PROCID is set, and SLURM_NTASKS is not\nOr say which shard this is"),
    ({"WORLD_SIZE": "4"}, "WORLD_SIZE is set, and RANK is not"),
    ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4, WORLD_SIZE=4 name no shard"),
    ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0, WORLD_SIZE=0 name no shard"),
    ({"RANK": "one", "WORLD_SIZE": "4"}, "RANK is 'one', and should be a whole number"),
    ({"RANK": "-1", "WORLD_SIZE": "4"}, "RANK is '-1', and should be a whole number"),
    ({**array(1, 4, step=2), "SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_ID=3, .* one step"),
    ({**array(1, 4), "SLURM_ARRAY_TASK_MAX": "9"}, "SLURM_ARRAY_TASK_MAX=9, .* one step"),
    ({**array(1, 4), "SLURM_ARRAY_TASK_STEP": "0"}, "SLURM_ARRAY_TASK_STEP=0 name no shard"),
    (
        {**array(1, 4), "SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
        "SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT say 2/4, and SLURM_PROCID and SLURM_NTASKS say 2/2",
    ),
    ({"RANK": "1", "WORLD_SIZE": "2", "LORABAKE_SHARDS": "3"}, "say 2/2, and LORABAKE_SHARDS is 3"),
]


@pytest.mark.parametrize(("environment", "words"), REFUSED)
def test_auto_refuses_what_is_lacking_or_contradictory(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ArgumentError, match=words) as refused:
        Shard.of("auto", environment)
    assert "BatchOptions(shard='3/8')" in str(refused.value)


def test_every_item_is_one_shards() -> None:
    dice = random.Random(3)
    for _ in range(300):
        sizes = [dice.choice([0, 1, 7, 10**6, 10**12]) for _ in range(dice.randrange(40))]
        count = dice.randrange(1, 12)
        shares = [Shard(number, count).share(sizes) for number in range(1, count + 1)]
        assert [item for share in shares for item in share] == [*range(len(sizes))]


def test_shares_are_even() -> None:
    assert [len(Shard(number, 4).share([5] * 10)) for number in (1, 2, 3, 4)] == [2, 3, 2, 3]
    assert [len(Shard(number, 64).share([10**9] * 2048)) for number in (1, 33, 64)] == [32, 32, 32]
    sizes = [random.Random(5).randrange(1, 1000) for _ in range(500)]
    for number in range(1, 8):
        work = sum(sizes[item] for item in Shard(number, 7).share(sizes))
        assert abs(work - sum(sizes) / 7) <= 1000


# -- passes that all shards agree on -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[Plan]:
    folder = tmp_path_factory.mktemp("agreed") / "sweep"
    write_sweep(folder)
    return [plan(recipe) for recipe in load_recipes(folder / "sweep.yaml")]


@pytest.mark.parametrize(
    ("shards", "parts", "sizes", "is_whole"),
    [
        (1, 1, [6], True),
        (1, 30, [6], True),
        (2, 1, [3, 3], True),
        (3, 1, [2, 2, 2], True),
        (8, 1, [1] * 6, True),
        (2, 26, [3, 3], True),
        (6, 26, [1] * 6, True),
        (4, 26, [2, 2, 2], False),
        (8, 2, [1] * 6, True),
        (8, 8, [1] * 6, False),
        (32, 1000, [1] * 6, False),
    ],
)
def test_a_pass_has_as_many_outputs_as_keep_all_shards_busy(
    plans: list[Plan], shards: int, parts: int, sizes: list[int], is_whole: bool
) -> None:
    chosen = [*agreed_passes(plans, Limits(), shards, lambda group: parts)]
    assert [len(together) for together, _ in chosen] == sizes
    assert {whole for _, whole in chosen} == {is_whole}


def test_what_a_machine_has_free_does_not_count(plans: list[Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabake.batch.groups.open_files_allowed", lambda: 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    assert [len(each) for each in passes(plans, Limits())] == [1] * 6
    assert sizes(agreed_passes(plans, Limits(), 1, lambda group: 1)) == [6]
    two = memory_of(plans[:2], 8)
    assert sizes(agreed_passes(plans, Limits(two, 8), 1, lambda group: 1)) == [2, 2, 2]


def sizes(chosen: Iterable[tuple[tuple[Plan, ...], bool]]) -> list[int]:
    return [len(together) for together, _ in chosen]


def test_shards_go_to_bases_by_their_bytes(plans: list[Plan], tmp_path: Path) -> None:
    write_sweep(tmp_path / "second")
    other = [plan(recipe) for recipe in load_recipes(tmp_path / "second" / "sweep.yaml")]
    assert sizes(agreed_passes([*plans, *other], Limits(), 4, lambda group: 1)) == [3, 3, 3, 3]
    assert sizes(agreed_passes([*plans, other[0]], Limits(), 7, lambda group: 1)) == [1] * 7
