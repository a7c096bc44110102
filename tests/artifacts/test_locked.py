"""Bakes with a lock: what they refuse, what they write into it, and that a fresh lock is never refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lorabake
from lorabake.artifacts.digests import folder_sha256
from lorabake.artifacts.inputs import lock_of
from lorabake.artifacts.lock import Lock, LockedOutput
from lorabake.artifacts.locking import lock
from lorabake.artifacts.reading import read_lock
from lorabake.baking import bake
from lorabake.cli import main
from lorabake.errors import FileError, LockError
from lorabake.options import RunOptions
from lorabake.recipe import load_recipe
from lorabake.settings import as_options
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Status
from tests import builders as b

ZEROS = "0" * 64


@pytest.fixture(autouse=True)
def command_line(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, no CI, and messages as the command line words them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("LORABAKE_CACHE", raising=False)
    monkeypatch.delenv("CI", raising=False)
    with as_options():
        yield


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    b.save(tmp_path / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(tmp_path / "lora.safetensors")
    monkeypatch.chdir(tmp_path)
    return b.recipe(tmp_path)


def locked(recipe: Path, **options: object) -> lorabake.BakeResult:
    given = {"locked": True, "fsync": False, "overwrite": True, **options}
    return bake(load_recipe(recipe), RunOptions(**given))  # type: ignore[arg-type]


def flip(path: Path) -> None:
    """Change the last byte, and set the time of change back."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# -- what is refused -------------------------------------------------------------------------------------


def test_without_a_lock_nothing_is_baked(recipe: Path) -> None:
    with pytest.raises(LockError, match="has no lock"):
        locked(recipe)
    assert not recipe.with_name("out.safetensors").exists()


@pytest.mark.parametrize("name", ["base.safetensors", "lora.safetensors"])
def test_other_content_under_an_old_time_is_found(recipe: Path, name: str) -> None:
    before = lock(recipe).lock
    flip(recipe.with_name(name))
    with pytest.raises(LockError) as caught:
        locked(recipe)
    entry = before.input(name)
    assert entry is not None
    text = str(caught.value)
    assert f"{name} is another file than the lock says" in text
    assert entry.sha256 in text
    assert b.sha256(recipe.with_name(name)) in text
    assert f"lorabake lock --update {name} recipe.yaml" in text
    assert sorted(path.name for path in recipe.parent.iterdir()) == [
        "base.safetensors",
        "lora.safetensors",
        "recipe.lock.yaml",
        "recipe.yaml",
    ]


def test_the_cache_is_no_evidence(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lock(recipe).lock
    flip(recipe.with_name("base.safetensors"))
    entry = before.input("base.safetensors")
    assert entry is not None
    monkeypatch.setattr("lorabake.artifacts.digests.remembered", lambda _: entry.sha256)
    with pytest.raises(LockError, match=r"base.safetensors is another file"):
        locked(recipe)


def test_an_input_of_another_size_is_told_before_anything_is_written(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock(recipe)
    b.sd1_lora(recipe.with_name("lora.safetensors"), rank=5)
    monkeypatch.setattr("lorabake.baking.execute", None)
    with pytest.raises(LockError, match=r"recipe.yaml:4:3: lora.safetensors is another file"):
        locked(recipe)


def test_a_file_of_the_bases_folder_is_pinned_too(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    b.sd1_lora(tmp_path / "lora.safetensors")
    recipe = b.recipe(tmp_path, base="base", output={"path": "out"})
    lock(recipe)
    locked(recipe)
    flip_config(tmp_path)
    with pytest.raises(LockError, match=r"base: .* is another file than the lock says"):
        locked(recipe)


def test_a_changed_strength_is_baked(recipe: Path) -> None:
    lock(recipe)
    locked(recipe)
    b.recipe(recipe.parent, loras=[{"path": "lora.safetensors", "strength": 0.25}])
    locked(recipe)
    assert len(read_lock(recipe).outputs) == 1


def test_bytes_are_those_of_a_bake_without_a_lock(recipe: Path) -> None:
    plain = b.sha256(b.run(recipe).path)
    lock(recipe)
    assert b.sha256(locked(recipe).path) == plain


# -- the output ------------------------------------------------------------------------------------------


def with_output(recipe: Path, **fields: str) -> LockedOutput:
    """Change what the lock says of the output; return what it said."""
    before = read_lock(recipe)
    (output,) = before.outputs
    values = {"data_sha256": output.data_sha256, "lorabake": output.lorabake, "torch": output.torch, "device": "cpu"}
    changed = LockedOutput(**{**values, **fields})  # type: ignore[arg-type]
    lock_of(recipe).write_text(Lock(before.recipe, before.inputs, (changed,)).text(recipe))
    return output


def test_the_lock_gets_what_the_bake_gave(recipe: Path) -> None:
    lock(recipe)
    result = locked(recipe)
    (output,) = read_lock(recipe).outputs
    assert output.data_sha256 == result.data_sha256["out.safetensors"]
    assert (output.lorabake, output.device) == (lorabake.__version__, "cpu")
    text = lock_of(recipe).read_text()
    locked(recipe)
    assert lock_of(recipe).read_text() == text
    lock(recipe, update=["lora.safetensors"])
    assert lock_of(recipe).read_text() == text, "an update that changes nothing keeps it"
    lock(recipe)
    assert read_lock(recipe).outputs == ()


def test_a_ci_job_leaves_the_lock_as_it_is(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock(recipe)
    monkeypatch.setenv("CI", "true")
    locked(recipe)
    assert read_lock(recipe).outputs == ()


def test_a_lock_that_cannot_be_written_is_a_warning(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock(recipe)
    warnings: list[str] = []

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("lorabake.artifacts.locking.write_whole", refuse)
    assert locked(recipe, warn=warnings.append).path.exists()
    assert "recipe.lock.yaml: the lock cannot be written: Read-only file system" in warnings


def test_other_data_of_the_same_version_are_an_error(recipe: Path) -> None:
    lock(recipe)
    locked(recipe).path.unlink()
    output = with_output(recipe, data_sha256=ZEROS)
    with pytest.raises(LockError) as caught:
        locked(recipe)
    assert f"locked: SHA-256 {ZEROS}" in str(caught.value)
    assert f"now:    SHA-256 {output.data_sha256}" in str(caught.value)
    assert not recipe.with_name("out.safetensors").exists()


@pytest.mark.parametrize("field", ["lorabake", "torch"])
def test_other_data_of_another_version_are_a_warning(recipe: Path, field: str) -> None:
    lock(recipe)
    locked(recipe)
    with_output(recipe, **{"data_sha256": ZEROS, field: "0.0.1"})
    text, warnings = lock_of(recipe).read_text(), list[str]()
    locked(recipe, warn=warnings.append)
    assert [
        warning for warning in warnings if "other data than recipe.lock.yaml says" in warning and "0.0.1" in warning
    ]
    assert lock_of(recipe).read_text() == text


def test_data_of_another_class_of_device_are_not_compared(recipe: Path) -> None:
    lock(recipe)
    locked(recipe)
    with_output(recipe, data_sha256=ZEROS, device="cuda")
    locked(recipe, force=True)
    assert [output.device for output in read_lock(recipe).outputs] == ["cuda", "cpu"]


def test_the_output_of_another_recipe_is_not_compared(recipe: Path) -> None:
    lock(recipe)
    locked(recipe)
    with_output(recipe, data_sha256=ZEROS)
    b.recipe(recipe.parent, loras=[{"path": "lora.safetensors", "strength": 0.25}])
    result = locked(recipe)
    assert [output.data_sha256 for output in read_lock(recipe).outputs] == [*result.data_sha256.values()]


# -- a fresh lock is never refused -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases of several forms, and LoRAs with names that need care."""
    folder = tmp_path_factory.mktemp("models")
    b.save(folder / "base.safetensors", b.sd1(extras=False))
    b.sd1_folder(folder / "folder")
    b.sd1_folder(folder / "yes: [it] is # a 'name'")
    for number, name in enumerate(("lora", "1e3", "ä ö", "null", "it's", "- dash", "ｆｕｌｌ")):
        b.sd1_lora(folder / f"{name}.safetensors", seed=number)
    (folder / "config.json").write_text("{}")
    b.save(folder / "vae.safetensors", b.vae_file("ldm", seed=3))
    return folder


NAMES = st.sampled_from(["lora", "1e3", "ä ö", "null", "it's", "- dash", "ｆｕｌｌ"])
WRITTEN = st.sampled_from(["{}", "./{}", "../{}", "{folder}/{}", "sub/../{}"])


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, object]:
    base = draw(st.sampled_from(["base.safetensors", "folder", "yes: [it] is # a 'name'"]))
    loras = draw(st.lists(st.tuples(WRITTEN, NAMES, st.floats(-2, 2, width=16)), min_size=1, max_size=3))
    output: dict[str, object] = {"path": draw(st.sampled_from(["out", "deep/out"])), "hash": draw(st.booleans())}
    if draw(st.booleans()):
        output["dtype"] = draw(st.sampled_from(["float32", "bfloat16"]))
    if base == "base.safetensors" and draw(st.booleans()):
        output["shard_size"] = "20KB"
    is_folder = base != "base.safetensors" or "shard_size" in output
    output["path"] = f"{output['path']}{'' if is_folder else '.safetensors'}"
    content: dict[str, object] = {
        "version": 1,
        "base": {"path": draw(WRITTEN), "name": base},
        "loras": [{"path": path, "name": f"{name}.safetensors", "strength": size} for path, name, size in loras],
        "output": output,
    }
    if draw(st.booleans()):
        content["vae"] = {"path": draw(WRITTEN), "name": "vae.safetensors"}
    return content


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipes(), st.sampled_from(["recipe.yaml", "a b.yml", "recipe"]))
def test_a_fresh_lock_is_never_refused(models: Path, tmp_path: Path, content: dict[str, object], name: str) -> None:
    shutil.rmtree(tmp_path)
    place = tmp_path / "recipes"
    (place / "sub").mkdir(parents=True)
    for root in (tmp_path, place):
        for path in models.iterdir():
            (root / path.name).symlink_to(path)
    entries = [content["base"], *content["loras"], *([content["vae"]] if "vae" in content else [])]  # type: ignore[misc]
    for entry in entries:
        entry["path"] = entry["path"].format(entry.pop("name"), folder=models)  # type: ignore[index]
    recipe = place / name
    recipe.write_text(yaml.safe_dump(content, allow_unicode=True))
    made = lock(recipe).lock
    assert read_lock(recipe) == made
    first = locked(recipe)
    assert b.sha256(first.path) == b.sha256(locked(recipe).path) if first.path.is_file() else first.path.is_dir()


def test_a_lock_in_the_bases_own_folder_is_not_refused(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    b.sd1_lora(tmp_path / "lora.safetensors")
    recipe = b.recipe(tmp_path / "base", base=".", loras=["../lora.safetensors"], output={"path": "../out"})
    lock(recipe)
    for _ in range(3):
        locked(recipe)


# -- sha256 of folders -----------------------------------------------------------------------------------


def stated(folder: Path, sha256: str) -> Path:
    return b.recipe(folder, base={"path": "base", "sha256": sha256}, output={"path": "out"})


def test_a_recipe_may_state_the_digest_of_a_folder(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    b.sd1_lora(tmp_path / "lora.safetensors")
    base = lock(b.recipe(tmp_path, base="base", output={"path": "out"})).lock.inputs[0]
    assert base.sha256 == folder_sha256(base.files.values())
    recipe = stated(tmp_path, base.sha256)
    b.run(recipe)
    verification = verify(load_recipe(recipe), options=VerifyOptions(stages=("structure", "weights")))
    assert not [each for each in verification.findings if each.status in (Status.FAIL, Status.ERROR)]
    flip_config(tmp_path)
    with pytest.raises(FileError, match=rf"recipe.yaml:3:9: base: its SHA-256 is .* states {base.sha256}"):
        b.run(recipe)
    verification = verify(load_recipe(recipe), options=VerifyOptions(stages=("structure", "weights")))
    assert any(each.check == "weights.input" and each.status is Status.FAIL for each in verification.findings)


def flip_config(folder: Path) -> None:
    """Change a configuration's text, and nothing that it says."""
    path = folder / "base" / "unet" / "config.json"
    path.write_text(path.read_text() + "\n")


def test_a_loras_folder_may_be_stated_by_its_only_file_or_as_a_whole(tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    b.peft(tmp_path / "made", {"model.layers.0.self_attn.q_proj": b.lora((8, 8), rank=4)}, r=4, lora_alpha=8)
    whole = lock(b.recipe(tmp_path, base="base", loras=["made"], output={"path": "out"})).lock.inputs[1].sha256
    for sha256 in (whole, b.sha256(tmp_path / "made" / "adapter_model.safetensors")):
        b.run(b.recipe(tmp_path, base="base", loras=[{"path": "made", "sha256": sha256}], output={"path": "out"}))
    with pytest.raises(FileError, match="made: its SHA-256 is"):
        b.run(b.recipe(tmp_path, base="base", loras=[{"path": "made", "sha256": ZEROS}], output={"path": "out"}))


# -- the command line ------------------------------------------------------------------------------------


def cli(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(_Program(), list(words), env=environment)  # type: ignore[arg-type]


class _Program:
    """Let click's runner call `main`."""

    name = "lorabake"

    def main(self, args: list[str], prog_name: str, **_: object) -> None:
        main(args)


def test_in_ci_a_lock_counts_and_the_output_says_so(recipe: Path) -> None:
    words = ("bake", "recipe.yaml", "--no-fsync", "--overwrite")
    said = "note: CI=true, and the recipe has a lock: baked --locked (--no-locked turns it off)"
    assert said not in cli(*words, CI="true").output, "there is no lock"
    lock(recipe)
    assert said in cli(*words, CI="true").output
    assert said not in cli(*words).output
    flip(recipe.with_name("base.safetensors"))
    refused = cli(*words, CI="true")
    assert refused.exit_code == 2
    assert "the lock is stale" in refused.output
    assert cli(*words, "--no-locked", CI="true").exit_code == 0
    assert cli(*words).exit_code == 0
    assert cli(*words, "--locked").exit_code == 2
    assert cli("lock", "--check", "recipe.yaml").exit_code == 1
    assert cli("lock", "--update", "base.safetensors", "recipe.yaml").exit_code == 0
    assert cli("lock", "--check", "recipe.yaml").exit_code == 0


# -- several outputs -------------------------------------------------------------------------------------

SWEEP = """version: 1
matrix: {lora: [lora, other], strength: [0.5, 1]}
base: base.safetensors
loras: [{path: "${lora}.safetensors", strength: "${strength}"}]
output: {path: "out/${lora}-${strength}.safetensors"}
"""


@pytest.fixture
def sweep(recipe: Path) -> Path:
    b.sd1_lora(recipe.with_name("other.safetensors"), seed=5)
    path = recipe.with_name("sweep.yaml")
    path.write_text(SWEEP)
    return path


def code(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_a_lock_pins_the_inputs_of_all_outputs(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("lock", "sweep.yaml") == 0
    assert [each.path for each in read_lock(sweep).inputs] == [
        "base.safetensors", "lora.safetensors", "other.safetensors",
    ]  # fmt: skip
    assert code("lock", "--check", "sweep.yaml") == 0
    flip(sweep.with_name("other.safetensors"))
    assert code("lock", "--check", "sweep.yaml") == 1
    assert code("lock", "--check", "sweep.yaml", "--only", "lora-*") == 0
    assert code("bake", "sweep.yaml", "--only", "lora-1", "--locked", "--quiet") == 0
    assert code("batch", "sweep.yaml", "--locked", "--quiet") == 1
    assert {path.stem for path in (sweep.parent / "out").glob("*.safetensors")} == {"lora-0.5", "lora-1"}
    assert "other.safetensors is another file than the lock says" in capsys.readouterr().err


def test_a_lock_of_some_outputs_keeps_what_others_need(sweep: Path) -> None:
    before = lock(sweep).lock
    flip(sweep.with_name("other.safetensors"))
    assert lock(sweep, only=["lora-*"]).lock == before
    changed = lock(sweep, only=["other-1"]).lock
    assert [old == new for old, new in zip(before.inputs, changed.inputs, strict=True)] == [True, True, False]
    lock_of(sweep).unlink()
    assert [each.path for each in lock(sweep, only=["lora-1"]).lock.inputs] == [
        "base.safetensors",
        "lora.safetensors",
    ]
    assert code("bake", "sweep.yaml", "--only", "other-1", "--locked") == 2


def test_a_lock_has_each_output_by_its_name(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock(sweep)
    assert code("bake", "sweep.yaml", "--only", "lora-1", "--locked", "--quiet") == 0
    assert [output.name for output in read_lock(sweep).outputs] == ["lora-1"]
    assert code("batch", "sweep.yaml", "--locked", "--quiet") == 0
    made = read_lock(sweep)
    assert {output.name for output in made.outputs} == {"lora-1", "lora-0.5", "other-1", "other-0.5"}
    assert len({output.data_sha256 for output in made.outputs}) == 4
    assert lock(sweep, update=["other.safetensors"]).lock.outputs == made.outputs
    assert code("batch", "sweep.yaml", "--locked", "--force", "--quiet") == 0
    assert read_lock(sweep) == made
    wrong = [replace(each, data_sha256=ZEROS) if each.name == "other-1" else each for each in made.outputs]
    lock_of(sweep).write_text(replace(made, outputs=tuple(wrong)).text(sweep))
    capsys.readouterr()
    assert code("batch", "sweep.yaml", "--locked", "--force", "--overwrite", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["status"]) for each in told["outputs"] if each["status"] != "baked"] == [
        ("other-1", "failed")
    ]


def test_an_output_of_a_changed_recipe_replaces_what_the_lock_has_of_it(sweep: Path) -> None:
    lock(sweep)
    assert code("batch", "sweep.yaml", "--locked", "--quiet") == 0
    before = {output.name: output for output in read_lock(sweep).outputs}
    sweep.write_text(SWEEP.replace("output: {", "compute_dtype: float64\noutput: {"))
    assert code("bake", "sweep.yaml", "--only", "lora-1", "--locked", "--overwrite", "--quiet") == 0
    after = {output.name: output for output in read_lock(sweep).outputs}
    assert {name for name in before if before[name] != after[name]} == {"lora-1"}
    assert len(read_lock(sweep).outputs) == 4


def test_a_batch_in_ci_is_locked_if_all_recipes_have_a_lock(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock(sweep)
    monkeypatch.setenv("CI", "true")
    assert code("batch", "sweep.yaml", "--only", "lora-1") == 0
    assert "baked --locked" in capsys.readouterr().err
    assert read_lock(sweep).outputs == ()
