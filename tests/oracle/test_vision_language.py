"""Vision-language models, stored by transformers under other names than in memory: PEFT's LoRA on either names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabake import VerifyOptions, load_recipe, verify
from lorabake.errors import MatchError
from tests import builders as b

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
TEXT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 40, "head_dim": 8,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
ROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
MODELS = ("Qwen2VL", "Qwen2_5_VL", "Gemma3", "Llava", "Mllama")


def config(name: str) -> Any:
    if name == "Qwen2VL":
        vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16, "mlp_ratio": 2}
        return transformers.Qwen2VLConfig(text_config={**TEXT, **ROPE}, vision_config=vision)
    if name == "Qwen2_5_VL":
        vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 16}
        return transformers.Qwen2_5_VLConfig(text_config={**TEXT, **ROPE}, vision_config=vision)
    if name == "Gemma3":
        return transformers.Gemma3Config(text_config=TEXT, vision_config=VISION)
    if name == "Mllama":
        vision = {**VISION, "num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 32, "max_num_tiles": 1}
        vision |= {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]}
        text_config = {**TEXT, "cross_attention_layers": [1], "rope_scaling": {"rope_type": "default"}}
        return transformers.MllamaConfig(
            text_config={**text_config, "pad_token_id": 0}, vision_config={**vision, "num_hidden_layers": 1}
        )
    text, vision = transformers.LlamaConfig(**TEXT), transformers.CLIPVisionConfig(**VISION)
    return transformers.LlavaConfig(text_config=text, vision_config=vision)


@pytest.mark.parametrize("name", MODELS)
def test_loras_in_either_naming_fit_what_transformers_stores(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cls = getattr(transformers, f"{name}ForConditionalGeneration")
    model = cls(config(name)).float()
    model.save_pretrained(tmp_path / "base")
    targets = ["q_proj", "down_proj", "qkv", "fc1"]
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "memory")
    assert len(load_file(tmp_path / "memory" / "adapter_model.safetensors")) >= 10
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    before = load_file(tmp_path / "base" / "model.safetensors")
    wanted = load_file(tmp_path / "merged" / "model.safetensors")
    changed = {key for key in wanted if not torch.equal(wanted[key], before[key])}
    assert any("layers" in key for key in changed)
    assert any("vis" in key for key in changed)
    stored(tmp_path)
    for adapter in ("memory", "stored"):
        recipe = b.recipe(tmp_path, base="base", loras=[adapter], output={"path": f"out_{adapter}"})
        b.run(recipe)
        after = load_file(tmp_path / f"out_{adapter}" / "model.safetensors")
        assert {key for key in after if not torch.equal(after[key], before[key])} == changed
        for key in changed:
            torch.testing.assert_close(after[key], wanted[key], rtol=1e-5, atol=1e-6)
        assert verify(load_recipe(recipe), options=VerifyOptions(stages=("structure", "weights"))).is_true


def stored(folder: Path) -> None:
    """Write the adapter once more, as transformers before 4.52 named the modules."""
    (folder / "stored").mkdir()
    config = (folder / "memory" / "adapter_config.json").read_text()
    (folder / "stored" / "adapter_config.json").write_text(config)
    keys = load_file(folder / "base" / "model.safetensors")
    is_llava = any(key.startswith("language_model.") for key in keys)
    pairs = [("model.language_model.", "language_model.model." if is_llava else "model.")]
    pairs += [
        (f"model.{part}.", f"{part}.") for part in ("visual", "vision_tower", "vision_model", "multi_modal_projector")
    ]
    found = {}
    for key, tensor in load_file(folder / "memory" / "adapter_model.safetensors").items():
        path = key.removeprefix("base_model.model.")
        new, old = next((new, old) for new, old in pairs if path.startswith(new))
        found[f"base_model.model.{old}{path.removeprefix(new)}"] = tensor
    save_file(found, folder / "stored" / "adapter_model.safetensors")


def test_a_language_models_lora_does_not_slip_onto_one_that_sees(tmp_path: Path) -> None:
    """Text alone has the names that Qwen-VL is stored under; where sizes differ it is told so."""
    torch.manual_seed(0)
    cls = transformers.Qwen2VLForConditionalGeneration
    cls(config("Qwen2VL")).save_pretrained(tmp_path / "base")
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 24)}
    lora |= {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.ones(24, 2)}
    save_file(lora, tmp_path / "lora.safetensors")
    with pytest.raises(MatchError, match="is for a language model"):
        b.run(b.recipe(tmp_path, base="base", output={"path": "out"}))
