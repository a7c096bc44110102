"""MXFP8: e4m3 and a power of two for each 32 values, with exponents in order or in cuBLAS' tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabake import load_recipe
from lorabake.errors import MatchError
from lorabake.verification import VerifyOptions, verify
from tests import builders as b

OUT, IN = 160, 192
FC = "lora_unet_fc"
FP8 = torch.float8_e4m3fn
WEIGHTS = VerifyOptions(stages=("structure", "weights"))
SCHEME = {"weights": {"type": "float", "num_bits": 8, "group_size": 32, "scale_dtype": "torch.uint8"}}
WAYS: dict[str, dict[str, Any]] = {
    "transformers": {"quant_method": "mxfp8", "weight_block_size": [1, 32]},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "mxfp8-quantized",
        "config_groups": {"group_0": SCHEME},
    },
    "ModelOpt": {"quant_method": "modelopt", "quant_algo": "MXFP8"},
    "ComfyUI": {"format": "mxfp8", "group_size": 32, "orig_dtype": "torch.bfloat16", "orig_shape": [OUT, IN]},
}


def tiled(scale: torch.Tensor) -> torch.Tensor:
    """Order exponents as cuBLAS has them, one at a time."""
    rows, blocks = scale.shape
    across = -(-blocks // 4)
    tiles = torch.zeros(-(-rows // 128) * across * 512, dtype=scale.dtype)
    for row in range(rows):
        for block in range(blocks):
            tile = row // 128 * across + block // 4
            tiles[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4] = scale[row, block]
    return tiles.reshape(-1, across * 4)


def base(
    folder: Path,
    way: str,
    says: dict[str, Any] | None = None,
    kind: torch.dtype = torch.uint8,
    form: torch.dtype = FP8,
) -> torch.Tensor:
    """Write a base and a LoRA, and return the exact values after it is baked."""
    says = WAYS[way] if says is None else says
    codes = (b.Values(7)(OUT, IN) * 60).clamp(-440, 440).to(form)
    random = torch.Generator().manual_seed(1)
    exponents = torch.randint(110, 125, (OUT, IN // 32), generator=random).to(torch.uint8)
    stored = {"fc.weight": codes, "norm.weight": torch.ones(4).half()}
    config: dict[str, Any] = {"model_type": "x", "torch_dtype": "float16"}
    if way == "ComfyUI":
        stored["fc.weight_scale"] = tiled(exponents)
        stored["fc.comfy_quant"] = torch.frombuffer(bytearray(json.dumps(says).encode()), dtype=torch.uint8)
    else:
        stored["fc.weight_scale"] = exponents.view(kind)
        config["quantization_config"] = says
    b.save(folder / "base" / "model.safetensors", stored)
    (folder / "base" / "config.json").write_text(json.dumps(config))
    pair = {"up": b.Values(2)(OUT, 2) * 0.02, "down": b.Values(3)(2, IN)}
    b.kohya(folder / "lora.safetensors", {FC: pair})
    values = codes.double() * (2.0 ** (exponents.double() - 127)).repeat_interleave(32, 1)
    return values + pair["up"].double() @ pair["down"].double()


def baked(folder: Path, **output: Any) -> tuple[Path, b.Tensors]:
    recipe = b.recipe(folder, base="base", output={"path": "out", "allow_loss": True, **output})
    b.run(recipe)
    return recipe, load_file(folder / "out" / "model.safetensors")


def test_e5m2_under_the_same_name_is_float8_with_scales(tmp_path: Path) -> None:
    base(tmp_path, "transformers", form=torch.float8_e5m2)
    recipe, after = baked(tmp_path)
    assert after["fc.weight"].dtype == torch.float8_e5m2
    assert after["fc.weight_scale"].dtype == torch.uint8
    assert verify(load_recipe(recipe), options=WEIGHTS).is_true


@pytest.mark.parametrize("way", WAYS)
def test_it_is_baked_back_into_itself(way: str, tmp_path: Path) -> None:
    exact = base(tmp_path, way)
    before = load_file(tmp_path / "base" / "model.safetensors")
    recipe, after = baked(tmp_path)
    assert {key: (value.dtype, value.shape) for key, value in after.items()} == {
        key: (value.dtype, value.shape) for key, value in before.items()
    }
    largest = exact.abs().reshape(OUT, -1, 32).amax(-1)
    powers = 2.0 ** torch.ceil(torch.log2(largest / 448))
    due = (torch.log2(powers) + 127).to(torch.uint8)
    assert torch.equal(after["fc.weight_scale"], tiled(due) if way == "ComfyUI" else due)
    units = powers.repeat_interleave(32, 1)
    b.assert_rounded_once(after["fc.weight"], exact / units, terms=[exact.abs() / units * 4])
    assert verify(load_recipe(recipe), options=WEIGHTS).is_true


@pytest.mark.parametrize("way", WAYS)
def test_it_becomes_plain_where_a_dtype_is_asked_for(way: str, tmp_path: Path) -> None:
    exact = base(tmp_path, way)
    recipe, after = baked(tmp_path, dtype="float32")
    assert sorted(after) == ["fc.weight", "norm.weight"]
    b.assert_rounded_once(after["fc.weight"], exact, terms=[exact.abs() * 8])
    assert verify(load_recipe(recipe), options=WEIGHTS).is_true


def test_exponents_may_be_in_their_own_dtype(tmp_path: Path) -> None:
    base(tmp_path, "transformers", kind=torch.float8_e8m0fnu)
    recipe, after = baked(tmp_path)
    assert after["fc.weight_scale"].dtype == torch.float8_e8m0fnu
    assert verify(load_recipe(recipe), options=WEIGHTS).is_true


@pytest.mark.parametrize("way", ["transformers", "ComfyUI"])
@pytest.mark.parametrize("key", ["fc.weight", "fc.weight_scale"])
def test_verify_finds_a_change_to_each_part(way: str, key: str, tmp_path: Path) -> None:
    base(tmp_path, way)
    recipe, after = baked(tmp_path)
    changed = after[key].view(torch.uint8)
    changed[3, 2] ^= 8
    out = tmp_path / "out" / "model.safetensors"
    b.save(out, after, b.header(out)[1])
    assert not verify(load_recipe(recipe), options=WEIGHTS).is_true


@pytest.mark.parametrize(
    "says",
    [{"orig_shape": [OUT - 3, IN]}, {"group_size": 16}, {"format": "mxfp8_e5m2"}, {"convrot": True}],
    ids=str,
)
def test_another_note_of_comfyui_is_not_understood(says: dict[str, Any], tmp_path: Path) -> None:
    base(tmp_path, "ComfyUI", {**WAYS["ComfyUI"], **says})
    with pytest.raises(MatchError, match=r"fc\.weight, of which fc\.comfy_quant says {"):
        baked(tmp_path)
