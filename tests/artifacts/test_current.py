"""A second bake does nothing where the output is there, of this recipe and these inputs. Else it bakes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from lorabake.artifacts import current, digests
from lorabake.artifacts.locking import lock
from lorabake.artifacts.reading import read_lock
from lorabake.baking import bake, bake_together
from lorabake.errors import LockError
from lorabake.options import RunOptions
from lorabake.planning import provenance
from lorabake.recipe import load_recipe
from lorabake.results import BakeResult
from lorabake.writing.partial import partial_of
from tests import builders as b


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; files count as old at once."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.delenv("LORABAKE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(digests, "TICK_NS", 0)
    monkeypatch.delenv("CI", raising=False)
    return folder


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file be too large to be digested beside a bake."""
    monkeypatch.setattr(current, "SMALL", 0)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    b.save(tmp_path / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(tmp_path / "lora.safetensors")
    return b.recipe(tmp_path)


def run(recipe: Path, **options: object) -> BakeResult:
    return bake(load_recipe(recipe), RunOptions(**{"fsync": False, "overwrite": True, **options}))  # type: ignore[arg-type]


def is_skipped(recipe: Path, **options: object) -> bool:
    """Bake, and tell whether nothing was done; the result says the same."""
    target = load_recipe(recipe).locate(load_recipe(recipe).output.path)
    before = target.stat().st_ino
    result = run(recipe, **options)
    assert result.is_up_to_date == (target.stat().st_ino == before)
    return result.is_up_to_date


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def flip(path: Path) -> None:
    """Change the last byte, and set the time of change back."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# -- nothing to do ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hashed", [True, False])
def test_a_second_bake_does_nothing(recipe: Path, large: None, hashed: bool) -> None:
    b.recipe(recipe.parent, output={"hash": hashed})
    first = run(recipe)
    assert not first.is_up_to_date
    second = run(recipe, overwrite=False)
    assert second.is_up_to_date
    assert (second.path, second.size, second.device) == (first.path, first.size, first.device)
    assert (second.data_sha256, second.input_sha256) == (first.data_sha256, first.input_sha256)
    assert "up to date" in repr(second)
    assert second.report()["up_to_date"] is True
    assert first.report()["up_to_date"] is False
    assert not is_skipped(recipe, force=True)


def test_nothing_of_a_large_base_is_read(recipe: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe)
    monkeypatch.setattr(
        current, "file_sha256", lambda path: b.sha256(path) if path.name != "base.safetensors" else None
    )
    monkeypatch.setattr("lorabake.baking.execute", None)
    assert is_skipped(recipe)


@pytest.mark.parametrize("name", ["base.safetensors", "lora.safetensors"])
def test_touched_inputs_are_the_same(recipe: Path, name: str) -> None:
    run(recipe)
    touch(recipe.with_name(name))
    assert is_skipped(recipe)


def test_a_large_base_that_was_touched_is_known_after_another_bake(recipe: Path, large: None) -> None:
    """Nothing told what a touched base is; the bake that finds this out takes its digest."""
    run(recipe)
    touch(recipe.with_name("base.safetensors"))
    assert not is_skipped(recipe)
    touch(recipe.with_name("base.safetensors"))
    assert is_skipped(recipe)


def test_a_base_whose_digest_the_cache_has_is_known_at_once(
    recipe: Path, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SMALLEST", 0)
    lock(recipe)
    run(recipe)
    touch(recipe.with_name("base.safetensors"))
    assert is_skipped(recipe)


def test_a_stated_base_needs_no_receipt(recipe: Path, cache: Path) -> None:
    b.recipe(
        recipe.parent, base={"path": "base.safetensors", "sha256": b.sha256(recipe.with_name("base.safetensors"))}
    )
    run(recipe)
    for entry in (cache / "lorabake" / "receipts").iterdir():
        entry.unlink()
    assert is_skipped(recipe)


def test_another_version_of_lorabake_that_gives_the_same_is_the_same(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe)
    monkeypatch.setattr(provenance, "__version__", "0.999.0")
    assert is_skipped(recipe)
    monkeypatch.setattr(provenance, "OUTPUT_VERSION", 999)
    assert not is_skipped(recipe)


def test_outputs_of_several_recipes_are_looked_at_one_by_one(recipe: Path) -> None:
    run(recipe)
    other = recipe.with_name("other.yaml")
    other.write_text(recipe.read_text().replace("out.safetensors", "other.safetensors"))
    recipes = [load_recipe(recipe), load_recipe(other)]
    assert [result.is_up_to_date for result in bake_together(recipes, RunOptions(fsync=False))] == [True, False]
    assert [result.is_up_to_date for result in bake_together(recipes, RunOptions(fsync=False))] == [True, True]


# -- something to do -------------------------------------------------------------------------------------


def drop_receipts(recipe: Path) -> None:
    for entry in Path(os.environ["XDG_CACHE_HOME"], "lorabake", "receipts").iterdir():
        entry.unlink()


def spoil_receipts(recipe: Path) -> None:
    for entry in Path(os.environ["XDG_CACHE_HOME"], "lorabake", "receipts").iterdir():
        entry.write_text('{"base.safetensors": {"/": {"file": "x", "sha256": 3}}}')


def cut(recipe: Path) -> None:
    path = recipe.with_name("out.safetensors")
    os.truncate(path, path.stat().st_size - 1)


def retitle(recipe: Path) -> None:
    path = recipe.with_name("out.safetensors")
    with safe_open(path, "pt") as file:
        said = file.metadata()
    b.save(path, load_file(path), {**said, "lorabake.recipe": said["lorabake.recipe"].replace("1.0", "2.0")})


def copied(recipe: Path) -> None:
    path = recipe.with_name("out.safetensors")
    path.write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda recipe: flip(recipe.with_name("base.safetensors")), id="base"),
        pytest.param(lambda recipe: flip(recipe.with_name("lora.safetensors")), id="lora"),
        pytest.param(lambda recipe: b.recipe(recipe.parent, output={"dtype": "bfloat16"}), id="recipe"),
        pytest.param(lambda recipe: recipe.with_name("config.json").write_text("{}"), id="a file beside the base"),
        pytest.param(lambda recipe: partial_of(recipe.with_name("out.safetensors")).mkdir(), id="a killed bake"),
        *(pytest.param(change, id=change.__name__) for change in (drop_receipts, spoil_receipts, cut, retitle)),
    ],
)
def test_any_change_is_baked(recipe: Path, change: Callable[[Path], object]) -> None:
    run(recipe)
    change(recipe)
    assert not is_skipped(recipe)
    assert is_skipped(recipe)


def test_an_output_of_another_class_of_device_is_baked_if_one_is_asked_for(recipe: Path) -> None:
    run(recipe, device="cpu")
    target = recipe.with_name("out.safetensors")
    content = target.read_bytes().replace(b'"lorabake.device":"cpu" ', b'"lorabake.device":"cuda"')
    content = content.replace(b'"lorabake.device":"cpu"', b'"lorabake.device":"xpu"')
    os.utime(recipe)
    status = target.stat()
    with target.open("r+b") as stream:
        stream.write(content)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert is_skipped(recipe, device="auto")
    assert not is_skipped(recipe, device="cpu")


def test_inputs_that_changed_just_before_the_bake_are_read(
    recipe: Path, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their times may be those of another content, too."""
    monkeypatch.setattr(digests, "TICK_NS", 10**12)
    run(recipe)
    assert not is_skipped(recipe)
    assert is_skipped(recipe), "by then its digest is known"


def test_a_missing_file_of_a_folder_is_baked(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    b.sd1_lora(tmp_path / "lora.safetensors")
    recipe = b.recipe(tmp_path, base="base", output={"path": "out"})
    run(recipe)
    assert is_skipped(recipe)
    for name in ("model_index.json", "unet/config.json"):
        (tmp_path / "out" / name).write_text("{}")
        assert not is_skipped(recipe)
        (tmp_path / "out" / name).unlink()
        assert not is_skipped(recipe)
    assert is_skipped(recipe)


def test_a_learned_embedding_beside_the_output_counts(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(tmp_path / "plain.safetensors")
    tensors = load_file(tmp_path / "plain.safetensors")
    vector = b.Values(5)(2, b.TEXT)
    b.save(tmp_path / "lora.safetensors", {**tensors, "bundle_emb.spark.string_to_param.*": vector})
    recipe = b.recipe(tmp_path)
    (embedding,) = run(recipe).plan.embeddings
    assert is_skipped(recipe)
    flip(embedding.path)
    assert not is_skipped(recipe)
    embedding.path.unlink()
    assert not is_skipped(recipe)


# -- with a lock -----------------------------------------------------------------------------------------


def test_a_locked_bake_reads_all_inputs_before_it_does_nothing(recipe: Path) -> None:
    lock(recipe)
    run(recipe, locked=True)
    assert is_skipped(recipe, locked=True)
    touch(recipe.with_name("base.safetensors"))
    assert is_skipped(recipe, locked=True)
    for name in ("base.safetensors", "lora.safetensors"):
        flip(recipe.with_name(name))
        with pytest.raises(LockError, match=f"{name} is another file"):
            run(recipe, locked=True)
        flip(recipe.with_name(name))
        assert is_skipped(recipe, locked=True)


def test_the_lock_alone_tells_of_an_output_from_elsewhere(recipe: Path) -> None:
    lock(recipe)
    run(recipe, locked=True)
    drop_receipts(recipe)
    copied(recipe)
    assert read_lock(recipe).outputs
    assert is_skipped(recipe, locked=True)
    assert not is_skipped(recipe)


def test_an_output_that_nothing_ties_to_the_lock_is_baked(recipe: Path) -> None:
    run(recipe)
    lock(recipe)
    drop_receipts(recipe)
    assert read_lock(recipe).outputs == ()
    assert not is_skipped(recipe, locked=True)
    assert is_skipped(recipe, locked=True)


def test_receipts_are_text_that_says_what_they_hold(recipe: Path, cache: Path) -> None:
    run(recipe)
    (entry,) = (cache / "lorabake" / "receipts").iterdir()
    said = json.loads(entry.read_text())
    assert said["base.safetensors"]["/"]["sha256"] == b.sha256(recipe.with_name("base.safetensors"))
