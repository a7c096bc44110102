"""Changes of what is no module's weight: by a parameter's full name, as ComfyUI and LightX2V write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.names import pattern_of
from lorabake.matching.names import BaseNames
from lorabake.recipe import load_recipe
from lorabake.sources.family import identify
from lorabake.verification import VerifyOptions, verify
from tests import builders as b
from tests.tables import infos, load_table
from tests.test_matching import matched, source

TABLES = [
    "arenasys_clip_xl_sd",
    "full_flux1_dev_bfl_780",
    "diffusers_wan_vace",
    "diffusers_wan_animate",
    "diffusers_ltx2",
    "diffusers_mochi",
    "diffusers_pixart_alpha_1024",
    "diffusers_krea2",
    "diffusers_auraflow",
    "diffusers_bria_fibo2",
    "stripped_clip_vit_large_patch14_model",
]


@pytest.mark.parametrize("table", TABLES)
def test_every_parameter_takes_a_difference_under_its_full_name(table: str) -> None:
    tensors = load_table(table)
    base = BaseNames(KeyMap.expand(identify(tensors), tensors))
    chosen = {pattern_of(key): key for key, info in tensors.items() if info.dtype in ("F32", "F16", "BF16")}
    due = [key for key in chosen.values() if key in base.key_map.owner]
    assert any(not key.endswith((".weight", ".bias")) for key in due) or table.startswith("stripped")
    for end in (".diff", ".set_weight"):
        patches, ledger = matched(base, source(infos({key + end: tensors[key].shape for key in due})))
        assert {patch.view.keys[0]: patch.view.shape for patch in patches if not patch.view.transpose} == {
            key: tensors[key].shape for key in due if not key.endswith("text_projection")
        }
        assert ledger.applied == len(due)


H = 4


def wan() -> b.Tensors:
    values = b.Values(3)
    made = {"patch_embedding.weight": values(H, 2, 1, 2, 2), "head.modulation": values(1, 2, H)}
    for name in ("self_attn.q", "self_attn.k", "ffn.0"):
        made |= {f"blocks.0.{name}.weight": values(H, H), f"blocks.0.{name}.bias": values(H)}
    made["blocks.0.modulation"] = values(1, 6, H)
    return made


def wan_of_diffusers() -> b.Tensors:
    names = {
        "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
        "blocks.0.self_attn.k": "blocks.0.attn1.to_k",
        "blocks.0.ffn.0": "blocks.0.ffn.net.0.proj",
        "blocks.0.modulation": "blocks.0.scale_shift_table",
        "head.modulation": "scale_shift_table",
    }
    made = {"condition_embedder.time_proj.weight": torch.ones(6 * H, H)}
    for key, tensor in wan().items():
        old = next((old for old in names if key.startswith(old)), None)
        made[key.replace(old, names[old]) if old else key] = tensor
    return made


# One LoRA file each: key -> the tensor that it changes in Wan's names, and in diffusers'.
FILES: list[dict[str, tuple[str, str]]] = [
    {
        "diffusion_model.blocks.0.diff_m": ("blocks.0.modulation", "blocks.0.scale_shift_table"),
        "diffusion_model.head.diff_m": ("head.modulation", "scale_shift_table"),
        "diffusion_model.blocks.0.self_attn.q.bias.diff": ("blocks.0.self_attn.q.bias", "blocks.0.attn1.to_q.bias"),
        "diffusion_model.blocks.0.ffn.0.weight.diff": ("blocks.0.ffn.0.weight", "blocks.0.ffn.net.0.proj.weight"),
    },
    {
        "transformer.blocks.0.scale_shift_table.diff": ("blocks.0.modulation", "blocks.0.scale_shift_table"),
        "diffusion_model.head.modulation.set_weight": ("head.modulation", "scale_shift_table"),
        "lora_unet_blocks_0_attn1_to_q.bias.set_weight": ("blocks.0.self_attn.q.bias", "blocks.0.attn1.to_q.bias"),
    },
    {"lora_unet_blocks_0_modulation.diff": ("blocks.0.modulation", "blocks.0.scale_shift_table")},
]


@pytest.mark.parametrize("layout", [0, 1], ids=["wan", "diffusers"])
def test_a_parameter_is_changed_by_its_full_name_in_each_layout(layout: int, tmp_path: Path) -> None:
    base = (wan(), wan_of_diffusers())[layout]
    b.save(tmp_path / "base.safetensors", base)
    wanted = {key: tensor.double() for key, tensor in base.items()}
    for number, file in enumerate(FILES):
        values = b.Values(8 + number)
        tensors = {key: values(*base[places[layout]].shape) for key, places in file.items()}
        b.save(tmp_path / f"{number}.safetensors", tensors)
        strength = 0.5 + number
        for key, tensor in tensors.items():
            place = file[key][layout]
            before = wanted[place] if key.endswith("set_weight") else 0
            wanted[place] = wanted[place] + strength * (tensor.double() - before)
    loras = [{"path": f"{number}.safetensors", "strength": 0.5 + number} for number in range(len(FILES))]
    after = load_file(b.bake_sd1(tmp_path, loras=loras, compose="sequential"))
    assert after.keys() == base.keys()
    for key, tensor in wanted.items():
        assert torch.allclose(after[key].double(), tensor, atol=1e-5), key
    options = VerifyOptions(stages=("structure", "weights"))
    assert verify(load_recipe(tmp_path / "recipe.yaml"), options=options).is_true


def test_a_parameter_may_be_trained_whole_by_its_full_name(tmp_path: Path) -> None:
    """PEFT's `modules_to_save` holds what a module has: also what is no weight."""
    values = b.Values(4)
    base = {"model.fc.weight": values(4, 4), "mixer.A_log": values(4), "mixer.proj.weight": values(4, 4)}
    b.save(tmp_path / "base.safetensors", base)
    trained = {"base_model.model.mixer.A_log": values(4), "base_model.model.mixer.proj.weight": values(4, 4)}
    folder = b.peft(tmp_path / "lora", {"model.fc": b.lora((4, 4))}, modules_to_save=["mixer"])
    lora = load_file(folder / "adapter_model.safetensors")
    b.save(folder / "adapter_model.safetensors", lora | trained)
    after = load_file(b.bake_sd1(tmp_path, loras=["lora"]))
    for key, tensor in trained.items():
        assert torch.equal(after[key.removeprefix("base_model.model.")], tensor)
    assert verify(
        load_recipe(tmp_path / "recipe.yaml"), options=VerifyOptions(stages=("structure", "weights"))
    ).is_true
