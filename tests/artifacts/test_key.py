"""The key of an output: what changes it, what does not, and that a lock gives the same without the inputs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lorabake.artifacts.key import cache_key, cache_key_of_all
from lorabake.artifacts.locking import lock
from lorabake.cli import main
from lorabake.errors import LockError
from lorabake.planning import provenance
from lorabake.recipe import load_recipes
from tests import builders as b


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORABAKE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "one"
    folder.mkdir()
    b.save(folder / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(folder / "lora.safetensors")
    return b.recipe(folder)


def test_the_key_is_the_same_in_another_folder_with_and_without_a_lock(recipe: Path, tmp_path: Path) -> None:
    key = cache_key(recipe)
    other = shutil.copytree(recipe.parent, tmp_path / "two" / "deep") / "recipe.yaml"
    other.write_text("# a comment\n" + other.read_text())
    assert cache_key(other) == key
    lock(other)
    assert cache_key(other) == key
    for path in other.parent.glob("*.safetensors"):
        path.unlink()
    assert cache_key(other) == key
    assert cache_key(other, Path("elsewhere/out.safetensors")) == key


def test_what_decides_bytes_changes_the_key(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [cache_key(recipe), cache_key(recipe, Path("other.safetensors"))]
    b.recipe(recipe.parent, loras=[{"path": "lora.safetensors", "strength": 0.5}])
    keys.append(cache_key(recipe))
    b.sd1_lora(recipe.with_name("lora.safetensors"), seed=9)
    keys.append(cache_key(recipe))
    b.save(recipe.with_name("base.safetensors"), b.sd1(extras=True))
    keys.append(cache_key(recipe))
    monkeypatch.setattr("lorabake.artifacts.key.OUTPUT_VERSION", provenance.OUTPUT_VERSION + 1)
    keys.append(cache_key(recipe))
    assert len({*keys}) == len(keys)


def test_a_lock_that_lacks_an_input_gives_no_key(recipe: Path) -> None:
    lock(recipe)
    b.sd1_lora(recipe.with_name("new.safetensors"))
    b.recipe(recipe.parent, loras=["lora.safetensors", "new.safetensors"])
    with pytest.raises(LockError, match=r"recipe.yaml:5:3: new.safetensors is not in the lock"):
        cache_key(recipe)


SWEEP = """version: 1
matrix: {strength: [0.5, 1]}
base: base.safetensors
loras: [{path: lora.safetensors, strength: "${strength}"}]
output: {path: "out-${strength}.safetensors"}
"""


def test_outputs_of_a_matrix_have_one_key_that_changes_with_each(recipe: Path) -> None:
    sweep = recipe.with_name("sweep.yaml")
    sweep.write_text(SWEEP)
    recipes = load_recipes(sweep)
    key = cache_key_of_all(recipes)
    assert cache_key_of_all(recipes[::-1]) == key
    assert cache_key_of_all(recipes[:1]) == cache_key(recipes[0]) != key
    sweep.write_text(SWEEP.replace("1]", "0.9]"))
    assert cache_key_of_all(load_recipes(sweep)) != key


def test_the_command_takes_a_matrix(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = recipe.with_name("sweep.yaml")
    sweep.write_text(SWEEP)
    told = []
    for words in ([], ["--only", "out-1"], ["--only", "out-1", "-o", "elsewhere/out-1.safetensors"], ["-o", "x"]):
        with pytest.raises(SystemExit) as stopped:
            main(["cache-key", str(sweep), *words])
        told.append((stopped.value.code, capsys.readouterr().out.strip()))
    recipes = load_recipes(sweep)
    assert told == [(0, cache_key_of_all(recipes)), (0, cache_key(recipes[1])), (0, cache_key(recipes[1])), (2, "")]
