"""Configurations that say the same anew are no difference, those of another model are; the rest may warn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabake import load_recipe
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Finding, Status, Verification
from tests import builders as b
from tests.documents import checked

BOTH = VerifyOptions(stages=("structure", "weights"))
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "_name_or_path": "meta/llama",
    "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "pad_token_id": None,
    "text_config": {"dtype": "bfloat16", "layers": 3},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hold a folder of transformers, a LoRA, a recipe and its bake."""
    b.llama(tmp_path / "base", shards=2)
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "base" / "NOTICE.txt").write_text("A model.")
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    b.run(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"}))
    return tmp_path


def by_another_tool(folder: Path) -> None:
    """Save the weights anew, as another tool does: without a recipe in their headers."""
    for file in (folder / "out").glob("*.safetensors"):
        b.save(file, load_file(file), metadata={"format": "pt"})


def look(folder: Path) -> Verification:
    return checked(verify(load_recipe(folder / "recipe.yaml"), options=BOTH))


def told(verification: Verification) -> dict[Status, Finding]:
    return {each.status: each for each in verification.findings if each.check == "structure.side_files"}


def rewrite(path: Path, change: Mapping[str, Any], drop: tuple[str, ...] = ()) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (config | change).items() if key not in drop}, indent=1))


SILENT: dict[str, dict[str, Any]] = {
    "_name_or_path": {"_name_or_path": "/tmp/merged"},
    "transformers_version": {"transformers_version": "5.0.0"},
    "_diffusers_version": {"_diffusers_version": "0.40"},
    "_commit_hash": {"_commit_hash": "abc"},
    "torch_dtype": {"torch_dtype": None, "dtype": "bfloat16"},
    "_attn_implementation_autoset": {"_attn_implementation_autoset": True},
    "its layout": {},
    "a null": {"sep_token_id": None},
}


@pytest.mark.parametrize("is_own", [True, False], ids=["lorabake", "another tool"])
@pytest.mark.parametrize("name", SILENT)
def test_fields_without_a_say_are_no_difference(folder: Path, name: str, is_own: bool) -> None:
    rewrite(folder / "out" / "config.json", SILENT[name])
    if not is_own:
        by_another_tool(folder)
    verification = look(folder)
    assert verification.is_true, verification.findings
    found = told(verification)
    assert found.keys() == {Status.PASS}
    named = (
        name
        if name.startswith("_") or name in ("transformers_version", "its layout", "torch_dtype")
        else "config.json"
    )
    assert named in found[Status.PASS].note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 16}, "hidden_size is 16, not 8"),
        ({"torch_dtype": "float32"}, 'dtype is "float32"'),
        ({"architectures": ["MistralForCausalLM"]}, "architectures"),
        ({"text_config": {"dtype": "bfloat16", "layers": 4}}, "text_config.layers is 4, not 3"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope_scaling.factor is 8.0, not 2.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_value_is_another_model(
    folder: Path, change: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorabake.verification.structure.side_files.find_spec", lambda name: None)
    rewrite(folder / "out" / "config.json", change)
    by_another_tool(folder)
    verification = look(folder)
    assert verification.exit_code == 1
    note = told(verification)[Status.FAIL].note
    assert "config.json differs from the base's" in note
    assert words in note


def test_a_field_of_one_side_may_be_a_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabake.verification.structure.side_files.find_spec", lambda name: None)
    rewrite(folder / "out" / "config.json", {"sliding_window": 4}, drop=("rope_scaling",))
    assert told(look(folder))[Status.FAIL].note.startswith("config.json differs")  # lorabake leaves nothing out
    by_another_tool(folder)
    verification = look(folder)
    assert verification.is_true
    warned = told(verification)[Status.WARN].note
    assert "rope_scaling.factor is not there" in warned
    assert "sliding_window is 4, of which the base says nothing" in warned


IDLE = {"use_cache": False, "gradient_checkpointing": True, "unsloth_version": "1", "attention_dropout": 0.5}


@pytest.mark.parametrize("knows", [True, False], ids=["transformers", "alone"])
def test_how_a_model_is_run_or_trained_is_no_difference(
    folder: Path, knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not knows:
        monkeypatch.setattr("lorabake.verification.structure.side_files.find_spec", lambda name: None)
    rewrite(folder / "out" / "config.json", IDLE)
    by_another_tool(folder)
    assert told(look(folder)).keys() == {Status.PASS}


@pytest.mark.parametrize("knows", [True, False], ids=["transformers", "alone"])
def test_how_texts_begin_and_end_is_warned_of(folder: Path, knows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not knows:
        monkeypatch.setattr("lorabake.verification.structure.side_files.find_spec", lambda name: None)
    rewrite(folder / "out" / "config.json", {"pad_token_id": 3})
    by_another_tool(folder)
    verification = look(folder)
    assert verification.is_true
    assert "pad_token_id is 3" in told(verification)[Status.WARN].note


def test_a_precision_that_both_say_is_told_for_both(folder: Path) -> None:
    if find_spec("transformers") is None:
        pytest.skip("no transformers")
    rewrite(folder / "out" / "config.json", {"torch_dtype": "float16"})
    by_another_tool(folder)
    assert 'dtype is "float16", not "bfloat16"' in told(look(folder))[Status.FAIL].note


@pytest.mark.parametrize("is_own", [True, False], ids=["lorabake", "another tool"])
@pytest.mark.parametrize("name", ["NOTICE.txt", "tokenizer.json"])
@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("new")], ids=["missing", "changed"])
def test_other_files_warn_where_another_tool_wrote_them(
    folder: Path, change: Callable[[Path], object], name: str, is_own: bool
) -> None:
    change(folder / "out" / name)
    if not is_own:
        by_another_tool(folder)
    verification = look(folder)
    assert verification.is_true is not is_own
    assert name in told(verification)[Status.FAIL if is_own else Status.WARN].note


def test_a_configuration_that_is_missing_or_no_json_is_a_difference(folder: Path) -> None:
    by_another_tool(folder)
    (folder / "out" / "config.json").write_text("{")
    assert told(look(folder))[Status.FAIL].note.startswith("config.json differs")
    (folder / "out" / "config.json").unlink()
    assert told(look(folder))[Status.FAIL].note.startswith("config.json is missing")


def test_a_planned_configuration_is_the_measure(tmp_path: Path) -> None:
    """The recipe casts, so that the configuration's precision changes with the weights."""
    b.llama(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    fields = {"base": "base", "loras": ["lora"], "output": {"path": "out", "dtype": "float32"}}
    b.run(b.recipe(tmp_path, **fields))
    by_another_tool(tmp_path)
    assert told(look(tmp_path)).keys() == {Status.PASS}
    rewrite(tmp_path / "out" / "config.json", {"torch_dtype": "bfloat16"})
    assert "dtype" in told(look(tmp_path))[Status.FAIL].note


# -- what libraries really write -----------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


def merged_folder(folder: Path, save: Callable[[Path], object], **recipe: Any) -> Verification:
    """Let a library save the merged model, and verify it against the recipe."""
    path = b.recipe(folder, base="base", output={"path": "out"}, **recipe)
    save(folder / "out")
    return look(path.parent)


@pytest.mark.oracle
@pytest.mark.skipif(any(find_spec(name) is None for name in ("transformers", "peft")), reason="no transformers")
@pytest.mark.filterwarnings("ignore")
def test_what_transformers_saves_is_the_same_model(tmp_path: Path) -> None:
    import peft
    import transformers

    shutil.copytree(ROOT / "recipes" / "stories260K", tmp_path / "base")
    # As an older version wrote it: names and defaults have changed since.
    old = {"torch_dtype": "float32", "rope_theta": 10000.0, "_name_or_path": "x", "transformers_version": "4.40.0"}
    drop = ("dtype", "rope_parameters", "head_dim", "mlp_bias", "pretraining_tp", "initializer_range")
    rewrite(tmp_path / "base" / "config.json", old, drop)
    adapter = str(ROOT / "recipes" / "stories260K_dragon")

    def save(out: Path, **change: Any) -> None:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", local_files_only=True)
        merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
        for name, value in change.items():
            setattr(merged.config, name, value)
        merged.save_pretrained(out)
        transformers.AutoTokenizer.from_pretrained(tmp_path / "base", local_files_only=True).save_pretrained(out)

    verification = merged_folder(tmp_path, save, loras=[adapter])
    assert verification.is_true, [each for each in verification.findings if each.status is Status.FAIL]
    found = told(verification)
    assert (
        "config.json: _name_or_path, dtype, initializer_range, torch_dtype, transformers_version"
        in found[Status.PASS].note
    )
    assert "what transformers reads alike" in found[Status.PASS].note
    assert "tok512_vocab.json is missing" in found[Status.WARN].note
    save(tmp_path / "out", rms_norm_eps=1e-3)
    assert "rms_norm_eps is 0.001, not 1e-05" in told(look(tmp_path))[Status.FAIL].note


@pytest.mark.oracle
@pytest.mark.skipif(any(find_spec(name) is None for name in ("diffusers", "peft")), reason="no diffusers")
@pytest.mark.filterwarnings("ignore")
def test_what_diffusers_saves_is_the_same_model(tmp_path: Path) -> None:
    import diffusers
    import peft

    torch.manual_seed(0)
    small = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 8, "sample_size": 64}
    blocks = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
    }
    unet = diffusers.UNet2DConditionModel(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **small, **blocks)
    unet.save_pretrained(tmp_path / "base")
    rewrite(tmp_path / "base" / "config.json", {"_diffusers_version": "0.21.0"}, drop=("attention_type", "dropout"))
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    b.save(tmp_path / "lora.safetensors", peft.get_peft_model_state_dict(unet))

    def save(out: Path, **change: Any) -> None:
        loaded = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "base", local_files_only=True)
        loaded.load_lora_adapter(str(tmp_path / "lora.safetensors"), prefix=None, adapter_name="one")
        loaded.fuse_lora()
        loaded.unload_lora()
        loaded.register_to_config(**change)
        loaded.save_pretrained(out)

    verification = merged_folder(tmp_path, save)
    assert verification.is_true, [each for each in verification.findings if each.status is Status.FAIL]
    assert 'attention_type is "default", of which the base says nothing' in told(verification)[Status.WARN].note
    rewrite(tmp_path / "base" / "config.json", {"attention_type": "default", "dropout": 0.0})
    found = told(look(tmp_path))
    assert found.keys() == {Status.PASS}
    assert "config.json: _diffusers_version, _name_or_path" in found[Status.PASS].note
    save(tmp_path / "out", flip_sin_to_cos=False)
    assert "flip_sin_to_cos is false, not true" in told(look(tmp_path))[Status.FAIL].note
