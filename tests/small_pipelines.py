"""Small pipelines whose networks have the families' real structure, so that diffusers' single-file code reads them.

Only widths and depths are small: as small as the families' own numbers of heads and groups allow.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lorabake.verification.samples.tokenizers import clip_tokenizer
from tests.pipelines import words

TEXT, TEXT_2 = 64, 128
"""Widths of the text encoders, of one head and of two: diffusers tells them apart by their widths."""


def clip(width: int = TEXT, *, projects: bool = False, act: str = "quick_gelu") -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=96, num_attention_heads=width // 64, num_hidden_layers=2,
        vocab_size=49408, projection_dim=width, bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
        hidden_act=act,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projects else CLIPTextModel)(config)


def t5(width: int = TEXT) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        d_model=width, d_ff=96, d_kv=16, num_heads=2, num_layers=2, vocab_size=99, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    return T5EncoderModel(config)


def vae(channels: int = 4, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[32, 32, 64, 64], layers_per_block=2, latent_channels=channels, norm_num_groups=32,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, **options,
    )  # fmt: skip


def ddim(prediction: str = "epsilon") -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(prediction_type=prediction)


def four_levels(widths: list[int], heads: int | list[int], *, linear: bool) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=widths, attention_head_dim=heads, cross_attention_dim=TEXT, use_linear_projection=linear,
        sample_size=8,
    )  # fmt: skip


def sd1() -> dict[str, Any]:
    return {
        "unet": four_levels([32, 64, 64, 64], 8, linear=False), "vae": vae(), "text_encoder": clip(),
        "scheduler": ddim(), "tokenizer": clip_tokenizer(), "safety_checker": None, "feature_extractor": None,
    }  # fmt: skip


def sd2() -> dict[str, Any]:
    return {
        "unet": four_levels([160] * 4, [5, 10, 20, 20], linear=True), "vae": vae(),
        "text_encoder": clip(act="gelu"), "scheduler": ddim("v_prediction"), "tokenizer": clip_tokenizer("!"),
        "safety_checker": None, "feature_extractor": None,
    }  # fmt: skip


def sdxl() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=[32, 160, 160], attention_head_dim=[5, 10, 20], cross_attention_dim=TEXT + TEXT_2,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=6 * 256 + TEXT_2,
        transformer_layers_per_block=[1, 2, 10], use_linear_projection=True, sample_size=8,
    )  # fmt: skip
    return {
        "unet": unet, "vae": vae(), "text_encoder": clip(), "text_encoder_2": clip(TEXT_2, projects=True, act="gelu"),
        "scheduler": ddim(), "tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer("!"),
    }  # fmt: skip


def flow() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


OWN_VAE = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.0609}


def sd3() -> dict[str, Any]:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=64,
        num_attention_heads=2, caption_projection_dim=128, joint_attention_dim=TEXT + TEXT_2,
        pooled_projection_dim=TEXT + TEXT_2, pos_embed_max_size=12, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    first = clip(projects=True)
    torch.nn.init.eye_(
        first.text_projection.weight
    )  # as published; `from_single_file` puts it there whatever it reads
    return {
        "transformer": transformer, "vae": vae(16, **OWN_VAE), "scheduler": flow(),
        "text_encoder": first, "text_encoder_2": clip(TEXT_2, projects=True, act="gelu"),
        "text_encoder_3": t5(TEXT + TEXT_2), "tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer("!"),
        "tokenizer_3": words(),
    }  # fmt: skip


def flux() -> dict[str, Any]:
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=128, num_attention_heads=1,
        joint_attention_dim=TEXT, pooled_projection_dim=TEXT, guidance_embeds=True,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae(16, **OWN_VAE), "scheduler": flow(), "text_encoder": clip(),
        "text_encoder_2": t5(), "tokenizer": clip_tokenizer(), "tokenizer_2": words(),
    }  # fmt: skip


FAMILIES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "sd1": ("StableDiffusionPipeline", sd1),
    "sd2": ("StableDiffusionPipeline", sd2),
    "sdxl": ("StableDiffusionXLPipeline", sdxl),
    "sd3": ("StableDiffusion3Pipeline", sd3),
    "flux": ("FluxPipeline", flux),
}
"""By architecture: the pipeline's class, and what makes its components."""


def save(folder: Path, family: str) -> Any:
    """Write a family's pipeline as a diffusers folder in float16, and return it."""
    import diffusers

    torch.manual_seed(0)
    name, build = FAMILIES[family]
    parts = build()
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to(torch.float16).eval()
    more = {"requires_safety_checker": False} if "safety_checker" in parts else {}
    pipeline = getattr(diffusers, name)(**parts, **more)
    pipeline.save_pretrained(folder)
    return pipeline
