"""Findings say what was compared and how, what was not, and under which other setting a file would be right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake import load_recipe, plan
from lorabake.errors import LorabakeError
from lorabake.recipe import Lora, Recipe
from lorabake.reference.arrays import Files
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Finding, Status, Verification
from lorabake.verification.weights.causes import Cause, Diagnosis
from lorabake.verification.weights.comparing import Comparer, Extent
from lorabake.verification.weights.comparison import Comparison
from lorabake.verification.weights.settings import choices
from lorabake.verification.weights.telling import findings
from tests import builders as b
from tests.documents import checked

STAGES = ("weights", "quick")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hold a base, a LoRA, a recipe and its bake, which another tool has saved anew: the library's own order."""
    monkeypatch.setattr(b, "W", 32)
    monkeypatch.setattr(b, "TEXT", 32)
    b.save(tmp_path / "base.safetensors", b.sd1(extras=True))
    b.sd1_lora(tmp_path / "lora.safetensors", rank=6, size=0.1)
    b.save(tmp_path / "out.safetensors", load_file(b.bake_sd1(tmp_path)))
    return tmp_path


def look(folder: Path, *stages: str, **options: object) -> Verification:
    chosen = VerifyOptions(stages=stages or ("structure", "weights"), **options)  # type: ignore[arg-type]
    return checked(verify(load_recipe(folder / "recipe.yaml"), None, chosen))


def told(verification: Verification, check: str) -> list[Finding]:
    return [each for each in verification.findings if each.check == check]


def change(folder: Path, **changed: torch.Tensor) -> None:
    b.save(folder / "out.safetensors", load_file(folder / "out.safetensors") | changed)


# -- what was compared ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_all_that_was_compared_is_counted(folder: Path, stage: str) -> None:
    (compared,) = told(look(folder, stage), f"{stage}.compared")
    count = len(load_file(folder / "base.safetensors"))
    assert (compared.status, compared.measured, compared.limit) == (Status.PASS, f"{count}", f"{count}")


@pytest.mark.parametrize("stage", STAGES)
def test_what_was_not_compared_is_named(folder: Path, stage: str) -> None:
    tensors = load_file(folder / "out.safetensors")
    lost, bent = "model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_in.weight"
    del tensors[lost]
    tensors[bent] = tensors[bent].flatten()
    tensors["stray.weight"] = torch.ones(3)
    b.save(folder / "out.safetensors", tensors)
    (compared,) = told(look(folder, stage), f"{stage}.compared")
    count = len(load_file(folder / "base.safetensors"))
    assert (compared.status, compared.measured) == (Status.SKIP, f"{count - 2}")
    for words in (
        "1 not there",
        "out.N.weight",
        "1 of another shape",
        "conv_in.weight",
        "1 that the recipe",
        "stray",
    ):
        assert words in compared.note, words


@pytest.mark.parametrize("stage", STAGES)
def test_a_sample_counts_tensors(folder: Path, stage: str) -> None:
    count = len(load_file(folder / "base.safetensors"))
    verification = look(folder, stage, sample_weights=20)
    (sampled,) = told(verification, f"{stage}.sampled")
    assert sampled.subject == f"20 of {count} tensors"
    assert f"{count - 20} left out by sample_weights" in told(verification, f"{stage}.compared")[0].note


def test_steps_of_several_tensors_count_as_so_many(tmp_path: Path) -> None:
    """A scaled weight and its scale are one step."""
    weight = b.Values(1)(16, 24).to(torch.float8_e4m3fn)
    tensors = {"layer.weight": weight, "layer.weight_scale": torch.tensor(0.5), "norm.weight": torch.ones(4)}
    b.save(tmp_path / "base.safetensors", tensors)
    b.kohya(tmp_path / "lora.safetensors", {"lora_unet_layer": b.lora((16, 24))})
    b.run(b.recipe(tmp_path, output={"allow_loss": True}))
    made = plan(load_recipe(tmp_path / "recipe.yaml"))
    extent = Extent.of(made, open_checkpoint(made.path), sample=1)
    assert len(extent.jobs) == 1
    (sampled, _) = extent.findings("weights")
    assert sampled.subject == "2 of 3 tensors"


# -- equal bytes, equal numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_equal_bytes_equal_numbers_and_rounded_ones_are_told_apart(folder: Path, stage: str) -> None:
    keys = [key for key in load_file(folder / "base.safetensors") if key.startswith("first_stage_model.decoder")]
    base = load_file(folder / "base.safetensors")
    change(folder, **{keys[0]: base[keys[0]].float(), keys[1]: base[keys[1]].bfloat16()})
    verification = look(folder, stage)
    same, wider, rounded = told(verification, f"{stage}.untouched")
    assert (same.status, wider.status, rounded.status) == (Status.PASS, Status.WARN, Status.WARN)
    assert int(same.measured) == int(same.limit) - 2
    assert (wider.subject, rounded.subject) == (keys[0], keys[1])
    assert "the same numbers, in F32 where the base has F16" in wider.note
    assert "rounded, in BF16 where the base has F16" in rounded.note
    assert verification.exit_code == 1  # by the headers


@pytest.mark.parametrize("stage", STAGES)
def test_casts_are_told_apart_from_bakes(folder: Path, stage: str) -> None:
    b.bake_sd1(folder, output={"dtype": "float32"})
    verification = look(folder, stage)
    (cast,) = told(verification, f"{stage}.cast")
    assert cast.status is Status.PASS
    assert "baked" not in cast.subject
    baked = told(verification, "weights.baked" if stage == "weights" else "quick.sums")
    assert baked[0].subject == "4 baked tensors"


def test_numbers_that_nothing_here_can_read_are_a_difference_and_no_crash(tmp_path: Path) -> None:
    scale = torch.arange(120, 128, dtype=torch.uint8)
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(1)(8, 8), "scale": scale})
    b.kohya(tmp_path / "lora.safetensors", {"lora_unet_fc": b.lora((8, 8))})
    b.run(b.recipe(tmp_path))
    tensors = load_file(tmp_path / "out.safetensors") | {"scale": scale.view(torch.float8_e8m0fnu)}
    b.save(tmp_path / "out.safetensors", tensors)
    (fault,) = told(look(tmp_path), "weights.values")
    assert fault.subject == "scale"


# -- whole components ----------------------------------------------------------------------------------------


def test_a_component_is_another_one_only_if_its_own_tensors_all_differ(folder: Path) -> None:
    """As many wrong tensors as there are untouched ones do not make it so: which ones they are does."""
    made = plan(load_recipe(folder / "recipe.yaml"))
    comparer = Comparer(made, open_checkpoint(made.path), Files(), lambda count: None)
    extent = Extent.of(made, comparer.baked)
    results = [each for job in extent.jobs for each in comparer.compare(job)]
    unet = [each for each in results if made.sources.key_map.owner.get(each.target.key) == "unet"]
    copies = [each.target.key for each in unet if each.is_copy]
    few = [*[each for each in unet if each.is_copy][:3], *[each for each in unet if not each.is_copy]]
    assert len(few) == 6

    def words(keys: list[str], among: list[Comparison]) -> str:
        diagnoses = [Diagnosis(key, Cause.VALUES) for key in keys]
        return " ".join(each.note for each in findings(made, diagnoses, among))

    baked = [each.target.key for each in few if not each.is_copy]
    assert "another one" not in words(baked, few)  # three wrong, and three untouched
    assert "another one" not in words(copies[:2], few)
    assert "another one: all 3 tensors of it that no LoRA touches differ" in words(copies[:3], few)


# -- inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["base", "loras"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stated_digest_is_compared_with_the_file(folder: Path, stage: str, which: str) -> None:
    """The recipe states it, and another tool's file says nothing of its inputs."""
    entry = {"path": "base.safetensors" if which == "base" else "lora.safetensors"}
    right = b.sha256(folder / entry["path"])
    for digest, status in ((right, Status.PASS), ("0" * 64, Status.FAIL)):
        said = entry | {"sha256": digest}
        b.recipe(folder, **{which: said if which == "base" else [said]})
        (found,) = told(look(folder, stage), f"{stage}.input")
        assert (found.status, found.subject) == (status, entry["path"])


# -- other settings ------------------------------------------------------------------------------------------


def relabelled(folder: Path, **fields: object) -> None:
    """Bake by other fields, and let the file be another tool's: without a recipe."""
    out = b.bake_sd1(folder, **fields)
    b.save(out, load_file(out))


def test_the_settings_are_those_of_the_recipes_own_types() -> None:
    schema = json.dumps(Lora.model_json_schema()["properties"]["semantics"])
    assert choices(Lora, "semantics")
    assert all(f'"{name}"' in schema for name in choices(Lora, "semantics"))
    assert choices(Recipe, "compose") == ["sum", "sequential"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_law_of_another_program_is_named(folder: Path, stage: str) -> None:
    seen = set()
    b.sd1_lora(folder / "lora.safetensors", rank=6, size=0.1, dora="row")
    entry = {"path": "lora.safetensors", "strength": 0.6}
    for name in choices(Lora, "semantics"):
        try:
            relabelled(folder, loras=[entry | {"semantics": name}])
        except LorabakeError:
            continue  # a program that does not read this spelling
        b.recipe(folder, loras=[entry])
        verification = look(folder, stage)
        assert verification.exit_code == 1, name
        (said,) = told(verification, f"{stage}.semantics")
        assert said.measured.startswith("semantics: ")
        assert (said.status, said.limit) == (Status.WARN, "no semantics")
        assert "on 4 of 4 modules" in said.note
        assert f"right under {said.measured}" in told(verification, f"{stage}.values")[0].note
        b.recipe(folder, loras=[entry | {"semantics": said.measured.removeprefix("semantics: ")}])
        assert look(folder, stage).is_true, name  # what it says is true
        seen.add(name)
    assert len(seen) >= 3


def test_the_definition_is_named_where_the_recipe_follows_a_program(folder: Path) -> None:
    b.sd1_lora(folder / "lora.safetensors", rank=6, size=0.1, dora="row")
    entry = {"path": "lora.safetensors", "strength": 0.6}
    relabelled(folder, loras=[entry])
    b.recipe(folder, loras=[entry | {"semantics": "comfyui"}])
    (said,) = told(look(folder), "weights.semantics")
    assert (said.measured, said.limit) == ("no semantics", "comfyui")


def test_one_lora_of_several_may_follow_another_law(folder: Path) -> None:
    b.sd1_lora(folder / "lora.safetensors", rank=6, size=0.1, dora="row")
    b.sd1_lora(folder / "other.safetensors", seed=9, rank=6, size=0.1, dora="row")
    entries: list[dict[str, object]] = [
        {"path": name, "strength": 0.6} for name in ("lora.safetensors", "other.safetensors")
    ]
    relabelled(folder, loras=[entries[0], entries[1] | {"semantics": "comfyui"}])
    b.recipe(folder, loras=entries)
    (said,) = told(look(folder), "weights.semantics")
    assert (said.subject, said.measured) == ("other.safetensors", "semantics: comfyui")


def test_another_way_to_compose_is_named(folder: Path) -> None:
    b.sd1_lora(folder / "lora.safetensors", rank=6, size=0.1)
    b.sd1_lora(folder / "dora.safetensors", seed=9, rank=6, size=0.1, dora="row")
    loras = ["lora.safetensors", "dora.safetensors"]
    relabelled(folder, loras=loras, compose="sequential")
    b.recipe(folder, loras=loras)
    said = told(look(folder), "weights.semantics")
    assert {(each.subject, each.measured, each.limit) for each in said} == {
        (name, "compose: sequential", "sum") for name in loras
    }


def test_nothing_is_said_of_settings_that_explain_nothing(folder: Path) -> None:
    b.sd1_lora(folder / "lora.safetensors", rank=6, size=0.1, dora="row")
    relabelled(folder, loras=[{"path": "lora.safetensors", "strength": 0.6}])
    b.recipe(folder, loras=[{"path": "lora.safetensors", "strength": 0.5}])
    verification = look(folder)
    assert not told(verification, "weights.semantics")
    assert told(verification, "weights.strength")


# -- what lies beside a LoRA ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["changed", "went", "came"])
def test_a_configuration_of_a_lora_is_the_one_of_the_bake(how: str, stage: str, tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    said = tmp_path / "lora" / "adapter_config.json"
    text = said.read_text()
    if how == "came":
        said.unlink()
    b.run(b.recipe(tmp_path, base="base", loras=["lora/adapter_model.safetensors"], output={"path": "out"}))
    changed = json.dumps({**json.loads(text), "lora_alpha": 64})
    said.unlink(missing_ok=True) if how == "went" else said.write_text(changed if how == "changed" else text)
    notes = [each.note for each in told(look(tmp_path, stage), f"{stage}.input") if each.status is Status.FAIL]
    assert notes == [f"adapter_config.json {how} after the bake: it says how the LoRA is applied"]
