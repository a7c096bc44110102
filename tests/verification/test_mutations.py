"""Break a right bake in every way that merges go wrong, and see that verify names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorabake import load_recipe
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Finding, Status
from tests import builders as b
from tests.documents import checked
from tests.verification.mutations import MUTATIONS, WIDTH, Mutation, World

BOTH = VerifyOptions(stages=("structure", "weights"))
QUICK = VerifyOptions(stages=("structure", "quick"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(b, "W", WIDTH)
    monkeypatch.setattr(b, "TEXT", WIDTH)
    return World(tmp_path)


def failures(recipe: Path, baked: Path, options: VerifyOptions = BOTH) -> list[Finding]:
    verification = checked(verify(load_recipe(recipe), baked, options))
    return [each for each in verification.findings if each.status is Status.FAIL]


def test_the_unbroken_bake_is_true(world: World) -> None:
    assert checked(verify(load_recipe(world.recipe_path), world.path, QUICK)).status is Status.PASS
    verification = checked(verify(load_recipe(world.recipe_path), world.path, BOTH))
    assert verification.status is Status.PASS
    assert {each.check for each in verification.findings} >= {"weights.untouched", "weights.baked", "weights.lora"}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.fault)
def test_each_mutation_is_named(world: World, mutation: Mutation) -> None:
    mutation.apply(world)
    found = failures(world.recipe_path, world.path)
    assert {each.check for each in found} == {mutation.check} | mutation.more, found
    said = " ".join(f"{each.subject} {each.measured} {each.note}" for each in found if each.check == mutation.check)
    for words in mutation.words:
        assert words in said, said
    quickly = {each.check for each in failures(world.recipe_path, world.path, QUICK)}
    due = {mutation.in_quick} | {check.replace("weights.", "quick.") for check in mutation.more}
    assert quickly == due - {None}


def test_exchanged_shards_are_named(tmp_path: Path) -> None:
    b.llama(tmp_path / "base", shards=2)
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    recipe = b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})
    out = b.run(recipe).path
    one, other = sorted(out.glob("*.safetensors"))
    one.rename(out / "x")
    other.rename(one)
    (out / "x").rename(other)
    (found,) = failures(recipe, out)
    assert found.check == "structure.shards"
    assert f"{one.name} holds what belongs into {other.name}" in found.note


def test_the_documented_table_is_this_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "verification.md").read_text()
    table = text[text.index("| fault |") :].partition("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ") and "`" in line.split("|")[2]]
    documented = [tuple(cell.strip(" `") for cell in (row[1], row[2], row[-2])) for row in rows]
    due = [(each.fault, each.check, each.in_quick or "not found") for each in MUTATIONS]
    assert documented == [*due, ("shards exchanged", "structure.shards", "structure.shards")]
