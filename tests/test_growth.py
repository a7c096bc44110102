"""Weights that a LoRA widens: Flux's control LoRAs, and ComfyUI's `reshape_weight`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabake import load_recipe, plan
from lorabake.errors import MatchError
from lorabake.verification import VerifyOptions, verify
from tests import builders as b

W = 8
BFL = {
    "double_blocks.0.img_attn.qkv.weight": (3 * W, W),
    "double_blocks.0.img_attn.qkv.bias": (3 * W,),
    "double_blocks.0.img_attn.norm.key_norm.scale": (4,),
    "double_blocks.0.img_mod.lin.weight": (6 * W, W),
    "single_blocks.0.linear1.weight": (7 * W, W),
    "img_in.weight": (W, 4),
    "img_in.bias": (W,),
    "vector_in.in_layer.weight": (W, W),
}
DIFFUSERS = {
    "transformer_blocks.0.attn.to_q.weight": (W, W),
    "transformer_blocks.0.attn.to_k.weight": (W, W),
    "transformer_blocks.0.attn.to_v.weight": (W, W),
    "transformer_blocks.0.attn.to_q.bias": (W,),
    "transformer_blocks.0.attn.to_k.bias": (W,),
    "transformer_blocks.0.attn.to_v.bias": (W,),
    "transformer_blocks.0.attn.norm_k.weight": (4,),
    "transformer_blocks.0.attn.add_q_proj.weight": (W, W),
    "transformer_blocks.0.norm1_context.linear.weight": (6 * W, W),
    "single_transformer_blocks.0.attn.to_q.weight": (W, W),
    "single_transformer_blocks.0.attn.to_k.weight": (W, W),
    "single_transformer_blocks.0.attn.to_v.weight": (W, W),
    "single_transformer_blocks.0.proj_mlp.weight": (4 * W, W),
    "x_embedder.weight": (W, 4),
    "x_embedder.bias": (W,),
    "time_text_embed.text_embedder.linear_1.weight": (W, W),
}
values = b.Values(3)
CONTROL = {
    "img_in.lora_A.weight": values(2, 10),
    "img_in.lora_B.weight": values(W, 2),
    "img_in.lora_B.bias": values(W),
    "double_blocks.0.img_attn.qkv.lora_A.weight": values(2, W),
    "double_blocks.0.img_attn.qkv.lora_B.weight": values(3 * W, 2),
    "double_blocks.0.img_attn.qkv.lora_B.bias": values(3 * W),
    "double_blocks.0.img_attn.norm.key_norm.scale": values(4),
}


def base(shapes: dict[str, tuple[int, ...]]) -> b.Tensors:
    values = b.Values(1)
    return {key: values(*shape, dtype=torch.bfloat16) for key, shape in shapes.items()}


def assert_true(recipe: Path) -> None:
    found = verify(load_recipe(recipe), options=VerifyOptions(stages=("structure", "weights")))
    assert found.is_true, [each for each in found.findings if each.status == "fail"]


def near(found: torch.Tensor, exact: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-30)


@pytest.mark.parametrize(
    ("strength", "semantics"), [(1, None), (0.5, None), (0.5, "comfyui"), (0.5, "forge"), (-1, "comfyui")]
)
@pytest.mark.parametrize("layout", ["bfl", "diffusers"])
def test_control_loras_of_flux(layout: str, strength: float, semantics: str | None, tmp_path: Path) -> None:
    """ComfyUI and Forge replace the norms at any strength."""
    before = base(BFL if layout == "bfl" else DIFFUSERS)
    b.save(tmp_path / "base.safetensors", before)
    save_file(CONTROL, tmp_path / "lora.safetensors")
    entry: dict[str, object] = {"path": "lora.safetensors", "strength": strength}
    recipe = b.recipe(tmp_path, loras=[entry | ({"semantics": semantics} if semantics else {})])
    b.run(recipe)
    after = load_file(tmp_path / "out.safetensors")
    first = "img_in" if layout == "bfl" else "x_embedder"
    wide = torch.zeros(W, 10, dtype=torch.float64)
    wide[:, :4] = before[f"{first}.weight"].double()
    lora = {key: tensor.double() for key, tensor in CONTROL.items()}
    near(after[f"{first}.weight"], wide + strength * lora["img_in.lora_B.weight"] @ lora["img_in.lora_A.weight"])
    near(after[f"{first}.bias"], before[f"{first}.bias"].double() + strength * lora["img_in.lora_B.bias"])
    qkv = "double_blocks.0.img_attn.qkv"
    delta = strength * lora[f"{qkv}.lora_B.weight"] @ lora[f"{qkv}.lora_A.weight"]
    names = [qkv] if layout == "bfl" else [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    for leaf, change in (("weight", delta), ("bias", strength * lora[f"{qkv}.lora_B.bias"])):
        old = torch.cat([before[f"{name}.{leaf}"] for name in names]).double()
        near(torch.cat([after[f"{name}.{leaf}"] for name in names]), old + change)
    scale = "double_blocks.0.img_attn.norm.key_norm.scale"
    norm = scale if layout == "bfl" else "transformer_blocks.0.attn.norm_k.weight"
    share = 1 if semantics else strength
    near(after[norm], before[norm].double() * (1 - share) + share * lora[scale])
    assert "grows from 8 × 4 to 8 × 10" in plan(load_recipe(recipe)).notes[0]
    assert_true(recipe)


def test_a_folder_says_how_wide_its_first_layer_is(tmp_path: Path) -> None:
    network = tmp_path / "base" / "transformer"
    network.mkdir(parents=True)
    b.save(network / "diffusion_pytorch_model.safetensors", base(DIFFUSERS))
    (network / "config.json").write_text(json.dumps({"in_channels": 4, "out_channels": None, "num_layers": 1}))
    (tmp_path / "base" / "model_index.json").write_text('{"transformer": ["diffusers", "FluxTransformer2DModel"]}')
    save_file(CONTROL, tmp_path / "lora.safetensors")
    recipe = b.recipe(tmp_path, base="base", output={"path": "out"})
    b.run(recipe)
    said = json.loads((tmp_path / "out/transformer/config.json").read_text())
    assert said == {"in_channels": 10, "out_channels": 4, "num_layers": 1}
    assert_true(recipe)


def grown(folder: Path, shape: tuple[int, ...], **fields: object) -> Path:
    b.save(folder / "base.safetensors", {"fc.weight": b.Values(1)(6, 4), "other.weight": b.Values(2)(6, 4)})
    slots = {"diffusion_model.fc.lora_up.weight": b.Values(3)(shape[0], 2)}
    slots |= {"diffusion_model.fc.lora_down.weight": b.Values(4)(2, shape[1])}
    slots |= {"diffusion_model.fc.reshape_weight": torch.tensor(shape)}
    save_file(slots, folder / "lora.safetensors")
    return b.recipe(folder, **fields)


@pytest.mark.parametrize("shape", [(6, 9), (8, 4), (6, 4)])
def test_reshape_weight_of_comfyui(shape: tuple[int, int], tmp_path: Path) -> None:
    recipe = grown(tmp_path, shape, output={"dtype": "float32"})
    b.run(recipe)
    before, after = load_file(tmp_path / "base.safetensors"), load_file(tmp_path / "out.safetensors")
    exact = torch.zeros(shape, dtype=torch.float64)
    exact[:6, :4] = before["fc.weight"].double()
    lora = load_file(tmp_path / "lora.safetensors")
    up, down = (lora[f"diffusion_model.fc.lora_{name}.weight"].double() for name in ("up", "down"))
    torch.testing.assert_close(after["fc.weight"].double(), exact + up @ down, rtol=1e-6, atol=1e-6)
    assert torch.equal(before["other.weight"], after["other.weight"])
    assert_true(recipe)


@pytest.mark.parametrize("said", [{"strength": 0}, {"blocks": {"fc": 0}}], ids=str)
def test_nothing_grows_at_strength_0(said: dict[str, object], tmp_path: Path) -> None:
    recipe = grown(tmp_path, (6, 9), loras=[{"path": "lora.safetensors", **said}])
    b.run(recipe)
    assert b.tensor_bytes(tmp_path / "base.safetensors") == b.tensor_bytes(tmp_path / "out.safetensors")


@pytest.mark.parametrize("shape", [(6, 3), (5, 9)])
def test_nothing_shrinks(shape: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(MatchError, match=r"would make fc.weight grow from \[6, 4\] \(F32\) to"):
        b.run(grown(tmp_path, shape))
    assert not (tmp_path / "out.safetensors").exists()
