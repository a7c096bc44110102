"""Several recipes on one base: each tensor of the base is read once, and the bytes are those of single bakes."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lorabake.baking import bake, bake_together, plan
from lorabake.errors import TargetError
from lorabake.execution import execute
from lorabake.execution.units import SharedReader, units_of
from lorabake.options import RunOptions
from lorabake.planning import Plan
from lorabake.planning.copies import Copy
from lorabake.recipe import load_recipe
from lorabake.writing.inputs import Inputs
from lorabake.writing.output import Output
from lorabake.writing.weights import Weights
from tests import builders as b

ROWS, COLUMNS = 96, 40
FUSED = {f"layers.{n}.attn.qkv.weight": (3 * ROWS, COLUMNS) for n in range(2)}
PLAIN = {f"layers.{n}.mlp.up.weight": (ROWS, COLUMNS) for n in range(6)}
Place = tuple[int, int]


class Counting(Inputs):
    """Note which bytes of which file are asked for."""

    def __init__(self, *plans: Plan) -> None:
        super().__init__(*plans)
        self.reads: defaultdict[Path, list[Place]] = defaultdict(list)
        self.lock = threading.Lock()

    def read(self, path: Path, start: int, into: memoryview) -> None:
        with self.lock:
            self.reads[path].append((start, start + len(into)))
        super().read(path, start, into)


def write_lora(path: Path, keys: Sequence[str], seed: int, **options: object) -> None:
    shapes = {**FUSED, **PLAIN}
    modules = {
        key.removesuffix(".weight"): b.lora(shapes[key], seed=seed + number, **options)  # type: ignore[arg-type]
        for number, key in enumerate(keys)
    }
    b.kohya(path, {"lora_unet_" + name.replace(".", "_"): slots for name, slots in modules.items()})


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Plan recipes that differ in strengths, LoRAs, methods, and in what they touch; tensors are of several tiles."""
    monkeypatch.setattr("lorabake.execution.tiles.TILE_VALUES", 16 * COLUMNS)
    values = b.Values(7)
    shapes = {**FUSED, **PLAIN, "norm.weight": (COLUMNS,)}
    b.save(tmp_path / "base.safetensors", {key: values(*shape, dtype=torch.float16) for key, shape in shapes.items()})
    plain = [*PLAIN]
    write_lora(tmp_path / "a.safetensors", [*FUSED, *plain[:4]], 1, rank=4)
    write_lora(tmp_path / "b.safetensors", plain[2:], 40, rank=6)
    write_lora(tmp_path / "column.safetensors", plain[:3], 80, rank=3, dora="column")
    recipes = {
        "one": {"loras": ["a.safetensors", {"path": "b.safetensors", "strength": -0.5}]},
        "two": {"loras": [{"path": "a.safetensors", "strength": 0.3}, "column.safetensors"]},
        "three": {
            "loras": ["a.safetensors", "b.safetensors"],
            "method": {"name": "ties", "density": 0.5},
            "output": {"dtype": "keep"},
        },
    }
    made = []
    for name, fields in recipes.items():
        output = {**fields.pop("output", {}), "path": f"{name}.safetensors"}  # type: ignore[dict-item]
        made.append(plan(load_recipe(b.recipe(tmp_path, **fields, output=output))))
    return made


def read_by(plans: Sequence[Plan], workers: int) -> dict[Path, list[Place]]:
    """Execute plans together, into nothing that stays; return what was read for computing."""
    with Counting(*plans) as counting, Inputs(*plans) as inputs, ExitStack() as stack:
        outputs = [stack.enter_context(Output(each, inputs, overwrite=True, fsync=False)) for each in plans]
        execute(
            plans,
            counting,
            [output.weights for output in outputs],
            device="cpu",
            workers=workers,
            progress=lambda count: None,
            warn=pytest.fail,
        )
        return dict(counting.reads)


def size(places: Sequence[Place]) -> int:
    return sum(stop - start for start, stop in places)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_base_is_read_once_and_loras_as_often_as_needed(plans: list[Plan], workers: int) -> None:
    base = plans[0].sources.base.path
    together = read_by(plans, workers)
    once = sorted(together.pop(base))
    assert all(one[1] <= other[0] for one, other in pairwise(once)), "a byte is read twice"
    touched = {(info.start, info.stop) for each in plans for step in each.steps for info in step.stored}
    assert size(once) == size([*touched])
    alone = [read_by([each], workers) for each in plans]
    assert sum(size(reads.pop(base)) for reads in alone) > 2 * size(once), "they have much in common"
    for path, places in together.items():
        assert size(places) == sum(size(reads.get(path, [])) for reads in alone)


def test_a_range_is_copied_to_all_outputs_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a base that is larger than the page cache comes from the disk once."""
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    plans = []
    for number in (1, 2, 3):
        lora, output = {"path": "lora.safetensors", "strength": number}, {"path": f"{number}.safetensors"}
        plans.append(plan(load_recipe(b.recipe(tmp_path, loras=[lora], output=output))))
    copy, order = Weights.copy, list[int]()

    def noted(weights: Weights, each: Copy, *others: object) -> None:
        order.append(each.start)
        copy(weights, each, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Weights, "copy", noted)
    read_by(plans, workers=1)
    assert order == [each.start for each in plans[0].copies for _ in plans]
    assert len({*order}) > 3


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_bytes_are_those_of_single_bakes(plans: list[Plan], workers: int) -> None:
    options = RunOptions(device="cpu", workers=workers, overwrite=True, force=True, fsync=False)
    alone = [bake(each, options) for each in plans]
    bytes_alone = [b.sha256(each.path) for each in plans]
    told: list[int] = []
    options = RunOptions(device="cpu", workers=workers, overwrite=True, force=True, fsync=False, progress=told.append)
    together = bake_together(plans, options)
    assert [b.sha256(each.path) for each in plans] == bytes_alone
    assert len({*bytes_alone}) == len(plans)
    assert sum(told) == sum(each.baked_bytes + each.copied_bytes for each in plans)
    for one, other in zip(alone, together, strict=True):
        assert (one.data_sha256, one.input_sha256, one.computed) == (
            other.data_sha256,
            other.input_sha256,
            other.computed,
        )
        assert (one.survival, one.cautions, one.plan) == (other.survival, other.cautions, other.plan)


def test_side_by_side_they_hold_a_tile_and_else_a_whole_tensor(plans: list[Plan]) -> None:
    """Steps that go through a tensor by the same rows share its tiles; one that needs all rows has it kept whole."""
    units = units_of([each.steps for each in plans])
    by_key = {target.key: unit for unit in units for task in unit.tasks for target in task.step.targets}
    assert by_key["layers.5.mlp.up.weight"].tasks[0].plan == 0
    first, third = (plans[number].steps for number in (0, 2))
    assert all(unit.in_tiles for unit in units_of([first, first]))
    assert not any(unit.in_tiles for unit in units_of([first, third]) if len(unit.tasks) > 1)


def test_one_plan_keeps_nothing(plans: list[Plan]) -> None:
    units = units_of([plans[0].steps])
    assert [task.step for unit in units for task in unit.tasks] == [*plans[0].steps]
    assert not any(unit.shared for unit in units)


def test_a_shared_reader_reads_on_without_a_unit(tmp_path: Path, plans: list[Plan]) -> None:
    """What is kept for a unit ends with it: then the file is asked again."""
    (unit, *_) = (unit for unit in units_of([plans[0].steps, plans[1].steps]) if len(unit.tasks) == 2)
    place = unit.shared[0]
    with Counting(*plans) as inputs:
        reader = SharedReader(inputs)
        for in_tiles in (True, False):
            for times in (1, 2):
                with reader.sharing(unit, in_tiles=in_tiles):
                    for _ in range(3):
                        reader.read(place.file, place.start, memoryview(bytearray(place.stop - place.start)))
                assert len(inputs.reads[place.file]) == times
            inputs.reads.clear()


def test_outputs_must_be_apart(plans: list[Plan], tmp_path: Path) -> None:
    options = RunOptions(device="cpu", overwrite=True, force=True, fsync=False)
    with pytest.raises(TargetError, match=r"one\.safetensors: \S+ would write it twice"):
        bake_together([plans[0], plans[0]], options)
    bake(plans[0], options)
    onto = b.recipe(tmp_path, base="one.safetensors", loras=["a.safetensors"], output={"path": "four.safetensors"})
    with pytest.raises(TargetError, match="is an input of this recipe"):
        bake_together([plans[0], plan(load_recipe(onto))], options)
    assert not (tmp_path / "four.safetensors").exists()


def test_a_failure_of_one_keeps_all_targets(plans: list[Plan], tmp_path: Path) -> None:
    b.save(tmp_path / "huge.safetensors", {"norm.weight": torch.ones(COLUMNS)})
    write_lora(tmp_path / "huge.safetensors", [*PLAIN][:1], 3, rank=2, size=1e9)
    bad = plan(load_recipe(b.recipe(tmp_path, loras=["huge.safetensors"], output={"path": "bad.safetensors"})))
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(Exception, match="cannot hold it"):
        bake_together([plans[0], bad], RunOptions(device="cpu", overwrite=True, force=True, fsync=False))
    assert {path.name for path in tmp_path.iterdir()} == before
