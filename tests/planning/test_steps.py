"""Steps hold all that computing them takes; patches and steps have numbers of their own in a plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake import planning
from lorabake.baking import plan
from lorabake.errors import InternalError
from lorabake.planning import Plan
from lorabake.planning.copies import copies_of
from lorabake.planning.steps import SUM
from lorabake.recipe import load_recipe
from tests import builders as b
from tests.execution import by_hand


def planned(folder: Path, **fields: object) -> Plan:
    b.save(folder / "base.safetensors", b.sd1())
    b.sd1_lora(folder / "lora.safetensors")
    b.sd1_lora(folder / "other.safetensors", seed=9)
    return plan(load_recipe(b.recipe(folder, **{"loras": ["lora.safetensors", "other.safetensors"], **fields})))


def test_patches_and_steps_are_numbered_through_a_plan(tmp_path: Path) -> None:
    made = planned(tmp_path)
    assert [step.number for step in made.steps] == [*range(len(made.steps))]
    numbers = [patch.number for step in made.steps for patch in step.patches]
    assert sorted(numbers) == [*range(len(made.patches))]
    assert len(made.patches) == 2 * len(made.steps)


def test_a_step_says_method_order_precision_and_names(tmp_path: Path) -> None:
    made = planned(tmp_path, method={"name": "dare_ties", "density": 0.25, "seed": 7})
    for step in made.steps:
        assert (step.method.name, step.method.density, step.method.seed) == ("dare_ties", 0.25, 7)
        assert (step.order, step.precision, step.summed) == ("sum", "float64", False)
        assert step.loras == ("lora.safetensors", "other.safetensors")
    made = planned(tmp_path, compose="sequential", compute_dtype="float32")
    assert {(step.method, step.order, step.precision) for step in made.steps} == {(SUM, "sequential", "float32")}


def test_a_target_says_how_it_is_rounded(tmp_path: Path) -> None:
    rounding = {"name": "stochastic", "seed": 11}
    made = planned(tmp_path, output={"dtype": "float16", "rounding": rounding})
    assert {target.rounding_seed for step in made.steps for target in step.targets} == {11}
    made = planned(tmp_path, output={"dtype": "float32", "rounding": rounding})
    assert {target.rounding_seed for step in made.steps for target in step.targets} == {None}


def test_a_step_holds_all_that_computing_it_takes(tmp_path: Path) -> None:
    """Nobody is asked who knows the recipe: steps alone give the very bytes of the bake."""
    made = planned(tmp_path, method={"name": "ties", "density": 0.5})
    computed = by_hand.run(made.steps)
    baked = load_file(b.run(tmp_path / "recipe.yaml").path)
    for target in (target for step in made.steps for target in step.targets):
        assert torch.equal(computed.tensor(target), baked[target.key]), target.key


def test_some_steps_of_each_lora_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning.steps, "WATCHED", 2)
    made = planned(tmp_path)
    watched = [step.number for step in made.steps if step.is_watched]
    assert 0 < len(watched) < len(made.steps)


def test_what_follows_each_other_in_both_files_is_one_copy(tmp_path: Path) -> None:
    made = planned(tmp_path)
    computed = {target.key for step in made.steps for target in step.targets}
    (file,) = made.files
    alone = [copy for target in file.targets if target.key not in computed for copy in copies_of([target])]
    assert len(made.copies) < len(alone)
    assert sum(copy.stop - copy.start for copy in alone) == made.copied_bytes


def test_a_tensor_that_is_planned_twice_is_an_error(tmp_path: Path) -> None:
    (file,) = planned(tmp_path).files
    with pytest.raises(InternalError, match="is planned twice"):
        planning._by_key([*file.targets, dataclasses.replace(file.targets[0])])
