"""The recipes that ship with lorabake load, plan and bake; their schema is current; the stories are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from lorabake import RunOptions, load_recipe, load_recipes, plan
from lorabake.baking import bake, bake_together
from lorabake.recipe import recipe_schema

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml"))


def python(*arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a fresh clone's, with the inputs made by the script."""
    recipes = tmp_path_factory.mktemp("clone") / "recipes"
    recipes.mkdir()
    for path in RECIPES.iterdir():
        if path.name != "inputs":
            (recipes / path.name).symlink_to(path)
    python(RECIPES / "make_inputs.py", recipes / "inputs")
    return recipes


def test_there_are_recipes() -> None:
    wanted = {"single", "stacked", "per_component", "blocks", "llm", "demo"}
    assert {f"{name}.yaml" for name in wanted} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_bakes(folder: Path, name: str) -> None:
    text = (RECIPES / name).read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    plans = [plan(recipe) for recipe in load_recipes(folder / name)]
    for result in bake_together(plans, RunOptions(fsync=False, overwrite=True)):
        assert all(ledger.is_balanced and ledger.applied for ledger in result.plan.ledgers)
        assert result.size == result.plan.size
        assert result.path.resolve().is_relative_to(folder.parent / "out")


def test_the_small_checkpoint_is_recognised_whole(folder: Path) -> None:
    key_map = plan(load_recipe(folder / "single.yaml")).sources.key_map
    assert key_map.architecture.name == "sd1"
    assert [*key_map.placed] == ["unet", "text_encoder", "vae"]


def test_blocks_change_what_they_name(folder: Path) -> None:
    planned = plan(load_recipe(folder / "blocks.yaml"))
    strengths = {patch.module: patch.strength for step in planned.steps for patch in step.patches}
    assert not any(name.startswith("lora_te_") for name in strengths)
    assert {strength for name, strength in strengths.items() if "mid_block" in name} == {0.8 * 0.25}
    assert planned.ledgers[0].excluded == {"strength 0 by the block pattern 'text_encoder.*'": 216}


def test_inputs_are_reproducible(folder: Path, tmp_path: Path) -> None:
    python(RECIPES / "make_inputs.py", tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / "inputs" / path.name).read_bytes()
        with safe_open(path, "numpy") as file:
            assert file.keys()


def test_the_schema_is_current() -> None:
    written = json.loads((RECIPES / "recipe.schema.json").read_text(encoding="utf-8"))
    assert written == recipe_schema(), "run: lorabake schema > recipes/recipe.schema.json"


def test_the_bake_tells_of_a_dragon(folder: Path) -> None:
    result = bake(load_recipe(folder / "llm.yaml"), RunOptions(fsync=False, overwrite=True))
    expected = json.loads((RECIPES / "stories260K_dragon" / "expected.json").read_text(encoding="utf-8"))
    for model, text in ((folder / "stories260K", "greedy_base"), (result.path, "greedy_merged")):
        told = python(RECIPES / "story.py", model, "--prompt", expected["prompt"])
        assert told.strip() == expected[text].strip()
