"""Parts of a pass: every byte of every output is of exactly one, whatever the output is, and everyone cuts alike."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from lorabake.baking import plan
from lorabake.batch.parts import Coverage, Part, left_of, parts_of
from lorabake.execution.agenda import Computed, Place, joined
from lorabake.execution.units import units_of
from lorabake.planning import Plan
from lorabake.recipe import load_recipe
from tests import builders as b


def planned(folder: Path, **fields: object) -> Plan:
    return plan(load_recipe(b.recipe(folder, **fields)))


def of_file(folder: Path) -> list[Plan]:
    b.save(folder / "base.safetensors", b.sd1())
    b.sd1_lora(folder / "lora.safetensors")
    return [planned(folder), planned(folder, output={"path": "other.safetensors", "dtype": "float32"})]


def converted(folder: Path) -> list[Plan]:
    b.save(folder / "base.safetensors", b.sdxl())
    fields: dict[str, object] = {"loras": [], "output": {"path": "out", "layout": "diffusers"}}
    other: dict[str, object] = {"loras": [], "output": {"path": "other.safetensors", "dtype": "bfloat16"}}
    return [planned(folder, **fields), planned(folder, **other)]


def with_vae(folder: Path) -> list[Plan]:
    b.save(folder / "vae.safetensors", b.vae_file("diffusers", seed=3))
    return [*of_file(folder), planned(folder, vae="vae.safetensors", output={"path": "third.safetensors"})]


def of_shards(folder: Path) -> list[Plan]:
    b.llama(folder / "base", shards=3)
    fields: dict[str, object] = {"base": "base", "loras": []}
    return [
        planned(folder, **fields, output={"path": "out", "dtype": "float16"}),
        planned(folder, **fields, output={"path": "other", "dtype": "float32", "shard_size": "20KB"}),
    ]


def given(folder: Path) -> list[Plan]:
    """Plan a single file with the buffers of a noise schedule, which no tensor of the folder holds."""
    b.sd1_folder(folder / "base")
    (folder / "base" / "scheduler").mkdir()
    schedule = {"num_train_timesteps": 40, "beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
    (folder / "base" / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    return [planned(folder, base="base", loras=[], output={"path": "out.safetensors", "layout": "single"})]


def places_of(parts: Iterable[Part], number: int) -> list[Place]:
    return sorted(place for part in parts for place in part.portion[number].places)


def whole(made: Plan) -> list[Place]:
    return [(number, 0, file.data_size) for number, file in enumerate(made.files) if file.data_size]


@pytest.mark.parametrize("make", [of_file, converted, with_vae, of_shards, given])
def test_every_byte_is_of_one_part(tmp_path: Path, make: Callable[[Path], Sequence[Plan]]) -> None:
    plans = make(tmp_path)
    most = sum(file.data_size for each in plans for file in each.files)
    for size in (1 << 40, most // 2, most // 5, most // 17, 5000, 700):
        parts = parts_of(plans, size)
        assert [part.number for part in parts] == [*range(len(parts))]
        assert parts == parts_of(plans, size)
        for number, each in enumerate(plans):
            places = places_of(parts, number)
            assert all(one[0] < other[0] or one[2] <= other[1] for one, other in pairwise(places)), "twice"
            assert [*joined(places)] == whole(each)
            steps = [step for part in parts for step in part.portion[number].steps]
            assert sorted(step.number for step in steps) == [step.number for step in each.steps]
        home = {
            (number, step.number): part.number
            for part in parts
            for number, share in enumerate(part.portion)
            for step in share.steps
        }
        for unit in units_of([each.steps for each in plans]):
            assert len({home[task.plan, task.step.number] for task in unit.tasks}) == 1, "a unit is parted"
    assert len(parts_of(plans, 1 << 40)) == 1
    assert len(parts_of(plans, 700)) > 2


def test_the_bytes_that_are_given_are_there(tmp_path: Path) -> None:
    assert given(tmp_path)[0].given, "the case above is of nothing"


@pytest.mark.parametrize("make", [of_file, converted, with_vae, given])
def test_what_is_left_is_what_is_not_covered(tmp_path: Path, make: Callable[[Path], Sequence[Plan]]) -> None:
    """Receipts of another cut cover whole steps, and copies in any pieces."""
    plans = make(tmp_path)
    choose = random.Random(5)
    for size, other in ((5000, 3000), (900, 20000), (20000, 1100)):
        kept = [part for part in parts_of(plans, size) if choose.random() < 0.5]
        covered = [
            Coverage(
                {step.number: Computed("cpu", "cpu", {}) for part in kept for step in part.portion[number].steps},
                joined(places_of(kept, number)),
            )
            for number in range(len(plans))
        ]
        left = [part for each in parts_of(plans, other) if (part := left_of(each, covered)) is not None]
        for number, each in enumerate(plans):
            places = sorted([*places_of(left, number), *covered[number].places])
            assert all(one[0] < other[0] or one[2] <= other[1] for one, other in pairwise(places)), "twice"
            assert [*joined(places)] == whole(each)
        everything = [
            Coverage({step.number: Computed("cpu", "cpu", {}) for step in each.steps}, tuple(whole(each)))
            for each in plans
        ]
        assert not [part for part in parts_of(plans, other) if left_of(part, everything)]
