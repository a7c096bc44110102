"""Tiny random pipelines of diffusers' own classes, one a family, built in code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

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


def clip(width: int = 32, *, projects: bool = False, length: int = 77) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=99,
        projection_dim=32, bos_token_id=3, eos_token_id=1, pad_token_id=0, max_position_embeddings=length,
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


EIGHTFOLD = {
    "block_out_channels": [4] * 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def flow(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def sd3() -> Parts:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
        qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": kl_vae(), "scheduler": flow(),
        "text_encoder": clip(projects=True), "text_encoder_2": clip(projects=True), "text_encoder_3": t5(),
        "tokenizer": words(), "tokenizer_2": words(), "tokenizer_3": words(),
    }  # fmt: skip


def flux() -> Parts:
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": kl_vae(1), "scheduler": flow(), "text_encoder": clip(),
        "text_encoder_2": t5(), "tokenizer": words(), "tokenizer_2": words(),
    }  # fmt: skip


def language_model(kind: str, width: int = 16, **options: Any) -> Any:
    """Make a small language model of transformers by the stem of its classes: Qwen3, Gemma2, Llama, Glm …"""
    import transformers

    name = kind.removesuffix("Model").removesuffix("ForCausalLM")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=width, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, vocab_size=99, max_position_embeddings=512, bos_token_id=3, eos_token_id=1, pad_token_id=0,
        **options,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def qwen_vl(width: int = 16) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "hidden_size": width, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 99, "rope_scaling": {"mrope_section": [1, 1, 2], "type": "mrope"},
    }  # fmt: skip
    seen = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
        "fullatt_block_indexes": [0], "window_size": 56,
    }  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=seen, image_token_id=90, video_token_id=91)
    )


def umt5(width: int = 32) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(d_model=width, d_ff=37, d_kv=8, num_heads=4, num_layers=2, vocab_size=99))


CHAT = "{% for each in messages %}{{ each['role'] }}: {{ each['content'] }}\n{% endfor %}"


def flux2() -> Parts:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16 * 3, timestep_guidance_channels=16, axes_dims_rope=[4, 4, 4, 4], guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"], block_out_channels=[4],
        layers_per_block=1, latent_channels=1, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
        sample_size=32,
    )  # fmt: skip
    # diffusers reads the states after layers 9, 18 and 27.
    encoder = language_model("Qwen3ForCausalLM")
    encoder = type(encoder)(
        type(encoder.config)(**{**encoder.config.to_dict(), "num_hidden_layers": 27, "layer_types": None})
    )
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(), "text_encoder": encoder,
        "tokenizer": words(64, chat_template=CHAT),
    }  # fmt: skip


def qwen_image() -> Parts:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(), "text_encoder": qwen_vl(),
        "tokenizer": words(999),
    }  # fmt: skip


def z_image() -> Parts:
    from diffusers import ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": kl_vae(16), "scheduler": flow(),
        "text_encoder": language_model("Qwen3Model"),
        "tokenizer": words(chat_template=CHAT),
    }  # fmt: skip


def wan_vae() -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def wan() -> Parts:
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=32, freq_dim=256, ffn_dim=32, num_layers=2,
        rope_max_seq_len=32,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": wan_vae(), "scheduler": flow(shift=7.0), "text_encoder": umt5(),
        "tokenizer": words(),
    }  # fmt: skip


def pixart() -> Parts:
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": kl_vae(shift_factor=None), "scheduler": DPMSolverMultistepScheduler(),
        "text_encoder": t5(), "tokenizer": words(),
    }  # fmt: skip


def sana() -> Parts:
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4, sample_size=32,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=16,
    )  # fmt: skip
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", scaling_factor=0.41407,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(shift=7.0),
        "text_encoder": language_model("Gemma2Model"), "tokenizer": words(),
    }  # fmt: skip


def auraflow() -> Parts:
    from diffusers import AuraFlowTransformer2DModel

    transformer = AuraFlowTransformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, out_channels=4,
        pos_embed_max_size=256,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": kl_vae(shift_factor=None), "scheduler": flow(), "text_encoder": umt5(),
        "tokenizer": words(),
    }  # fmt: skip


def lumina2() -> Parts:
    from diffusers import Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(512, 128, 128),
        cap_feat_dim=16,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": kl_vae(), "scheduler": flow(),
        "text_encoder": language_model("Gemma2Model"), "tokenizer": words(256),
    }  # fmt: skip


def ltx() -> Parts:
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False,
        False),
        patch_size=1, encoder_causal=True,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(), "text_encoder": t5(), "tokenizer": words(),
    }  # fmt: skip


def hunyuan_vae(channels: int = 4) -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        latent_channels=channels, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=4,
    )  # fmt: skip


def hunyuan_video() -> Parts:
    from diffusers import HunyuanVideoTransformer3DModel

    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1, patch_size=1, guidance_embeds=True, text_embed_dim=16, pooled_projection_dim=32,
        rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": hunyuan_vae(), "scheduler": flow(shift=7.0),
        "text_encoder": language_model("LlamaModel"), "text_encoder_2": clip(), "tokenizer": words(999),
        "tokenizer_2": words(),
    }  # fmt: skip


def chroma() -> Parts:
    from diffusers import ChromaTransformer2DModel

    transformer = ChromaTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
        approximator_num_channels=16,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": kl_vae(1), "scheduler": flow(), "text_encoder": t5(), "tokenizer": words(),
    }  # fmt: skip


def cogview4() -> Parts:
    from diffusers import CogView4Transformer2DModel

    transformer = CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4,
        text_embed_dim=16, time_embed_dim=8, condition_dim=4,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": kl_vae(), "scheduler": flow(base_shift=0.25, max_shift=0.75),
        "text_encoder": language_model("GlmModel"), "tokenizer": words(),
    }  # fmt: skip


def cogvideox() -> Parts:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel

    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1, sample_width=4, sample_height=4, sample_frames=1, patch_size=2, max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "scheduler": CogVideoXDDIMScheduler(), "text_encoder": t5(),
        "tokenizer": words(),
    }  # fmt: skip


def hunyuandit() -> Parts:
    from diffusers import DDPMScheduler, HunyuanDiT2DModel
    from transformers import BertConfig, BertModel

    transformer = HunyuanDiT2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=24,
        activation_fn="gelu-approximate",
    )  # fmt: skip
    bert = BertModel(
        BertConfig(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, vocab_size=99)
    )
    return {
        "transformer": transformer, "vae": kl_vae(shift_factor=None, **EIGHTFOLD), "scheduler": DDPMScheduler(),
        "text_encoder": bert,
        "tokenizer": words(77), "text_encoder_2": t5(), "tokenizer_2": words(256), "safety_checker": None,
        "feature_extractor": None,
    }  # fmt: skip


def hunyuan_image() -> Parts:
    from diffusers import AdaptiveProjectedMixGuidance, AutoencoderKLHunyuanImage, HunyuanImageTransformer2DModel

    transformer = HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=32, rope_axes_dim=(4, 6),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        spatial_compression_ratio=2, sample_size=32, scaling_factor=0.75,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(shift=7.0), "text_encoder": qwen_vl(),
        "tokenizer": words(1999), "text_encoder_2": t5(), "tokenizer_2": words(),
        "guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
        "ocr_guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
    }  # fmt: skip


def mochi() -> Parts:
    from diffusers import AutoencoderKLMochi, MochiTransformer3DModel

    transformer = MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    vae = AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(), "text_encoder": t5(), "tokenizer": words(),
    }  # fmt: skip


def hidream() -> Parts:
    from diffusers import HiDreamImageTransformer2DModel

    transformer = HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_channels=[32, 16], text_emb_dim=64, num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=(0, 1),
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": kl_vae(), "scheduler": flow(), "text_encoder": clip(projects=True,
        length=218),
        "text_encoder_2": clip(projects=True, length=218), "text_encoder_3": t5(),
        "text_encoder_4": language_model("LlamaForCausalLM"),
        "tokenizer": words(), "tokenizer_2": words(), "tokenizer_3": words(), "tokenizer_4": words(),
    }  # fmt: skip


def kandinsky5() -> Parts:
    from diffusers import Kandinsky5Transformer3DModel

    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=16, in_text_dim=16, in_text_dim2=32, time_dim=16, out_visual_dim=16, model_dim=16, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=2, axes_dims=(1, 1, 2),
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": kl_vae(16), "scheduler": flow(), "text_encoder": qwen_vl(),
        "tokenizer": words(999), "text_encoder_2": clip(), "tokenizer_2": words(),
    }  # fmt: skip


def ltx2() -> Parts:
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    seen = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "image_size": 14,
            "patch_size": 14}  # fmt: skip
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 99}  # fmt: skip
    encoder = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=seen, mm_tokens_per_image=1, image_token_index=90)
    )
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=2, caption_channels=16, rope_double_precision=False,
        rope_type="split",
    )  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=16, text_proj_in_factor=3, video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=4, video_connector_num_layers=1, audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=4, audio_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_theta=10000.0,
        rope_double_precision=False, causal_temporal_positioning=False, rope_type="split",
    )  # fmt: skip
    vae = AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), patch_size=1, patch_size_t=1,
    )  # fmt: skip
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2,
        resolution=32, latent_channels=2, mid_block_add_attention=False, mel_bins=8,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "audio_vae": audio_vae, "vocoder": vocoder, "connectors": connectors,
        "scheduler": flow(), "text_encoder": encoder, "tokenizer": words(64),
    }  # fmt: skip


def stable_cascade() -> Parts:
    from diffusers import DDPMWuerstchenScheduler
    from diffusers.models import StableCascadeUNet

    prior = StableCascadeUNet(
        conditioning_dim=128, block_out_channels=(128, 128), num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), clip_image_in_channels=768,
        switch_level=(False,), clip_text_in_channels=32, clip_text_pooled_in_channels=32,
    )  # fmt: skip
    return {
        "prior": prior, "scheduler": DDPMWuerstchenScheduler(), "text_encoder": clip(projects=True),
        "tokenizer": words(77),
    }  # fmt: skip


FAMILIES: dict[str, tuple[str, Callable[[], Parts]]] = {
    "sd3": ("StableDiffusion3Pipeline", sd3),
    "flux": ("FluxPipeline", flux),
    "flux2": ("Flux2KleinPipeline", flux2),
    "qwen_image": ("QwenImagePipeline", qwen_image),
    "z_image": ("ZImagePipeline", z_image),
    "wan": ("WanPipeline", wan),
    "pixart": ("PixArtSigmaPipeline", pixart),
    "sana": ("SanaPipeline", sana),
    "auraflow": ("AuraFlowPipeline", auraflow),
    "lumina2": ("Lumina2Pipeline", lumina2),
    "ltx": ("LTXPipeline", ltx),
    "hunyuan_video": ("HunyuanVideoPipeline", hunyuan_video),
    "chroma": ("ChromaPipeline", chroma),
    "cogview4": ("CogView4Pipeline", cogview4),
    "cogvideox": ("CogVideoXPipeline", cogvideox),
    "hunyuandit": ("HunyuanDiTPipeline", hunyuandit),
    "hunyuan_image": ("HunyuanImagePipeline", hunyuan_image),
    "ltx2": ("LTX2Pipeline", ltx2),
    "stable_cascade": ("StableCascadePriorPipeline", stable_cascade),
    "mochi": ("MochiPipeline", mochi),
    "hidream": ("HiDreamImagePipeline", hidream),
    "kandinsky5": ("Kandinsky5T2IPipeline", kandinsky5),
}
"""By architecture: the pipeline's class, and its components."""

NO_LOADER = "lorabake's formulas"
REFERENCES = {"pixart": NO_LOADER, "hunyuandit": NO_LOADER, "stable_cascade": NO_LOADER}
"""Families whose LoRAs diffusers does not load."""


def save(folder: Path, family: str) -> Any:
    """Write a family's pipeline as a diffusers folder, with random weights; return the pipeline."""
    import diffusers

    torch.manual_seed(0)
    name, build = FAMILIES[family]
    with catch_warnings():
        simplefilter("ignore", FutureWarning)
        parts = build()
    for each in parts.values():
        if isinstance(each, torch.nn.Module):
            each.eval()
            for parameter in each.parameters():  # nothing starts as zeros, or no LoRA would be seen
                if parameter.min() == parameter.max():
                    torch.nn.init.normal_(parameter, 1.0 if parameter.mean() == 1 else 0.0, 0.05)
    pipeline = getattr(diffusers, name)(**parts)
    pipeline.save_pretrained(folder)
    return pipeline
