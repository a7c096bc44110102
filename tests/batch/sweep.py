"""A small sweep of six outputs on one base, and what single bakes make of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorabake import RunOptions, bake, load_recipes
from tests import builders as b
from tests.batch.pieces import NotedPart

SWEEP = """version: 1
matrix:
  strength: [0.25, 0.5, 1]
  set:
    one: [{path: lora.safetensors, strength: "${strength}"}]
    two: [lora.safetensors, {path: other.safetensors, strength: "${strength}"}]
base: base.safetensors
loras: ${set}
output: {path: "out/${set}-${strength}.safetensors"}
"""


ONE = """version: 1
base: base.safetensors
loras: [{path: lora.safetensors, strength: 2}]
output: {path: out/one-1.safetensors}
"""
"""Another recipe for one of the outputs."""


def write_sweep(folder: Path) -> Path:
    """Write the recipe and its inputs into a new folder; return the recipe's path."""
    (folder / "out").mkdir(parents=True)
    b.save(folder / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(folder / "lora.safetensors")
    b.sd1_lora(folder / "other.safetensors", seed=7)
    recipe = folder / "sweep.yaml"
    recipe.write_text(SWEEP)
    (folder / "one.yaml").write_text(ONE)
    return recipe


def make_sweep(folder: Path) -> dict[str, bytes]:
    """Write the recipe and its inputs into a new folder; return each output as a single bake makes it."""
    recipe = write_sweep(folder)
    for each in load_recipes(recipe):
        bake(each, RunOptions(device="cpu", workers=1, fsync=False))
    made = outputs(folder)
    empty(folder)
    return made


def outputs(folder: Path) -> dict[str, bytes]:
    """Return all that lies where the outputs go: whole files alone, where nothing is left."""
    return {path.name: path.read_bytes() if path.is_file() else b"a folder" for path in (folder / "out").iterdir()}


def empty(folder: Path) -> None:
    """Remove the outputs."""
    shutil.rmtree(folder / "out")
    (folder / "out").mkdir()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Make the sweep's inputs, and each output by a bake of its own."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, make_sweep(folder)


@pytest.fixture
def folder(made: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Hold the sweep's inputs, and no outputs; parts note in `notes` that they ran."""
    folder = made[0]
    (folder / "notes").mkdir()
    monkeypatch.setattr("lorabake.batch.engines.spread.PartOfPass", NotedPart)
    yield folder
    empty(folder)
    shutil.rmtree(folder / "notes")
