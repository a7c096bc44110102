"""File formats: what each trainer calls a module of each family, and the rows of the base that it means.

The names are literals, from FORMATS: a trainer's prefix before the names of one of the family's layouts. `PAGE`
lists the cells that are proven here; docs/formats.md is written from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lorabake
from lorabake.adapters import suffixes
from lorabake.architectures import architectures
from lorabake.errors import LorabakeError, MatchError
from lorabake.keymap.adapter_config import read_config
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.names import pattern_of
from lorabake.keymap.slots import sort_tensors
from lorabake.keymap.view import Region
from lorabake.matching.complaint import CHOOSE
from lorabake.matching.ledger import Ledger
from lorabake.matching.names import BaseNames
from lorabake.matching.patches import Patch
from lorabake.sources.family import GENERIC, identify
from lorabake.tensors.header import TensorInfo
from tests import builders as b
from tests.documents import inspect
from tests.tables import infos, load_table, names
from tests.test_families import network
from tests.test_matching import matched, source
from tests.translation import translate

# family -> (header, the layout that is not diffusers', [(its name, first row, last row, diffusers' name)]).
# The rows are those of the first name's weight that the second name means.
GOLD: dict[str, tuple[str, str, list[tuple[str, int, int, str]]]] = {
    "Stable Diffusion 1.x": (
        "full_sd15_singlefile_1131",
        "diffusers",
        [
            (
                "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
                0,
                320,
                "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
            ),
            (
                "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0",
                0,
                320,
                "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0",
            ),
        ],
    ),
    "Stable Diffusion XL": (
        "full_sdxl_singlefile_2515",
        "diffusers",
        [
            (
                "input_blocks.4.1.transformer_blocks.1.attn2.to_k",
                0,
                640,
                "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
            ),
            ("output_blocks.2.2.conv", 0, 1280, "up_blocks.0.upsamplers.0.conv"),
        ],
    ),
    "Stable Diffusion 2.x": (
        "arenasys_unet_v2_sd",
        "diffusers",
        [
            (
                "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
                0,
                320,
                "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
            )
        ],
    ),
    "Stable Diffusion XL refiner": (
        "arenasys_unet_xl_refiner",
        "diffusers",
        [
            (
                "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
                0,
                768,
                "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            )
        ],
    ),
    "Stable Diffusion 3": (
        "diffusers_sd35_medium",
        "sai",
        [
            ("joint_blocks.0.x_block.attn.qkv", 1536, 3072, "transformer_blocks.0.attn.to_k"),
            ("joint_blocks.3.context_block.attn.qkv", 3072, 4608, "transformer_blocks.3.attn.add_v_proj"),
            ("joint_blocks.3.context_block.mlp.fc1", 0, 6144, "transformer_blocks.3.ff_context.net.0.proj"),
        ],
    ),
    "Flux.1": (
        "diffusers_flux1_dev_transformer",
        "bfl",
        [
            ("double_blocks.0.img_attn.qkv", 3072, 6144, "transformer_blocks.0.attn.to_k"),
            ("double_blocks.18.txt_attn.qkv", 0, 3072, "transformer_blocks.18.attn.add_q_proj"),
            ("double_blocks.1.img_mlp.0", 0, 12288, "transformer_blocks.1.ff.net.0.proj"),
            ("single_blocks.12.linear1", 9216, 21504, "single_transformer_blocks.12.proj_mlp"),
            ("single_blocks.12.linear2", 0, 3072, "single_transformer_blocks.12.proj_out"),
            ("time_in.in_layer", 0, 3072, "time_text_embed.timestep_embedder.linear_1"),
        ],
    ),
    "Flux.2": (
        "diffusers_flux2_dev",
        "bfl",
        [
            ("double_blocks.0.img_attn.qkv", 12288, 18432, "transformer_blocks.0.attn.to_v"),
            ("single_blocks.0.linear1", 0, 55296, "single_transformer_blocks.0.attn.to_qkv_mlp_proj"),
            ("single_blocks.0.linear2", 0, 6144, "single_transformer_blocks.0.attn.to_out"),
        ],
    ),
    "Chroma": (
        "diffusers_chroma",
        "bfl",
        [
            ("double_blocks.0.img_attn.qkv", 0, 3072, "transformer_blocks.0.attn.to_q"),
            ("single_blocks.0.linear1", 3072, 6144, "single_transformer_blocks.0.attn.to_k"),
        ],
    ),
    "Qwen-Image": (
        "diffusers_qwen_image",
        "",
        [
            ("transformer_blocks.7.attn.to_q", 0, 3072, "transformer_blocks.7.attn.to_q"),
            ("transformer_blocks.7.img_mlp.net.0.proj", 0, 12288, "transformer_blocks.7.img_mlp.net.0.proj"),
        ],
    ),
    "Z-Image": (
        "diffusers_z_image_turbo",
        "native",
        [
            ("layers.0.attention.qkv", 3840, 7680, "layers.0.attention.to_k"),
            ("noise_refiner.1.attention.out", 0, 3840, "noise_refiner.1.attention.to_out.0"),
            ("layers.3.feed_forward.w1", 0, 10240, "layers.3.feed_forward.w1"),
        ],
    ),
    "Lumina 2": (
        "diffusers_lumina2",
        "alpha_vllm",
        [
            ("layers.0.attention.qkv", 2304, 3072, "layers.0.attn.to_k"),
            ("context_refiner.0.attention.out", 0, 2304, "context_refiner.0.attn.to_out.0"),
        ],
    ),
    "HiDream": (
        "diffusers_hidream",
        "",
        [
            (
                "single_stream_blocks.0.block.attn1.to_q",
                0,
                2560,
                "single_stream_blocks.0.block.attn1.to_q",
            ),
            (
                "double_stream_blocks.3.block.ff_i.experts.1.w2",
                0,
                2560,
                "double_stream_blocks.3.block.ff_i.experts.1.w2",
            ),
        ],
    ),
    "PixArt": (
        "diffusers_pixart_alpha_1024",
        "pixart",
        [
            ("blocks.5.attn.qkv", 2304, 3456, "transformer_blocks.5.attn1.to_v"),
            ("blocks.5.cross_attn.kv_linear", 0, 1152, "transformer_blocks.5.attn2.to_k"),
        ],
    ),
    "Sana": (
        "diffusers_sana_1600m",
        "nvlabs",
        [
            ("blocks.0.attn.qkv", 2240, 4480, "transformer_blocks.0.attn1.to_k"),
            ("blocks.0.cross_attn.q_linear", 0, 2240, "transformer_blocks.0.attn2.to_q"),
        ],
    ),
    "AuraFlow": (
        "diffusers_auraflow",
        "fal",
        [
            ("double_layers.0.attn.w2k", 0, 3072, "joint_transformer_blocks.0.attn.to_k"),
            ("single_layers.0.attn.w1q", 0, 3072, "single_transformer_blocks.0.attn.to_q"),
        ],
    ),
    "HunyuanDiT": (
        "diffusers_hunyuandit",
        "tencent",
        [("blocks.0.attn1.Wqkv", 1408, 2816, "blocks.0.attn1.to_k")],
    ),
    "HunyuanImage": (
        "diffusers_hunyuan_image",
        "comfy",
        [("double_blocks.0.img_attn.qkv", 3584, 7168, "transformer_blocks.0.attn.to_k")],
    ),
    "CogView4": (
        "diffusers_cogview4",
        "sat",
        [("transformer.layers.0.attention.query_key_value", 4096, 8192, "transformer_blocks.0.attn1.to_k")],
    ),
    "Kolors": (
        "diffusers_kolors_unet",
        "",
        [
            (
                "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
                0,
                640,
                "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            )
        ],
    ),
    "Stable Cascade (stage C)": (
        "diffusers_cascade_c",
        "sai",
        [("down_blocks.0.2.attention.attn.in_proj", 2048, 4096, "down_blocks.0.2.attention.to_k")],
    ),
    "Wan": (
        "diffusers_wan21_i2v",
        "wan",
        [
            ("blocks.7.self_attn.q", 0, 5120, "blocks.7.attn1.to_q"),
            ("blocks.7.cross_attn.k_img", 0, 5120, "blocks.7.attn2.add_k_proj"),
            ("blocks.7.ffn.0", 0, 13824, "blocks.7.ffn.net.0.proj"),
        ],
    ),
    "HunyuanVideo": (
        "diffusers_hunyuan_video",
        "tencent",
        [
            ("double_blocks.0.img_attn_qkv", 3072, 6144, "transformer_blocks.0.attn.to_k"),
            ("single_blocks.7.linear1", 9216, 21504, "single_transformer_blocks.7.proj_mlp"),
            ("double_blocks.3.img_mlp.fc1", 0, 12288, "transformer_blocks.3.ff.net.0.proj"),
        ],
    ),
    "LTX-Video": (
        "diffusers_ltx_video",
        "lightricks",
        [("transformer_blocks.0.attn1.to_q", 0, 2048, "transformer_blocks.0.attn1.to_q")],
    ),
    "LTX-2": (
        "diffusers_ltx2",
        "lightricks",
        [("transformer_blocks.0.attn1.to_q", 0, 4096, "transformer_blocks.0.attn1.to_q")],
    ),
    "Mochi": (
        "diffusers_mochi",
        "genmo",
        [("blocks.0.attn.qkv_x", 0, 3072, "transformer_blocks.0.attn1.to_q")],
    ),
    "CogVideoX": (
        "diffusers_cogvideox",
        "sat",
        [
            ("transformer.layers.0.attention.query_key_value", 1920, 3840, "transformer_blocks.0.attn1.to_k"),
            ("transformer.layers.3.mlp.dense_h_to_4h", 0, 7680, "transformer_blocks.3.ff.net.0.proj"),
        ],
    ),
    "Cosmos": (
        "diffusers_cosmos2",
        "nvidia",
        [("blocks.0.self_attn.q_proj", 0, 2048, "transformer_blocks.0.attn1.to_q")],
    ),
    "Anima": (
        "invoke_anima_comfyui_keys",
        "",
        [("blocks.0.self_attn.q_proj", 0, 2048, "transformer_blocks.0.attn1.to_q")],
    ),
    "Kandinsky 5": (
        "diffusers_kandinsky5",
        "",
        [
            (
                "visual_transformer_blocks.0.self_attention.to_query",
                0,
                2048,
                "visual_transformer_blocks.0.self_attention.to_query",
            )
        ],
    ),
    "ACE-Step 1.5": (
        "diffusers_ace_step",
        "ace_step",
        [("layers.0.self_attn.k_proj", 0, 1024, "layers.0.self_attn.to_k")],
    ),
    "Flux.3": (
        "diffusers_flux3",
        "bfl",
        [
            ("content_mode_blocks.image.0.q_proj", 0, 3072, "mode_blocks.image.0.attn.to_q"),
            ("single_blocks.1.mlp_in", 0, 18432, "single_transformer_blocks.1.ff.linear_in"),
        ],
    ),
    "Krea 2": (
        "diffusers_krea2",
        "krea",
        [
            ("blocks.0.attn.wk", 0, 1536, "transformer_blocks.0.attn.to_k"),
            ("txtfusion.refiner_blocks.0.mlp.down", 0, 2560, "text_fusion.refiner_blocks.0.ff.down"),
        ],
    ),
    "Qwen-Image 2.1": (
        "diffusers_qwen_image21",
        "comfy",
        [
            ("transformer_blocks.1.attn.to_q", 0, 4096, "transformer_blocks.1.attn.to_q"),
            ("transformer_blocks.0.img_mlp.out", 0, 4096, "transformer_blocks.0.img_mlp.out"),
        ],
    ),
    "Ideogram 4": (
        "diffusers_ideogram4",
        "ideogram",
        [
            ("layers.0.attention.qkv", 4608, 9216, "layers.0.attention.to_k"),
            ("layers.1.attention.o", 0, 4608, "layers.1.attention.to_out.0"),
        ],
    ),
    "ERNIE-Image": (
        "diffusers_ernie_image",
        "",
        [
            ("layers.1.self_attention.to_q", 0, 3072, "layers.1.self_attention.to_q"),
        ],
    ),
    "Bria FIBO": (
        "diffusers_bria_fibo",
        "",
        [
            ("single_transformer_blocks.1.proj_mlp", 0, 12288, "single_transformer_blocks.1.proj_mlp"),
        ],
    ),
    "Bria FIBO 2": (
        "diffusers_bria_fibo2",
        "",
        [
            ("layers.1.attention.to_q", 0, 3584, "layers.1.attention.to_q"),
        ],
    ),
    "PRX": (
        "diffusers_prx",
        "",
        [
            ("blocks.1.attention.img_qkv_proj", 0, 5376, "blocks.1.attention.img_qkv_proj"),
        ],
    ),
    "CogView3-Plus": (
        "diffusers_cogview3plus",
        "sat",
        [
            ("transformer.layers.0.attention.query_key_value", 2560, 5120, "transformer_blocks.0.attn1.to_k"),
            ("mixins.adaln.adaln_modules.7.1", 0, 30720, "transformer_blocks.7.norm1.linear"),
        ],
    ),
    "HunyuanVideo 1.5": (
        "diffusers_hunyuan_video15",
        "comfy",
        [
            ("double_blocks.0.img_attn.qkv", 2048, 4096, "transformer_blocks.0.attn.to_k"),
            ("double_blocks.1.txt_mlp.0", 0, 8192, "transformer_blocks.1.ff_context.net.0.proj"),
        ],
    ),
    "Helios": (
        "diffusers_helios",
        "",
        [
            ("blocks.1.attn1.to_q", 0, 5120, "blocks.1.attn1.to_q"),
        ],
    ),
    "Sana Video": (
        "diffusers_sana_video",
        "",
        [
            ("transformer_blocks.1.attn2.to_k", 0, 2240, "transformer_blocks.1.attn2.to_k"),
        ],
    ),
    "MiniMax-H3": (
        "diffusers_minimax_h3",
        "",
        [
            ("transformer_blocks.1.attn.to_q", 0, 7168, "transformer_blocks.1.attn.to_q"),
        ],
    ),
    "Stable Video Diffusion": (
        "diffusers_svd",
        "",
        [
            (
                "down_blocks.1.attentions.0.temporal_transformer_blocks.0.attn1.to_q",
                0,
                640,
                "down_blocks.1.attentions.0.temporal_transformer_blocks.0.attn1.to_q",
            ),
        ],
    ),
    "ModelScope text-to-video": (
        "diffusers_text_to_video",
        "",
        [
            (
                "down_blocks.1.temp_attentions.0.transformer_blocks.0.attn1.to_q",
                0,
                640,
                "down_blocks.1.temp_attentions.0.transformer_blocks.0.attn1.to_q",
            ),
        ],
    ),
    "Kandinsky 2": (
        "diffusers_kandinsky2",
        "",
        [
            ("down_blocks.1.attentions.0.add_k_proj", 0, 768, "down_blocks.1.attentions.0.add_k_proj"),
        ],
    ),
    "Kandinsky 3": (
        "diffusers_kandinsky3",
        "",
        [
            ("up_blocks.0.attentions.0.attention.to_q", 0, 1536, "up_blocks.0.attentions.0.attention.to_q"),
        ],
    ),
}
OF_DIFFUSERS = (
    "Kolors",
    "Stable Video Diffusion",
    "ModelScope text-to-video",
    "Kandinsky 2",
    "Kandinsky 3",
)
UNETS = (
    "Stable Diffusion 1.x",
    "Stable Diffusion 2.x",
    "Stable Diffusion XL",
    "Stable Diffusion XL refiner",
    *OF_DIFFUSERS,
)
CASCADE = ("Stable Cascade (stage C)",)
TRANSFORMERS = tuple(family for family in GOLD if family not in (*UNETS, *CASCADE))

KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
PEFT = (".lora_A.weight", ".lora_B.weight", "")
OLD = (".lora.down.weight", ".lora.up.weight", "")

# diffusers' ending -> the number of the slice that fused modules call it.
SLICES = {"to_q": 0, "to_k": 1, "to_v": 2, "add_q_proj": 0, "add_k_proj": 1, "add_v_proj": 2, "proj_mlp": 3}

# format -> (prefix, whose names follow: own, diffusers, or slices of own, are dots kept, suffixes, families).
FORMATS: dict[str, tuple[str, str, bool, tuple[str, str, str], tuple[str, ...]]] = {
    "kohya, musubi-tuner: `lora_unet_`, own names": ("lora_unet_", "own", False, KOHYA, (*UNETS, *TRANSFORMERS)),
    "musubi-tuner: `lora_unet__`": ("lora_unet__", "own", False, KOHYA, TRANSFORMERS),
    "kohya: `lora_unet_`, diffusers' names": ("lora_unet_", "diffusers", False, KOHYA, (*UNETS, *TRANSFORMERS)),
    "LyCORIS, SimpleTuner: `lycoris_`": ("lycoris_", "diffusers", False, KOHYA, tuple(GOLD)),
    "OneTrainer: `lora_transformer_`": ("lora_transformer_", "diffusers", False, KOHYA, TRANSFORMERS),
    "OneTrainer: `lora_prior_unet_`": ("lora_prior_unet_", "diffusers", False, KOHYA, CASCADE),
    "OneTrainer: slices by number": ("transformer.", "slices", True, KOHYA, TRANSFORMERS),
    "diffusers, SimpleTuner, ai-toolkit: `transformer.`": ("transformer.", "diffusers", True, PEFT, TRANSFORMERS),
    "diffusers: `unet.`": ("unet.", "diffusers", True, PEFT, UNETS),
    "diffusers ≤ 0.26: `unet.`": ("unet.", "diffusers", True, OLD, UNETS),
    "ComfyUI, ai-toolkit, diffusion-pipe: `diffusion_model.`": (
        "diffusion_model.",
        "own",
        True,
        PEFT,
        (*(family for family in UNETS if family not in OF_DIFFUSERS), *CASCADE, *TRANSFORMERS),
    ),
    "PEFT: `base_model.model.`": ("base_model.model.", "diffusers", True, PEFT, tuple(GOLD)),
    "fal, PEFT on own names": ("base_model.model.", "own", True, PEFT, tuple(GOLD)),
    "no prefix": ("", "diffusers", True, PEFT, tuple(GOLD)),
}


@cache
def bases(family: str) -> dict[str, BaseNames]:
    """Make the family's base in its own and in diffusers' layout: whose names it has -> matcher."""
    table, there, _ = GOLD[family]
    component, here, tensors = network(table)
    made = {here: tensors}
    if there and there != here:
        made[there] = infos(translate(component, tensors, here, there))
    found = {}
    for layout, each in made.items():
        key_map = KeyMap.expand(identify(each), each)
        assert key_map.placed[component.name][0].name == layout
        found["diffusers" if layout == "diffusers" else "own"] = BaseNames(key_map)
    return found


def place(name: str, suffixes: tuple[str, str, str], shape: tuple[int, ...], base: BaseNames) -> tuple[Patch, Ledger]:
    """Place a LoRA of one module, of rank 4."""
    down, up, alpha = suffixes
    kernel = [1] * (len(shape) - 2)
    shapes = {name + down: (4, *shape[1:]), name + up: (shape[0], 4, *kernel)} | ({name + alpha: ()} if alpha else {})
    (patch,), ledger = matched(base, source(infos(shapes)))
    assert ledger.applied == len(shapes)
    return patch, ledger


# Where a format is not one of the prefixes above: format -> families, each proven by a test further below.
OTHERS = {
    "XLabs, USO": ("Flux.1",),
    "DiffSynth-Studio": ("Flux.1",),
    "kohya with `split_qkv`": ("Flux.1", "Stable Diffusion 3", "Lumina 2"),
    "AnimateDiff's motion LoRA": ("AnimateDiff motion module",),
    "MLX-LM, also its `.npz`": ("language models",),
    "torchtune": ("language models",),  # these three by tests/oracle/test_dialects.py
    "litgpt": ("language models",),
    "llama.cpp (GGUF)": ("language models",),
}

CELLS = [
    (format_, family, *module)
    for format_, (_, whose, _, _, families) in FORMATS.items()
    for family in families
    for module in GOLD[family][2]
    if whose != "slices" or module[3].rpartition(".")[2] in SLICES
    if whose != "slices" or module[0].endswith(("qkv", "qkv_x", "linear1"))
]


def expected_rows(tensors: Mapping[str, TensorInfo], whose: str, module: tuple[str, int, int, str]) -> list[Region]:
    """Say which rows a name of a gold module means on a base of these tensors; [] where it has parts to join."""
    own, first, last, diffusers = module
    key = own + ("_weight" if f"{own}_weight" in tensors else ".weight")
    if key not in tensors:
        key, first, last = f"{diffusers}.weight", 0, last - first
        assert tensors[key].shape[0] == last
        return [] if whose == "own" and diffusers.rpartition(".")[2] in SLICES else [Region(key, first, last)]
    return [Region(key, 0, tensors[key].shape[0]) if whose == "own" else Region(key, first, last)]


@pytest.mark.parametrize(("format_", "family", "own", "first", "last", "diffusers"), CELLS)
def test_a_trainers_name_leads_to_its_rows(
    format_: str, family: str, own: str, first: int, last: int, diffusers: str
) -> None:
    prefix, whose, dotted, suffixes, _ = FORMATS[format_]
    for base in bases(family).values():
        tensors = base.key_map.tensors
        regions = expected_rows(tensors, whose, (own, first, last, diffusers))
        if not regions:
            continue
        name = {"own": own, "diffusers": diffusers}.get(whose, f"{own}.{SLICES.get(diffusers.rpartition('.')[2])}")
        file = prefix + (name if dotted else name.replace(".", "_"))
        count = sum(region.stop - region.start for region in regions)
        patch, _ = place(file, suffixes, (count, *tensors[regions[0].key].shape[1:]), base)
        assert list(patch.view.regions) == regions, file


# -- text encoders ---------------------------------------------------------------------------------------------

LAYER = "text_model.encoder.layers.7"
Q_PROJ = f"{LAYER}.self_attn.q_proj"
BLOCK = "encoder.block.3.layer.0.SelfAttention.q"
TE1_SD1 = f"cond_stage_model.transformer.{Q_PROJ}"
TE1_SDXL, TE2_SDXL = f"conditioner.embedders.0.transformer.{Q_PROJ}", "conditioner.embedders.1.model"
CLIP_L, CLIP_G, T5 = (f"text_encoders.{name}.transformer" for name in ("clip_l", "clip_g", "t5xxl"))
SD1, SDXL = "full_sd15_singlefile_1131", "full_sdxl_singlefile_2515"
SD3, FLUX = "mecha_sd3_comfyui", "mecha_flux_flux"

# (format, family, base, the file's name of a module, the base's key, its first and last row)
TEXT_CELLS = [
    ("kohya: `lora_te…`", "Stable Diffusion 1.x", SD1, f"lora_te_{Q_PROJ}", TE1_SD1, 0, 768),
    ("kohya: `lora_te…`", "Stable Diffusion 1.x", SD1, f"lora_te1_{Q_PROJ}", TE1_SD1, 0, 768),
    ("kohya: `lora_te…`", "Stable Diffusion XL", SDXL, f"lora_te1_{Q_PROJ}", TE1_SDXL, 0, 768),
    (
        "kohya: `lora_te…`",
        "Stable Diffusion XL",
        SDXL,
        f"lora_te2_{Q_PROJ.replace('q_', 'v_')}",
        f"{TE2_SDXL}.transformer.resblocks.7.attn.in_proj_",
        2560,
        3840,
    ),
    ("kohya: `lora_te…`", "Stable Diffusion 3", SD3, f"lora_te1_{Q_PROJ}", f"{CLIP_L}.{Q_PROJ}", 0, 768),
    ("kohya: `lora_te…`", "Stable Diffusion 3", SD3, f"lora_te2_{Q_PROJ}", f"{CLIP_G}.{Q_PROJ}", 0, 1280),
    ("kohya: `lora_te…`", "Stable Diffusion 3", SD3, f"lora_te3_{BLOCK}", f"{T5}.{BLOCK}", 0, 4096),
    ("kohya: `lora_te…`", "Flux.1", FLUX, f"lora_te1_{Q_PROJ}", f"{CLIP_L}.{Q_PROJ}", 0, 768),
    ("kohya: `lora_te…`", "Flux.1", FLUX, f"lora_te3_{BLOCK}", f"{T5}.{BLOCK}", 0, 4096),
    ("OneTrainer: `lora_te2_` is T5", "Flux.1", FLUX, f"lora_te2_{BLOCK}", f"{T5}.{BLOCK}", 0, 4096),
    ("diffusers: `text_encoder….`", "Stable Diffusion 1.x", SD1, f"text_encoder.{Q_PROJ}", TE1_SD1, 0, 768),
    (
        "diffusers: `text_encoder….`",
        "Stable Diffusion 1.x",
        SD1,
        f"text_encoder.{LAYER}.self_attn.to_q",
        TE1_SD1,
        0,
        768,
    ),
    (
        "diffusers: `text_encoder….`",
        "Stable Diffusion XL",
        SDXL,
        f"text_encoder_2.{LAYER}.mlp.fc1",
        f"{TE2_SDXL}.transformer.resblocks.7.mlp.c_fc",
        0,
        5120,
    ),
    ("diffusers: `text_encoder….`", "Stable Diffusion 3", SD3, f"text_encoder_3.{BLOCK}", f"{T5}.{BLOCK}", 0, 4096),
    ("diffusers: `text_encoder….`", "Flux.1", FLUX, f"text_encoder_2.{BLOCK}", f"{T5}.{BLOCK}", 0, 4096),
    ("ComfyUI: `text_encoders.….`", "Stable Diffusion 1.x", SD1, f"{CLIP_L}.{Q_PROJ}", TE1_SD1, 0, 768),
    ("ComfyUI: `text_encoders.….`", "Stable Diffusion XL", SDXL, f"{CLIP_L}.{Q_PROJ}", TE1_SDXL, 0, 768),
    (
        "ComfyUI: `text_encoders.….`",
        "Stable Diffusion XL",
        SDXL,
        f"{CLIP_G}.{Q_PROJ}",
        f"{TE2_SDXL}.transformer.resblocks.7.attn.in_proj_",
        0,
        1280,
    ),
    ("ComfyUI: `text_encoders.….`", "Stable Diffusion 3", SD3, f"{CLIP_G}.{Q_PROJ}", f"{CLIP_G}.{Q_PROJ}", 0, 1280),
    ("ComfyUI: `text_encoders.….`", "Flux.1", FLUX, f"{T5}.{BLOCK}", f"{T5}.{BLOCK}", 0, 4096),
]


@cache
def single_file(table: str) -> BaseNames:
    tensors = load_table(table)
    return BaseNames(KeyMap.expand(identify(tensors), tensors))


@pytest.mark.parametrize(("format_", "family", "table", "name", "key", "first", "last"), TEXT_CELLS)
def test_a_text_encoders_name_leads_to_its_rows(
    format_: str, family: str, table: str, name: str, key: str, first: int, last: int
) -> None:
    base = single_file(table)
    key += "weight" if key.endswith("_") else ".weight"
    flat = name.startswith("lora_")
    columns = base.key_map.tensors[key].shape[1]
    patch, _ = place(name.replace(".", "_") if flat else name, KOHYA if flat else PEFT, (last - first, columns), base)
    assert base.key_map.architecture.title == family
    assert patch.view.regions == (Region(key, first, last),)


# family -> (its network, below which folder, its language model's own name in ComfyUI)
LANGUAGE = {
    "Lumina 2": ("diffusers_lumina2", "transformer", "gemma2_2b"),
    "Z-Image": ("diffusers_z_image_turbo", "transformer", "qwen3_4b"),
    "Qwen-Image": ("diffusers_qwen_image", "transformer", "qwen25_7b"),
    "Wan": ("diffusers_wan21_t2v_14b", "transformer", "umt5xxl"),
    "LTX-2": ("diffusers_ltx2", "transformer", "gemma3_12b"),
    "AuraFlow": ("diffusers_auraflow", "transformer", "pile_t5xl"),
}
LANGUAGE_FORMATS = {
    "kohya: `lora_te…`": ["lora_te_layers_0_self_attn_q_proj", "lora_te_model_layers_0_self_attn_q_proj"],
    "diffusers: `text_encoder….`": ["text_encoder.model.layers.0.self_attn.q_proj"],
    "ComfyUI: `text_encoders.….`": ["text_encoders.{}.transformer.model.layers.0.self_attn.q_proj"],
}


@pytest.mark.parametrize("family", LANGUAGE)
@pytest.mark.parametrize("format_", LANGUAGE_FORMATS)
def test_a_language_model_beside_a_transformer_is_found(format_: str, family: str) -> None:
    table, folder, own = LANGUAGE[family]
    shapes = {f"{folder}/{key}": info.shape for key, info in load_table(table).items()}
    key = "text_encoder/model.layers.0.self_attn.q_proj.weight"
    tensors = infos(shapes | {key: (16, 8)})
    base = BaseNames(KeyMap.expand(identify(tensors), tensors))
    assert base.key_map.architecture.title == family
    for name in LANGUAGE_FORMATS[format_]:
        patch, _ = place(name.format(own), PEFT, (16, 8), base)
        assert patch.view.regions == (Region(key, 0, 16),)


@pytest.mark.parametrize("family", LANGUAGE)
def test_a_language_model_in_a_single_file_is_found(family: str) -> None:
    _, _, own = LANGUAGE[family]
    own_base = bases(family).get("own", bases(family)["diffusers"])
    shapes = {f"model.diffusion_model.{key}": info.shape for key, info in own_base.key_map.tensors.items()}
    key = f"text_encoders.{own}.transformer.model.layers.0.self_attn.q_proj.weight"
    tensors = infos(shapes | {key: (16, 8)})
    base = BaseNames(KeyMap.expand(identify(tensors), tensors))
    for name in [spelling for spellings in LANGUAGE_FORMATS.values() for spelling in spellings]:
        patch, _ = place(name.format(own), PEFT, (16, 8), base)
        assert patch.view.regions == (Region(key, 0, 16),), name


def test_the_text_encoder_of_cascades_prior_has_a_prefix_of_its_own() -> None:
    shapes = {f"prior/{key}": info.shape for key, info in load_table("diffusers_cascade_c").items()}
    key = f"prior_text_encoder/{Q_PROJ}.weight"
    hf = {f"prior_text_encoder/{LAYER.replace('7', '0')}.self_attn.q_proj.weight": (1280, 1280), key: (1280, 1280)}
    tensors = infos(shapes | hf)
    patch, _ = place(
        f"lora_prior_te_{Q_PROJ.replace('.', '_')}",
        KOHYA,
        (1280, 1280),
        BaseNames(KeyMap.expand(identify(tensors), tensors)),
    )
    assert patch.view.regions == (Region(key, 0, 1280),)


# -- AnimateDiff ---------------------------------------------------------------------------------------------------

MOTION = "down_blocks.0.motion_modules.1.temporal_transformer.transformer_blocks.0.attention_blocks.1"


@pytest.mark.parametrize(("leaf", "own"), [("to_q", "to_q"), ("to_out", "to_out.0")])
def test_a_motion_lora_changes_a_motion_module(leaf: str, own: str) -> None:
    component, here, tensors = network("diffusers_motion_adapter")
    old = infos(translate(component, tensors, here, "animatediff"))
    suffixes = ("_lora.down.weight", "_lora.up.weight", "")
    for base, key in (
        (old, f"{MOTION}.{own}.weight"),
        (tensors, f"down_blocks.0.motion_modules.1.transformer_blocks.0.attn2.{own}.weight"),
    ):
        matcher = BaseNames(KeyMap.expand(identify(base), base))
        patch, _ = place(f"{MOTION}.processor.{leaf}", suffixes, (320, 320), matcher)
        assert patch.view.regions == (Region(key, 0, 320),)


def test_a_motion_lora_does_not_fit_the_checkpoint_beside() -> None:
    with pytest.raises(MatchError, match=rf"^LoRA 'style' is for AnimateDiff motion module \(by [^\n]*\n{CHOOSE}$"):
        place(f"{MOTION}.processor.to_q", ("_lora.down.weight", "_lora.up.weight", ""), (320, 320), single_file(SD1))


# -- names that no layout has -----------------------------------------------------------------------------------

Q, K, V = (f"attn.to_{letter}" for letter in "qkv")
XLABS = {  # FORMATS A.9: name -> (columns, bfl's rows, diffusers' modules)
    "double_blocks.18.processor.qkv_lora1": ("double_blocks.18.img_attn.qkv", 9216, 3072, "transformer_blocks.18", Q),
    "double_blocks.0.processor.qkv_lora2": (
        "double_blocks.0.txt_attn.qkv",
        9216,
        3072,
        "transformer_blocks.0",
        "attn.add_q_proj",
    ),
    "double_blocks.0.processor.proj_lora1": (
        "double_blocks.0.img_attn.proj",
        3072,
        3072,
        "transformer_blocks.0",
        "attn.to_out.0",
    ),
    "double_blocks.0.processor.proj_lora2": (
        "double_blocks.0.txt_attn.proj",
        3072,
        3072,
        "transformer_blocks.0",
        "attn.to_add_out",
    ),
    "single_blocks.37.processor.qkv_lora": (
        "single_blocks.37.linear1",
        9216,
        3072,
        "single_transformer_blocks.37",
        Q,
    ),
    "single_blocks.37.processor.proj_lora": (
        "single_blocks.37.linear2",
        3072,
        15360,
        "single_transformer_blocks.37",
        "proj_out",
    ),
}
DIFFSYNTH = {
    "blocks.0.attn.b_to_qkv": ("double_blocks.0.txt_attn.qkv", 9216, 3072, "transformer_blocks.0", "attn.add_q_proj"),
    "blocks.0.ff_a.2": ("double_blocks.0.img_mlp.2", 3072, 12288, "transformer_blocks.0", "ff.net.2"),
    "blocks.0.norm1_b.linear": (
        "double_blocks.0.txt_mod.lin",
        18432,
        3072,
        "transformer_blocks.0",
        "norm1_context.linear",
    ),
    "single_blocks.0.to_qkv_mlp": ("single_blocks.0.linear1", 21504, 3072, "single_transformer_blocks.0", Q),
    "single_blocks.0.proj_out": ("single_blocks.0.linear2", 3072, 15360, "single_transformer_blocks.0", "proj_out"),
    "single_blocks.0.norm.linear": (
        "single_blocks.0.modulation.lin",
        9216,
        3072,
        "single_transformer_blocks.0",
        "norm.linear",
    ),
}


@pytest.mark.parametrize(
    ("suffixes", "name", "module"),
    [
        *(((".down.weight", ".up.weight", ""), *each) for each in XLABS.items()),
        *(((".lora_A.default.weight", ".lora_B.default.weight", ""), *each) for each in DIFFSYNTH.items()),
    ],
)
def test_flux_has_names_of_its_own_in_xlabs_and_diffsynth(
    suffixes: tuple[str, str, str], name: str, module: tuple[str, int, int, str, str]
) -> None:
    own, rows, columns, block, leaf = module
    layouts = bases("Flux.1")
    patch, _ = place(name, suffixes, (rows, columns), layouts["own"])
    assert patch.view.regions == (Region(f"{own}.weight", 0, rows),)
    patch, _ = place(name, suffixes, (rows, columns), layouts["diffusers"])
    leaves = [leaf]
    if rows in (9216, 21504) and "norm" not in leaf:
        leaves = [Q, K, V] if leaf == Q else ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]
        leaves += ["proj_mlp"] * (rows == 21504)
    assert [region.key for region in patch.view.regions] == [f"{block}.{each}.weight" for each in leaves]
    assert patch.view.shape == (rows, columns)


def test_xlabs_singles_leave_the_feed_forward_of_linear1_alone() -> None:
    name = "single_blocks.0.processor.qkv_lora"
    with pytest.raises(MatchError, match="does not fit"):
        place(name, (".down.weight", ".up.weight", ""), (21504, 3072), bases("Flux.1")["own"])


def test_a_whole_xlabs_file_is_placed() -> None:
    shapes = {
        f"double_blocks.{block}.processor.{kind}_lora{side}.{half}.weight": shape
        for block in range(19)
        for kind, rows in (("qkv", 9216), ("proj", 3072))
        for side in (1, 2)
        for half, shape in (("down", (16, 3072)), ("up", (rows, 16)))
    }
    for base in bases("Flux.1").values():
        patches, ledger = matched(base, source(infos(shapes)))
        assert (len(patches), ledger.applied, ledger.family) == (76, 152, "Flux.1")


# -- q, k and v trained apart, saved as one (kohya's split_qkv, FORMATS A.2) ----------------------------------

H, RANK, ALPHA = 8, 2, 1.0
FUSED = {"double_blocks_0_img_attn_qkv": (H, H, H), "single_blocks_0_linear1": (H, H, H, 4 * H)}


def small_flux(folder: Path) -> b.Tensors:
    """Save Flux with one block of each sort."""
    values = b.Values(3)
    shapes = {
        "double_blocks.0.img_attn.qkv": (3 * H, H),
        "double_blocks.0.img_attn.proj": (H, H),
        "double_blocks.0.img_mod.lin": (6 * H, H),
        "single_blocks.0.linear1": (7 * H, H),
        "single_blocks.0.linear2": (H, 5 * H),
        "img_in": (H, 4),
        "vector_in.in_layer": (H, H),
    }
    base = {f"{name}.weight": values(*shape) for name, shape in shapes.items()}
    b.save(folder / "base.safetensors", base)
    return base


def apart(
    folder: Path, metadata: dict[str, str] | None, *, alpha: float = ALPHA, other: float = ALPHA, noise: float = 0
) -> dict[str, torch.Tensor]:
    """Save a LoRA of fused modules whose parts were trained apart; return B·A of each module, by the base's key."""
    values = b.Values(7)
    tensors: b.Tensors = {}
    products = {}
    for name, sizes in FUSED.items():
        downs, ups = [values(RANK, H) for _ in sizes], [values(size, RANK) for size in sizes]
        up = torch.block_diag(*ups)
        up[up == 0] = -0.0
        up[0, -1] += noise
        tensors |= {
            f"lora_unet_{name}.lora_down.weight": torch.cat(downs),
            f"lora_unet_{name}.lora_up.weight": up,
            f"lora_unet_{name}.alpha": torch.tensor(alpha),
        }
        key = {3: "double_blocks.0.img_attn.qkv", 4: "single_blocks.0.linear1"}[len(sizes)]
        products[f"{key}.weight"] = torch.cat(
            [one.double() @ two.double() for one, two in zip(ups, downs, strict=True)]
        )
    tensors |= {
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": values(RANK, H),
        "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": values(H, RANK),
        "lora_unet_double_blocks_0_img_attn_proj.alpha": torch.tensor(other),
    }
    b.save(folder / "lora.safetensors", tensors, metadata=metadata)
    return products


@pytest.mark.parametrize(
    ("metadata", "source"),
    [
        ({"ss_network_args": '{"split_qkv": "True", "train_blocks": "all"}'}, "metadata"),
        ({"ss_network_dim": "2"}, "the zeros in its up"),
        (None, "the zeros in its up"),
    ],
)
def test_alpha_of_one_part_is_over_its_rank(metadata: dict[str, str] | None, source: str, tmp_path: Path) -> None:
    base, products = small_flux(tmp_path), apart(tmp_path, metadata)
    recipe = lorabake.load_recipe(b.recipe(tmp_path))
    notes = lorabake.plan(recipe).ledgers[0].notes
    assert len(notes) == 1
    assert "split_qkv" in notes[0]
    assert notes[0].endswith(f"in 2 modules, by {source}")
    out = load_file(b.run(tmp_path / "recipe.yaml").path)
    for key, product in products.items():
        exact = base[key].double() + ALPHA / RANK * product
        b.assert_rounded_once(out[key], exact, terms=[base[key], product])
    options = lorabake.VerifyOptions(stages=("structure", "weights"))
    assert lorabake.verify(recipe, options=options).exit_code == 0


@pytest.mark.parametrize("arguments", ['{"train_blocks": "all"}', '{"split_qkv": "False"}'])
def test_the_metadata_knows_better_than_the_values(arguments: str, tmp_path: Path) -> None:
    base, products = small_flux(tmp_path), apart(tmp_path, {"ss_network_args": arguments})
    out = load_file(b.run(b.recipe(tmp_path)).path)
    for key, product in products.items():
        parts = 4 if "linear1" in key else 3
        exact = base[key].double() + ALPHA / (parts * RANK) * product
        b.assert_rounded_once(out[key], exact, terms=[base[key], product])


@pytest.mark.parametrize(
    ("family", "name", "shape", "parts"),
    [
        ("Flux.1", "double_blocks_3_txt_attn_qkv", (9216, 3072), 3),
        ("Flux.1", "single_blocks_3_linear1", (21504, 3072), 4),
        ("Flux.1", "single_blocks_3_linear2", (3072, 15360), 1),
        ("Stable Diffusion 3", "joint_blocks_0_x_block_attn_qkv", (4608, 1536), 3),
        ("Stable Diffusion 3", "joint_blocks_0_context_block_attn_qkv", (4608, 1536), 3),
        ("Lumina 2", "layers_0_attention_qkv", (3840, 2304), 3),  # q has more rows than k and v
        ("Lumina 2", "layers_0_attn_to_k", (768, 2304), 1),
    ],
)
def test_the_families_that_kohya_trains_apart(family: str, name: str, shape: tuple[int, int], parts: int) -> None:
    shapes = {
        f"lora_unet_{name}.lora_down.weight": (12, shape[1]),
        f"lora_unet_{name}.lora_up.weight": (shape[0], 12),
        f"lora_unet_{name}.alpha": (),
    }
    metadata = {"ss_network_args": '{"split_qkv": "True"}'}
    for base in bases(family).values():
        (patch,), _ = matched(base, source(infos(shapes), metadata=metadata))
        assert patch.parts == parts


@pytest.mark.parametrize(
    "comment", ["dimension is resized from 8 to 6; ", "Dynamic resize with sv_fro: 0.9 from 8; "]
)
def test_a_resized_file_has_the_metadata_and_other_factors(comment: str, tmp_path: Path) -> None:
    small_flux(tmp_path)
    metadata = {"ss_network_args": '{"split_qkv": "True"}', "ss_training_comment": comment}
    apart(tmp_path, metadata, noise=0.5)
    (ledger,) = lorabake.plan(lorabake.load_recipe(b.recipe(tmp_path))).ledgers
    assert not ledger.notes


def test_a_converted_file_has_blocks_and_an_alpha_for_them_all(tmp_path: Path) -> None:
    small_flux(tmp_path)
    apart(tmp_path, None, alpha=6.0, other=2.0)  # scale 1 of the whole rank for q, k and v, and of the others
    (ledger,) = lorabake.plan(lorabake.load_recipe(b.recipe(tmp_path))).ledgers
    assert not ledger.notes


def test_one_value_beside_the_blocks_speaks_against_parts(tmp_path: Path) -> None:
    small_flux(tmp_path)
    apart(tmp_path, None, noise=1e-30)
    (ledger,) = lorabake.plan(lorabake.load_recipe(b.recipe(tmp_path))).ledgers
    assert not ledger.notes


# -- MLX-LM (FORMATS A.9) ------------------------------------------------------------------------------------

MLX_Q, MLX_DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def mlx(
    folder: Path, *, dora: bool = False, config: dict[str, object] | None = None, file: str = "adapters.safetensors"
) -> b.Tensors:
    """Save an adapter as mlx_lm.lora does, or as it once did; return its tensors."""
    values = b.Values(5)
    tensors = {}
    for name, rows, columns in ((MLX_Q, 8, 8), (MLX_DOWN, 8, 16)):
        tensors |= {f"{name}.lora_a": values(columns, 3), f"{name}.lora_b": values(3, rows)}
        if dora:
            tensors[f"{name}.m"] = values(rows).abs() + 0.5
    if file.endswith(".npz"):
        folder.mkdir(parents=True)
        np.savez(folder / file, **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        b.save(folder / file, tensors)
        without_metadata(folder / file)
    how = {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": 3, "scale": 2.5},
    }
    (folder / "adapter_config.json").write_text(json.dumps(how | (config or {})))
    return tensors


def without_metadata(path: Path) -> None:
    """Say `"__metadata__": null` in a file's header, as MLX does where it has nothing to say."""
    entries, _, data = b.header(path)
    text = json.dumps({"__metadata__": None, **entries}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    ("file", "path", "dora"),
    [
        ("adapters.safetensors", "adapter", False),
        ("adapters.safetensors", "adapter", True),
        ("adapters.safetensors", "adapter/adapters.safetensors", False),
        ("0000100_adapters.safetensors", "adapter/0000100_adapters.safetensors", True),
        ("adapters.npz", "adapter", False),
        ("adapters.npz", "adapter/adapters.npz", True),
        ("0000100_adapters.npz", "adapter/0000100_adapters.npz", False),
    ],
)
def test_mlx_factors_are_turned_and_scaled_as_the_config_says(
    file: str, path: str, dora: bool, tmp_path: Path
) -> None:
    base = b.llama(tmp_path / "base", dtype=torch.float32)
    tensors = mlx(tmp_path / "adapter", dora=dora, file=file)
    recipe = lorabake.load_recipe(b.recipe(tmp_path, base="base", loras=[path], output={"path": "out"}))
    lorabake.bake(recipe, lorabake.RunOptions(fsync=False))
    out = load_file(tmp_path / "out" / "model.safetensors")
    for name in (MLX_Q, MLX_DOWN):
        down, up = tensors[f"{name}.lora_a"].double(), tensors[f"{name}.lora_b"].double()
        exact = base[f"{name}.weight"].double() + 2.5 * torch.einsum("ir,ro->oi", down, up)
        if dora:
            exact = exact / exact.norm(dim=1, keepdim=True) * tensors[f"{name}.m"].double()[:, None]
        b.assert_rounded_once(out[f"{name}.weight"], exact, terms=[base[f"{name}.weight"], torch.tensor(20.0)])
    changed = [key for key, tensor in base.items() if not torch.equal(tensor, out[key])]
    assert changed == [f"{MLX_Q}.weight", f"{MLX_DOWN}.weight"]
    options = lorabake.VerifyOptions(stages=("structure", "weights"))
    assert lorabake.verify(recipe, options=options).exit_code == 0
    described = inspect(tmp_path / path)
    assert (described["what"], described["ranks"]) == ("lora", {"3": 2})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"fine_tune_type": "full"}, "fine_tune_type is 'full': only lora and dora can be baked"),
        ({"lora_parameters": [3]}, "lora_parameters must be a mapping"),
        ({"lora_parameters": {"scale": "20"}}, "lora_parameters.scale must be a finite number, not '20'"),
        ({"fine_tune_type": "dora"}, "use_dora, and there is no magnitude"),
        ({"lora_parameters": {"rank": 3, "alpha": 16}}, "an alpha and no scale, without which MLX-LM cannot load it"),
    ],
)
def test_an_mlx_config_that_does_not_go_is_refused(config: dict[str, object], words: str, tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    mlx(tmp_path / "adapter", config=config)
    recipe = lorabake.load_recipe(b.recipe(tmp_path, base="base", loras=["adapter"], output={"path": "out"}))
    with pytest.raises(LorabakeError, match=re.escape(words)):
        lorabake.plan(recipe)


@pytest.mark.parametrize("tokens", [12, 6])
def test_mlx_factors_of_an_embedding_lie_straight(tokens: int, tmp_path: Path) -> None:
    base = {
        "model.embed_tokens.weight": b.Values(1)(tokens, 6),
        "model.layers.0.mlp.up_proj.weight": b.Values(2)(6, 6),
    }
    (tmp_path / "base").mkdir()
    b.save(tmp_path / "base" / "model.safetensors", base)
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": true}')
    a, product = b.Values(3)(tokens, 3), b.Values(4)(3, 6)
    (tmp_path / "adapter").mkdir()
    names = {"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": product}
    b.save(tmp_path / "adapter" / "adapters.safetensors", names)
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"lora_parameters": {"rank": 3, "scale": 2.5}}')
    recipe = lorabake.load_recipe(b.recipe(tmp_path, base="base", loras=["adapter"], output={"path": "out"}))
    lorabake.bake(recipe, lorabake.RunOptions(fsync=False))
    found = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(found, base["model.embed_tokens.weight"] + 2.5 * a @ product)
    assert lorabake.verify(recipe, options=lorabake.VerifyOptions(stages=("structure", "weights"))).is_true


def test_the_scale_of_mlx_is_20_unless_it_is_said() -> None:
    assert read_config({"lora_parameters": {"rank": 8}}, "c", {}).scale_of("x") == 20
    assert read_config({"lora_parameters": {"scale": 0.1}}, "c", {}).scale_of("x") == 0.1


# -- fused projections -------------------------------------------------------------------------------------------

PROJECTIONS = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
OTHERWISE_NAMED = {"Kandinsky 5", "PRX"}
"""Families whose queries, keys and values have other names in diffusers, too."""


def rows(base: BaseNames, names: Iterable[str]) -> list[tuple[str, int]]:
    """List the rows of the base that names mean, one after the other."""
    found = [base.spelled[name][0].views["weight"] for name in names]
    return [(place.key, row) for view in found for place in view.regions for row in range(place.start, place.stop)]


@pytest.mark.parametrize("family", GOLD)
def test_what_diffusers_fuses_leads_to_its_parts_in_each_layout(family: str) -> None:
    for base in bases(family).values():
        component = base.key_map.architecture.components[0]
        start = component.dotted[0] if component.dotted else ""
        sorts = {pattern_of(name): name for name in base.key_map.modules[component.name]}
        proven = set()
        for name in sorts.values():
            stem, _, last = name.rpartition(".")
            for fused, parts in PROJECTIONS.items():
                found = [f"{start}{stem}.{part}" for part in parts]
                if last == parts[0] and all(each in base.spelled for each in found):
                    columns = {base.spelled[each][0].views["weight"].shape[1:] for each in found}
                    assert (f"{start}{stem}.{fused}" in base.spelled) == (len(columns) == 1)
                    if len(columns) == 1:
                        assert rows(base, [f"{start}{stem}.{fused}"]) == rows(base, found)
                        proven.add(fused)
        assert ("to_qkv" in proven) == (family not in OTHERWISE_NAMED)


# -- files that cannot be baked, and why -------------------------------------------------------------------------

LLAMA = {"model.layers.0.self_attn.q_proj.weight": (8, 8)}
REFUSED = {
    "MLX without its config": (
        {f"{MLX_Q}.lora_a": (8, 2), f"{MLX_Q}.lora_b": (2, 8)},
        "MLX-LM's adapter_config.json is not there: it has the scale; put it beside the file, or write one that says "
        '{"lora_parameters": {"scale": …}}',
    ),
    "nunchaku": (
        {"transformer_blocks.0.qkv_proj.lora_down": (16, 8), "transformer_blocks.0.qkv_proj.lora_up": (24, 16)},
        "nunchaku packs a LoRA for one kernel; bake the LoRA that it was made of",
    ),
    "HCP-Diffusion": (
        {
            "down_blocks.0.attentions.0.proj_in.___.layer.W_down": (2, 8),
            "down_blocks.0.attentions.0.proj_in.___.layer.W_up": (8, 2),
        },
        "HCP-Diffusion's scale cannot be told from the file",
    ),
    "Stability's Control-LoRA": (
        {
            "lora_controlnet": (0,),
            "input_blocks.1.0.in_layers.2.up": (8, 2),
            "input_blocks.1.0.in_layers.2.down": (2, 8),
        },
        "is a Control-LoRA, not a LoRA",
    ),
}


@pytest.mark.parametrize("format_", REFUSED)
def test_what_cannot_be_baked_is_refused_in_one_line(format_: str) -> None:
    shapes, reason = REFUSED[format_]
    base = infos(LLAMA)
    with pytest.raises(MatchError) as caught:
        matched(BaseNames(KeyMap.expand(identify(base), base)), source(infos(shapes)))
    assert str(caught.value).splitlines()[0] == f"LoRA 'style': {reason}"


# -- the page ----------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "formats.md"
EXAMPLES = {
    "kohya, musubi-tuner: `lora_unet_`, own names": "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    "musubi-tuner: `lora_unet__`": "lora_unet__blocks_0_self_attn_q.lora_down.weight",
    "kohya: `lora_unet_`, diffusers' names": "lora_unet_layers_0_attention_to_q.lora_down.weight",
    "LyCORIS, SimpleTuner: `lycoris_`": "lycoris_transformer_blocks_0_attn_to_q.lora_down.weight",
    "OneTrainer: `lora_transformer_`": "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight",
    "OneTrainer: `lora_prior_unet_`": "lora_prior_unet_down_blocks_0_2_attention_to_q.lora_down.weight",
    "OneTrainer: slices by number": "transformer.double_blocks.0.img_attn.qkv.0.lora_down.weight",
    "diffusers, SimpleTuner, ai-toolkit: `transformer.`": "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
    "diffusers: `unet.`": "unet.down_blocks.0.attentions.0.proj_in.lora_A.weight",
    "diffusers ≤ 0.26: `unet.`": "unet.down_blocks.0.attentions.0.proj_in.lora.down.weight",
    "ComfyUI, ai-toolkit, diffusion-pipe: `diffusion_model.`": "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
    "PEFT: `base_model.model.`": "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight",
    "fal, PEFT on own names": "base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight",
    "no prefix": "transformer_blocks.0.attn.to_q.lora_A.weight",
    "kohya: `lora_te…`": "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    "OneTrainer: `lora_te2_` is T5": "lora_te2_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight",
    "diffusers: `text_encoder….`": "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    "ComfyUI: `text_encoders.….`": "text_encoders.clip_l.transformer.text_model.….lora_A.weight",
    "XLabs, USO": "double_blocks.0.processor.qkv_lora1.down.weight",
    "DiffSynth-Studio": "blocks.0.attn.a_to_qkv.lora_A.default.weight",
    "kohya with `split_qkv`": "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    "AnimateDiff's motion LoRA": "down_blocks.0.motion_modules.0.….processor.to_q_lora.down.weight",
    "MLX-LM, also its `.npz`": "model.layers.0.self_attn.q_proj.lora_a",
    "torchtune": "layers.0.attn.q_proj.lora_a.weight",
    "litgpt": "transformer.h.0.attn.qkv.lora_A",
    "llama.cpp (GGUF)": "blk.0.attn_q.weight.lora_a",
}


NAMES = """\
A whole difference has the suffix `.diff` or `.diff_b`. A value that is set has `.set_weight`. These suffixes
can follow the full name of any tensor of the base: `scale_shift_table.diff`, `img_in.bias.diff`. LightX2V
writes `blocks.0.diff_m` for `blocks.0.modulation.diff`.

Some families have queries, keys and values under diffusers' names. They also have the fused names of
diffusers and SimpleTuner ({fused}). This holds in every layout, and also if keys and values have fewer heads.
{but} have no such names. For language models, `qkv_proj` and `gate_up_proj` stand for their parts.

The names of a language model alone also fit the text part of a model that sees or hears, and the reverse:
`model.layers.0…`, `model.language_model.layers.0…`, `language_model.model.layers.0…`.

A name may be flattened in part (`lora_unet_blocks_0.cross_attn.k`), and it may end with `_`. Training wraps
modules in others: `module.`, `_orig_mod.`, `_fsdp_wrapped_module.`, `_checkpoint_wrapped_module.`,
`_forward_module.` and similar ones. These words are left out of a name, wherever they stand in it, with dots
or flattened. If the rest could mean two modules of the base, an error names both.
"""


def page() -> str:
    """Write docs/formats.md: each mark stands for a test of this file."""
    proven: dict[str, set[str]] = {}
    for format_, family, *_ in (*CELLS, *TEXT_CELLS):
        proven.setdefault(format_, set()).add(family)
    for format_ in LANGUAGE_FORMATS:
        proven.setdefault(format_, set()).update(LANGUAGE)
    proven |= {format_: set(families) for format_, families in OTHERS.items()}
    families = list(dict.fromkeys((*GOLD, *(name for names in OTHERS.values() for name in names))))
    letters = dict(zip(EXAMPLES, "abcdefghijklmnopqrstuvwxyz", strict=False))
    lines = [
        "# LoRA file formats",
        "",
        "Whose LoRAs lorabake reads, for each family. `tests/test_formats.py` writes this page, and tests each ●:",
        "it writes names as the trainer does, and finds the rows of the base that were trained, in each layout of",
        "the base.",
        "",
        "| | format | for example |",
        "|---|---|---|",
        *(f"| {letters[name]} | {name} | `{example}` |" for name, example in EXAMPLES.items()),
        "",
        f"| family | {' | '.join(letters.values())} |",
        "|---|" + "---|" * len(letters),
        *(
            f"| {family} | {' | '.join('●' if family in proven[name] else '' for name in letters)} |"
            for family in families
        ),
        "",
        "Each of these suffixes can follow any prefix: `.lora_down.weight`, `.lora_A.weight`,",
        "`.lora_A.default.weight`, `.lora.down.weight`, `_lora.down.weight`, `.lora_linear_layer.down.weight`,",
        "and the same with up or B. cloneofsimo's files number their modules (`unet:0:down`). They are read for",
        "Stable Diffusion 1.x and 2.x.",
        "",
        NAMES.format(fused=", ".join(f"`{name}`" for name in PROJECTIONS), but=" and ".join(sorted(OTHERWISE_NAMED))),
        "These are refused, because nothing in the file says how to bake it. The error gives the reason:",
        "",
        *(f"- **{name}**: {reason}." for name, (_, reason) in REFUSED.items()),
        "",
    ]
    return "\n".join(lines)


def test_the_page_says_what_is_proven() -> None:
    proven = {cell[0] for cell in (*CELLS, *TEXT_CELLS)} | LANGUAGE_FORMATS.keys() | OTHERS.keys()
    assert proven == EXAMPLES.keys()
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.test_formats"


@pytest.mark.parametrize("format_", EXAMPLES)
def test_the_examples_of_the_page_are_of_a_known_form(format_: str) -> None:
    found = sort_tensors(infos({EXAMPLES[format_]: (2, 8)}).values(), suffixes())
    (module,) = found.modules.values()
    assert module.slots.keys() <= {"down", "lora_a"}


# -- whose is it --------------------------------------------------------------------------------------------------

SHARED = Path(__file__).parents[2] / "shared" / "headers"
OF_NO_FAMILY = {  # parts of checkpoints, and files whose keys name no family
    "arenasys_depth_v2_sd",
    "arenasys_unet_v1_ema",
    "arenasys_unet_v1_pix2pix_ema",
    "arenasys_vae_v1_sd",
    "diffusers_sd15_vae",
    "invoke_flux2_vae_bfl_keys",
    "stripped_clip_vit_large_patch14_model",
    "stripped_juggernaut_xl_v9_vae_diffusion_pytorch_model_fp16",
    "transformers_t5xxl_encoder",
}


@pytest.mark.parametrize("table", names("checkpoint"))
def test_a_header_is_of_one_family(table: str) -> None:
    assert len(fitting(load_table(table))) == (table not in OF_NO_FAMILY)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no such folder")
def test_headers_that_do_not_come_with_the_tests_are_of_one_family_too() -> None:
    for path in sorted(SHARED.glob("*.json")):
        table = json.loads(path.read_text())
        if table["kind"] == "checkpoint":
            assert len(fitting(infos(table["tensors"]))) == (path.stem not in OF_NO_FAMILY), path.stem


def fitting(tensors: dict[str, TensorInfo]) -> list[str]:
    known = [each for each in architectures() if each.components and each.name != GENERIC]
    return [each.name for each in known if each.fits(tensors)]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
