"""The demo's networks: Stable Diffusion 1.x in miniature, as one file in the names of the LDM code.

The structure is the real one's; the widths are not, nor are the groups of the norms: 8, for layers of 32 channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from lorabake.components.unet import FOUR_LEVELS
from lorabake.components.vae import ROWS
from lorabake.keymap.table import Row

SCALE = 0.18215
"""What SD 1.x multiplies latents by, so that they have unit variance."""

UNET = {
    "sample_size": 8,
    "block_out_channels": [64, 32, 32, 32],
    "layers_per_block": 2,
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
VAE = {
    "sample_size": 64,
    "block_out_channels": [32, 32, 32, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": SCALE,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "projection_dim": 64,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def networks() -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """Make the three networks with fresh weights."""
    return UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), CLIPTextModel(CLIPTextConfig(**TEXT))


def save_configs(folder: Path, unet: UNet2DConditionModel, vae: AutoencoderKL, text: CLIPTextModel) -> None:
    """Write what the weights do not tell, as a pipeline's folder of configurations."""
    scheduler = DDIMScheduler(**SCHEDULE)
    unset = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(vae, text, None, unet, scheduler, **unset).save_config(folder)
    unet.save_config(folder / "unet")
    vae.save_config(folder / "vae")
    text.config.save_pretrained(folder / "text_encoder")
    scheduler.save_config(folder / "scheduler")


def save_ldm(
    path: Path, unet: UNet2DConditionModel, vae: AutoencoderKL, text: CLIPTextModel, metadata: Mapping[str, str]
) -> None:
    """Write the networks as one float16 file with the names of the LDM code."""
    made: dict[str, torch.Tensor] = {}
    for key, tensor in unet.state_dict().items():
        made[f"model.diffusion_model.{renamed(key, FOUR_LEVELS)}"] = tensor
    for key, tensor in vae.state_dict().items():
        name = renamed(key, ROWS)
        is_projection = ".attn_1." in name and tensor.ndim == 2  # the LDM code has 1×1 convolutions there
        made[f"first_stage_model.{name}"] = tensor[:, :, None, None] if is_projection else tensor
    for key, tensor in text.state_dict().items():
        name = key if key.startswith("text_model.") else f"text_model.{key}"
        made[f"cond_stage_model.transformer.{name}"] = tensor
    save_file({key: tensor.half().contiguous() for key, tensor in made.items()}, path, metadata=dict(metadata))


def renamed(key: str, rows: Iterable[Row]) -> str:
    """Rename one key of diffusers as the LDM code has it, by lorabake's tables."""
    for row in rows:
        ldm, diffusers = str(row.names[0]), str(row.names[1])
        pattern = re.escape(diffusers).replace(r"\{\}", r"(\d+)")
        if found := re.match(rf"{pattern}\.(.+)", key):
            *numbers, rest = found.groups()
            return f"{ldm.format(*numbers)}.{renamed(rest, row.rows)}"
    return key
