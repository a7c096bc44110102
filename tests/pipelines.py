"""Tiny random pipelines of diffusers' own classes, one a family, built in code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Parts = dict[str, Any]


def words(length: int = 16, **options: Any) -> Any:
    """Make a tokenizer that spells: one token a letter."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", "<unk>", "<bos>", *(chr(code) for code in range(32, 127))]
    made = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "bos_token": "<bos>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=length, **special, **options)


def clip(width: int = 32, *, projects: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=99,
        projection_dim=32, bos_token_id=3, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projects else CLIPTextModel)(config)


def t5(width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            d_model=width, d_ff=37, d_kv=8, num_heads=4, num_layers=2, vocab_size=99, relative_attention_num_buckets=8
        )
    )


def kl_vae(channels: int = 4, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    said = {
        "block_out_channels": [4], "layers_per_block": 1, "latent_channels": channels, "norm_num_groups": 1,
        "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"], "use_quant_conv": False,
        "use_post_quant_conv": False, "shift_factor": 0.0609, "scaling_factor": 1.5035, "sample_size": 32,
    }  # fmt: skip
    return AutoencoderKL(**{**said, **options})


def flow(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def sd3() -> tuple[str, Parts]:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
        qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    return "StableDiffusion3Pipeline", {
        "transformer": transformer, "vae": kl_vae(), "scheduler": flow(),
        "text_encoder": clip(projects=True), "text_encoder_2": clip(projects=True), "text_encoder_3": t5(),
        "tokenizer": words(), "tokenizer_2": words(), "tokenizer_3": words(),
    }  # fmt: skip


def flux() -> tuple[str, Parts]:
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    return "FluxPipeline", {
        "transformer": transformer, "vae": kl_vae(1), "scheduler": flow(), "text_encoder": clip(),
        "text_encoder_2": t5(), "tokenizer": words(), "tokenizer_2": words(),
    }  # fmt: skip


FAMILIES: dict[str, Callable[[], tuple[str, Parts]]] = {each.__name__: each for each in (sd3, flux)}
"""By architecture: the pipeline's class and its components."""


def save(folder: Path, family: str) -> Any:
    """Write a family's pipeline as a diffusers folder, with random weights; return the pipeline."""
    import diffusers

    torch.manual_seed(0)
    name, parts = FAMILIES[family]()
    for each in parts.values():
        if isinstance(each, torch.nn.Module):
            each.eval()
            for parameter in each.parameters():  # nothing starts as zeros, or no LoRA would be seen
                if parameter.std().nan_to_num() == 0:
                    torch.nn.init.normal_(parameter, 1.0 if parameter.mean() == 1 else 0.0, 0.05)
    pipeline = getattr(diffusers, name)(**parts)
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index))
    return pipeline
