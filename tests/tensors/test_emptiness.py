"""Files that were saved without their content: they are named as that, whatever of them is empty."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorabake import load_recipe, plan
from lorabake.errors import FileError, LorabakeError, MatchError
from tests import builders as b
from tests.documents import inspect
from tests.test_kinds import LINEAR, cases, tensors_of

EMPTY = "saved under DeepSpeed ZeRO-3 or FSDP without gathering the weights"
NOTHING = torch.empty(0)


def refused(recipe: Path, words: str) -> str:
    with pytest.raises(LorabakeError, match=EMPTY) as told:
        plan(load_recipe(recipe))
    assert words in str(told.value)
    assert "stage3_gather_16bit_weights_on_model_save" in str(told.value)
    assert "zero_to_fp32.py" in str(told.value)
    return str(told.value)


def base(folder: Path) -> None:
    b.save(folder / "base.safetensors", {"layer.weight": b.Values(1)(*LINEAR), "layer.bias": b.Values(2)(LINEAR[0])})


@pytest.mark.parametrize("form", ["folder", "safetensors", "bin", "pt"])
def test_a_lora_without_content_is_named_as_that(form: str, tmp_path: Path) -> None:
    base(tmp_path)
    tensors = {f"base_model.model.layer.lora_{side}.weight": NOTHING.clone() for side in "AB"}
    path = tmp_path / f"lora.{form}"
    if form == "folder":
        path = tmp_path / "lora"
        b.peft(path, {"layer": {"up": NOTHING, "down": NOTHING.clone()}})
    elif form == "safetensors":
        b.save(path, tensors)
    else:
        torch.save(tensors, path)
    refused(b.recipe(tmp_path, loras=[path.name]), f"LoRA {path.name!r}: all of its 2 tensors are empty")
    assert f"all of its 2 tensors are empty: it was {EMPTY}" in inspect(path)["problems"]


@pytest.mark.parametrize("name", cases(LINEAR))
def test_one_empty_tensor_of_any_kind_is_enough(name: str, tmp_path: Path) -> None:
    """Small parameters are saved whole, since they are not split."""
    base(tmp_path)
    case = cases(LINEAR)[name]
    whole = {f"{case.prefix}layer{suffix}": tensor for suffix, (_, tensor) in tensors_of(case).items()}
    for key, tensor in whole.items():
        if tensor.is_floating_point() and tensor.ndim and ".bias_values" not in key:
            rest = {other: whole[other] for other in whole if other != key}
            b.save(tmp_path / "lora.safetensors", {**rest, key: NOTHING})
            count = f"1 of its {len(whole)} tensors are empty ({key!r})" if rest else "all of its 1 tensors"
            refused(b.recipe(tmp_path), count)


def test_sparse_values_may_be_none(tmp_path: Path) -> None:
    base(tmp_path)
    tensors = {f"lora_unet_layer.{key}": tensor for key, tensor in {
        "lora_up.weight": torch.ones(16, 2), "lora_down.weight": torch.ones(2, 8), "bias_values": NOTHING,
        "bias_indices": torch.empty(2, 0, dtype=torch.int64), "bias_size": torch.tensor(LINEAR),
    }.items()}  # fmt: skip
    b.save(tmp_path / "lora.safetensors", tensors)
    b.run(b.recipe(tmp_path))


@pytest.mark.parametrize("what", ["embedding", "modules_to_save", "learned embedding"])
def test_what_stands_beside_the_layers_counts(what: str, tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    q = b.lora((8, 8))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    beside = {
        "embedding": "base_model.model.model.embed_tokens.lora_embedding_A",
        "modules_to_save": "base_model.model.lm_head.weight",
        "learned embedding": "bundle_emb.token.string_to_param.*",
    }
    tensors = {f"{name}.lora_A.weight": q["down"], f"{name}.lora_B.weight": q["up"], beside[what]: NOTHING}
    if what == "embedding":
        tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = NOTHING.clone()
    b.peft(tmp_path / "lora", {}, modules_to_save=["lm_head"])
    b.save(tmp_path / "lora" / "adapter_model.safetensors", tensors)
    refused(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"}), "tensors are empty")


@pytest.mark.parametrize("keeps", [(), ("norm",), ("norm", "inv_freq")], ids=str)
@pytest.mark.parametrize("with_lora", [True, False])
def test_a_base_without_content_is_named_as_that(keeps: tuple[str, ...], with_lora: bool, tmp_path: Path) -> None:
    tensors = b.llama(tmp_path / "base") | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    kept = {key: tensor if any(word in key for word in keeps) else NOTHING.clone() for key, tensor in tensors.items()}
    b.save(tmp_path / "base" / "model.safetensors", kept, metadata={"format": "pt"})
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    output = {"path": "out", "dtype": "float16"}
    recipe = b.recipe(tmp_path, base="base", loras=["lora"] if with_lora else [], output=output)
    refused(recipe, "of its " if keeps else f"all of its {len(tensors)} tensors are empty")
    assert EMPTY in inspect(tmp_path / "base")["problems"]


def test_empty_tensors_beside_the_weights_are_nobodys_fault(tmp_path: Path) -> None:
    """Quantised layers have such: an order of columns that is none, a bias that is none."""
    tensors = {
        "layer.weight": b.Values(1)(*LINEAR),
        "layer.g_idx": torch.empty(0, dtype=torch.int32),
        "b.bias": NOTHING,
    }
    b.save(tmp_path / "base.safetensors", tensors)
    b.kohya(tmp_path / "lora.safetensors", {"lora_unet_layer": b.lora(LINEAR)})
    b.run(b.recipe(tmp_path))
    assert not inspect(tmp_path / "base.safetensors")["problems"]


def test_other_misfits_are_not_called_empty(tmp_path: Path) -> None:
    base(tmp_path)
    b.kohya(tmp_path / "lora.safetensors", {"lora_unet_layer": b.lora((9, 7))})
    with pytest.raises((MatchError, FileError)) as told:
        plan(load_recipe(b.recipe(tmp_path)))
    assert "empty" not in str(told.value)
