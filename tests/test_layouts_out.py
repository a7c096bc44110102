"""Layouts out: a single file becomes a diffusers folder and back, and no value changes on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake import load_recipe, plan
from lorabake.errors import LorabakeError
from lorabake.tensors.checkpoint import open_checkpoint
from tests import builders as b

GONE = {
    "sd1": {
        "alphas_cumprod",
        "betas",
        "v_pred",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    },
    "sdxl": {"conditioner.embedders.1.model.logit_scale"},
}


def to(folder: Path, base: str, path: str, layout: object, **fields: object) -> Path:
    """Bake a base into another layout."""
    output = {"path": path, "layout": layout, **fields.pop("output", {})}  # type: ignore[dict-item]
    return b.run(b.recipe(folder, base=base, **{"loras": [], **fields, "output": output})).path


def values(path: Path) -> b.Tensors:
    """Read all tensors of a checkpoint, by their keys in it."""
    checkpoint = open_checkpoint(path)
    found: b.Tensors = {}
    for part in checkpoint.parts:
        for header in part.files:
            loaded = load_file(header.path)
            found |= {info.key: loaded[info.name] for info in header.tensors.values()}
    return found


def assert_equal(one: b.Tensors, other: b.Tensors) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[key].dtype, other[key].shape), key
        assert torch.equal(tensor.view(torch.uint8), other[key].view(torch.uint8)), key


@pytest.mark.parametrize("family", GONE)
def test_a_single_file_comes_back_byte_for_byte(tmp_path: Path, family: str) -> None:
    base = getattr(b, family)()
    b.save(tmp_path / "base.safetensors", base)
    folder = to(tmp_path, "base.safetensors", "folder", "diffusers")
    assert {path.name for path in folder.iterdir() if path.is_dir()} >= {"unet", "text_encoder", "vae"}
    back = to(tmp_path, "folder", "back.safetensors", "single")
    kept = {key: tensor for key, tensor in base.items() if key not in GONE[family]}
    assert len(base) - len(kept) == len(GONE[family])
    assert_equal(values(back), kept)


def test_a_folder_comes_back_byte_for_byte(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    to(tmp_path, "base", "single.safetensors", "single")
    assert_equal(values(to(tmp_path, "single.safetensors", "back", "diffusers")), values(tmp_path / "base"))


def test_loras_give_the_values_of_the_baked_file_in_the_other_layout(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    at_once = to(tmp_path, "base.safetensors", "at_once", "diffusers", loras=["lora.safetensors"])
    b.run(
        b.recipe(tmp_path, base="base.safetensors", loras=["lora.safetensors"], output={"path": "baked.safetensors"})
    )
    later = to(tmp_path, "baked.safetensors", "later", "diffusers")
    assert_equal(values(at_once), values(later))
    assert any(
        not torch.equal(one, values(later)[key])
        for key, one in values(to(tmp_path, "base.safetensors", "plain", "diffusers")).items()
    )


def test_notes_name_what_is_left_out(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1(ema=True))
    path = b.recipe(tmp_path, base="base.safetensors", loras=[], output={"path": "out", "layout": "diffusers"})
    notes = "\n".join(plan(load_recipe(path)).notes)
    for named in ("alphas_cumprod", "v_pred", "position_ids", "model_ema"):
        assert named in notes


def test_a_tensor_of_unknown_meaning_is_refused(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", {**b.sd1(), "depth_model.conv.weight": torch.zeros(2, 2)})
    path = b.recipe(tmp_path, base="base.safetensors", loras=[], output={"path": "out", "layout": "diffusers"})
    with pytest.raises(LorabakeError, match=r"belong to no component.*depth_model\.conv\.weight"):
        plan(load_recipe(path))
