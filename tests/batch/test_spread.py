"""Batches over several processes: the bytes of single bakes, whatever is killed in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lorabake.baking import bake
from lorabake.batch import BatchOptions, Outcome, bake_all
from lorabake.errors import TargetError
from lorabake.options import RunOptions
from lorabake.recipe import Recipe, load_recipe, load_recipes
from tests import builders as b
from tests.batch.pieces import noted_runs
from tests.batch.sweep import folder as folder  # a fixture
from tests.batch.sweep import made as made  # a fixture
from tests.batch.sweep import outputs

PART = 6000
"""Bytes of a part here: the tiny base has some ten."""


def sweep(folder: Path, progress: Callable[[int], None] = lambda _: None, **others: object) -> tuple[Outcome, ...]:
    run = RunOptions(device="cpu", workers=1, fsync=False, progress=progress)
    options = BatchOptions(run=run, part_bytes=PART, **others)  # type: ignore[arg-type]
    return bake_all(load_recipes(folder / "sweep.yaml"), options)


def statuses(outcomes: tuple[Outcome, ...]) -> list[str]:
    return [outcome.status for outcome in outcomes]


@pytest.mark.parametrize("jobs", [1, 4])
def test_the_bytes_are_those_of_single_bakes(folder: Path, made: tuple[Path, dict[str, bytes]], jobs: int) -> None:
    counts: list[int] = []
    outcomes = sweep(folder, counts.append, jobs=jobs)
    assert statuses(outcomes) == ["baked"] * 6
    assert outputs(folder) == made[1]
    assert sum(counts) == sum(
        each.result.plan.copied_bytes + each.result.plan.baked_bytes for each in outcomes if each.result
    )
    assert len({path.name.split(".")[1] for path in (folder / "notes").iterdir()}) == (0 if jobs == 1 else jobs)
    assert all(count == 1 for count in noted_runs(folder).values())


def test_a_killed_worker_loses_nothing(folder: Path, made: tuple[Path, dict[str, bytes]]) -> None:
    killed: list[int] = []

    def kill(count: int) -> None:
        if count and not killed:
            latest = max((folder / "notes").iterdir(), key=lambda path: int(path.name.split(".")[2]))
            killed.append(int(latest.name.split(".")[1]))
            os.kill(killed[0], signal.SIGKILL)

    outcomes = sweep(folder, kill, jobs=2)
    assert killed
    assert statuses(outcomes) == ["baked"] * 6
    assert outputs(folder) == made[1]
    assert sum(noted_runs(folder).values()) <= len(noted_runs(folder)) + 1


# -- whole passes --------------------------------------------------------------------------------------------


@pytest.fixture
def catalogue(tmp_path: Path) -> list[Recipe]:
    """Write recipes on bases of their own; something else has the output's name of the second."""
    b.sd1_lora(tmp_path / "lora.safetensors")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.safetensors").write_text("something else")
    made = []
    for number in range(4):
        b.save(tmp_path / f"base-{number}.safetensors", b.sd1(extras=False, seed=number))
        output = {"path": f"out/{number}.safetensors"}
        path = b.recipe(tmp_path, base=f"base-{number}.safetensors", loras=["lora.safetensors"], output=output)
        made.append(load_recipe(path.rename(tmp_path / f"{number}.yaml")))
    return made


def test_whole_passes_are_baked_side_by_side(catalogue: list[Recipe], tmp_path: Path) -> None:
    """After a failure nothing is begun if asked; what was begun is there already when the rest is baked."""
    warnings: list[str] = []
    run = RunOptions(device="cpu", workers=1, fsync=False, warn=warnings.append)
    first = bake_all([*catalogue[1:], catalogue[0]], BatchOptions(run=run, jobs=2, fail_fast=True))
    assert statuses(first) == ["failed", "baked", "left", "left"]
    assert isinstance(first[0].error, TargetError)
    outcomes = bake_all(catalogue, BatchOptions(run=run, jobs=2))
    assert statuses(outcomes) == ["baked", "failed", "current", "baked"]
    for each in catalogue:
        if each.name != "1":
            alone, together = (tmp_path / name / f"{each.name}.safetensors" for name in ("alone", "out"))
            bake(each, run, output=alone)
            assert together.read_bytes() == alone.read_bytes()
    result = outcomes[0].result
    assert result is not None
    assert result.report()["lorabake"] == "bake"
    assert result.computed == {"cpu": tuple(target.key for step in result.plan.steps for target in step.targets)}
