"""Every network that diffusers has a class for: its own family recognises it, or none does.

The networks are made without memory (on PyTorch's meta device), one layer deep where their configuration lets them.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.models import controlnets, transformers, unets  # noqa: E402
from diffusers.models.modeling_utils import ModelMixin, no_init_weights  # noqa: E402

from lorabake.architectures import architectures  # noqa: E402
from lorabake.sources.family import GENERIC  # noqa: E402
from lorabake.tensors.header import TensorInfo  # noqa: E402
from tests.tables import infos  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
FAMILIES = [each for each in architectures() if each.components and each.name != GENERIC]

# class -> the family that knows it; classes that are not here are of no family.
KNOWN = {
    "AceStepTransformer1DModel": "ace_step",
    "AnyFlowFARTransformer3DModel": "wan",
    "AnyFlowTransformer3DModel": "wan",
    "AuraFlowTransformer2DModel": "auraflow",
    "BriaFibo2Transformer2DModel": "bria_fibo2",
    "BriaFiboTransformer2DModel": "bria_fibo",
    "ChromaTransformer2DModel": "chroma",
    "ChronoEditTransformer3DModel": "wan",
    "CogVideoXTransformer3DModel": "cogvideox",
    "CogView3PlusTransformer2DModel": "cogview3plus",
    "CogView4Transformer2DModel": "cogview4",
    "ConsisIDTransformer3DModel": "cogvideox",
    "ControlNetModel": "controlnet",
    "ControlNetUnionModel": "controlnet_xl",
    "CosmosControlNetModel": "controlnet_cosmos",
    "CosmosTransformer3DModel": "cosmos1",
    "ErnieImageTransformer2DModel": "ernie_image",
    "Flux2Transformer2DModel": "flux2",
    "Flux3Transformer2DModel": "flux3",
    "FluxControlNetModel": "controlnet_flux",
    "FluxTransformer2DModel": "flux",
    "HeliosTransformer3DModel": "helios",
    "HiDreamImageTransformer2DModel": "hidream",
    "HunyuanDiT2DControlNetModel": "controlnet_hunyuandit",
    "HunyuanDiT2DModel": "hunyuandit",
    "HunyuanImageTransformer2DModel": "hunyuan_image",
    "HunyuanVideo15Transformer3DModel": "hunyuan_video15",
    "HunyuanVideoFramepackTransformer3DModel": "hunyuan_video",
    "HunyuanVideoTransformer3DModel": "hunyuan_video",
    "Ideogram4Transformer2DModel": "ideogram4",
    "Kandinsky3UNet": "kandinsky3",
    "Kandinsky5Transformer3DModel": "kandinsky5",
    "Krea2Transformer2DModel": "krea2",
    "LTX2VideoTransformer3DModel": "ltx2",
    "LTXVideoTransformer3DModel": "ltx",
    "Lumina2Transformer2DModel": "lumina2",
    "MiniMaxH3Transformer3DModel": "minimax_h3",
    "MochiTransformer3DModel": "mochi",
    "MotionAdapter": "motion_module",
    "PRXTransformer2DModel": "prx",
    "PixArtTransformer2DModel": "pixart",
    "PriorTransformer": "kandinsky2_prior",
    "QwenImage21Transformer2DModel": "qwen_image21",
    "QwenImageControlNetModel": "controlnet_qwen_image",
    "QwenImageTransformer2DModel": "qwen_image",
    "RFD4ProteinaTransformer": "rfd4_proteina",
    "SD3ControlNetModel": "controlnet_sd3",
    "SD3Transformer2DModel": "sd3",
    "SanaControlNetModel": "controlnet_sana",
    "SanaTransformer2DModel": "sana",
    "SanaVideoTransformer3DModel": "sana_video",
    "SanaWMLTX2RefinerTransformer3DModel": "ltx2",
    "SkyReelsV2Transformer3DModel": "wan",
    "SparseControlNetModel": "controlnet_sparse",
    "StableCascadeUNet": "stable_cascade_decoder",
    "UNet2DConditionModel": "sd1",
    "UNet3DConditionModel": "text_to_video",
    "UNetMotionModel": "sd1",
    "UNetSpatioTemporalConditionModel": "svd",
    "UVit2DModel": "amused",
    "WanAnimateTransformer3DModel": "wan",
    "WanTransformer3DModel": "wan",
    "WanVACETransformer3DModel": "wan",
    "ZImageControlNetModel": "controlnet_z_image",
    "ZImageTransformer2DModel": "z_image",
}

SDXL: dict[str, Any] = {
    "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 1, 1),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
AUDIO = {"block_out_channels": (128, 256, 384, 640), "in_channels": 8, "out_channels": 8}
# What a class must be told, or what stands for the published model where the defaults do not.
CONFIGS: dict[str, dict[str, Any]] = {
    "AudioLDM2UNet2DConditionModel": {
        **AUDIO, "cross_attention_dim": ((None, 768, 1024),) * 4, "attention_head_dim": 8,
    },
    "CogView4Transformer2DModel": {"num_attention_heads": 32, "attention_head_dim": 128},
    "ControlNetUnionModel": {**SDXL, "conditioning_embedding_out_channels": (48, 96, 192, 384)},
    "DreamLiteTransformer2DModel": {"in_channels": 64},
    "EasyAnimateTransformer3DModel": {"mmdit_layers": 1, "in_channels": 16, "out_channels": 16, "patch_size": 2},
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2, "in_channels": 16, "num_single_layers": 1, "attention_head_dim": 128, "text_emb_dim": 2048,
        "num_attention_heads": 20, "caption_channels": [4096, 4096], "num_routed_experts": 4,
        "num_activated_experts": 2, "axes_dims_rope": (64, 32, 32), "max_resolution": (128, 128),
        "llama_layers": [0, 1],
    },
    "HunyuanDiT2DControlNetModel": {"in_channels": 4, "patch_size": 2, "transformer_num_layers": 4},
    "HunyuanDiT2DModel": {"in_channels": 4, "patch_size": 2},
    "LatteTransformer3DModel": {
        "in_channels": 4, "sample_size": 64, "patch_size": 2, "caption_channels": 4096,
        "norm_type": "ada_norm_single",
    },
    "LuminaNextDiT2DModel": {"num_kv_heads": 8, "norm_eps": 1e-5},
    "OmniGenTransformer2DModel": {"rope_scaling": {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48}},
    "PixArtTransformer2DModel": {"caption_channels": 4096},
    "StableCascadeUNet": {
        "block_out_channels": (320, 640), "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1),
        "down_blocks_repeat_mappers": (1, 1), "up_blocks_repeat_mappers": (1, 1), "num_attention_heads": (0, 20),
        "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock"),) * 2,
        "effnet_in_channels": 16, "switch_level": None, "self_attn": (True, True),
        "clip_text_pooled_in_channels": 1280,
    },
    "ZImageControlNetModel": {
        "control_layers_places": (0, 2), "control_refiner_layers_places": (0, 1), "control_in_dim": 33,
        "add_control_noise_refiner": "control_noise_refiner",
    },
}  # fmt: skip
# Classes that are parts of others or of nothing that is saved alone, or that hold several networks.
PARTS = {"AudioLDM2ProjectionModel", "Transformer2DModel", "TransformerTemporalModel", "DualTransformer2DModel"}

SDXL_UP = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
UNCLIP: dict[str, Any] = {
    "attention_head_dim": 64, "cross_attention_dim": 768, "layers_per_block": 3, "act_fn": "silu",
    "block_out_channels": (384, 768, 1152, 1536), "addition_embed_type_num_heads": 64, "out_channels": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip
# One class, several models: (class, what it is told, its family).
VARIANTS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "Stable Diffusion 2.1": (
        "UNet2DConditionModel", {"cross_attention_dim": 1024, "use_linear_projection": True}, "sd2",
    ),
    "Stable unCLIP": (
        "UNet2DConditionModel",
        {
            "cross_attention_dim": 1024, "use_linear_projection": True, "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": 2048,
        },
        "sd2",
    ),
    "Stable Diffusion's x4 upscaler": (
        "UNet2DConditionModel",
        {
            "cross_attention_dim": 1024, "use_linear_projection": True, "num_class_embeds": 1000, "in_channels": 7,
            "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
            "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        },
        None,
    ),
    "Stable Diffusion XL": ("UNet2DConditionModel", {**SDXL, "up_block_types": SDXL_UP}, "sdxl"),
    "Kolors": (
        "UNet2DConditionModel",
        {**SDXL, "up_block_types": SDXL_UP, "encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj"},
        "kolors",
    ),
    "AudioLDM": (
        "UNet2DConditionModel",
        {
            **AUDIO, "cross_attention_dim": (128, 256, 384, 640), "class_embed_type": "simple_projection",
            "class_embeddings_concat": True, "projection_class_embeddings_input_dim": 512,
        },
        None,
    ),
    "Kandinsky 2.1": (
        "UNet2DConditionModel",
        {
            **UNCLIP, "encoder_hid_dim": 1024, "encoder_hid_dim_type": "text_image_proj",
            "addition_embed_type": "text_image",
        },
        "kandinsky2",
    ),
    "Kandinsky 2.2": (
        "UNet2DConditionModel",
        {**UNCLIP, "encoder_hid_dim": 1280, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"},
        "kandinsky2",
    ),
    "DeepFloyd IF": (
        "UNet2DConditionModel",
        {**UNCLIP, "encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj", "addition_embed_type": "text"},
        None,
    ),
    "PixArt-α": (
        "PixArtTransformer2DModel",
        {"caption_channels": 4096, "sample_size": 128, "use_additional_conditions": True},
        "pixart",
    ),
    "ControlNet of Stable Diffusion XL": ("ControlNetModel", SDXL, "controlnet_xl"),
    "ControlNet Union of Flux.1": ("FluxControlNetModel", {"num_mode": 10}, "controlnet_flux"),
    "Cosmos-Predict2": ("CosmosTransformer3DModel", {"extra_pos_embed_type": None}, "cosmos"),
}  # fmt: skip


@cache
def classes() -> dict[str, Any]:
    """List the classes of networks in diffusers' own folders of them."""
    found: dict[str, Any] = {}
    modules = [
        info.name
        for package in (transformers, unets, controlnets)
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    ]
    for module in (*modules, "diffusers.pipelines.audioldm2.modeling_audioldm2"):
        for name, each in vars(importlib.import_module(module)).items():
            if inspect.isclass(each) and issubclass(each, ModelMixin) and each.__module__ == module:
                found[name] = each
    return {name: each for name, each in found.items() if name not in PARTS and "Multi" not in name}


# One of each sort of layer says enough.
ONCE = ("num_layers", "num_single_layers", "num_refiner_layers", "num_layers_single")


def header(name: str, config: dict[str, Any]) -> dict[str, TensorInfo]:
    """Make the header of a network, as shallow as its configuration lets it be."""
    known = inspect.signature(classes()[name].__init__).parameters
    shallow = {each: 1 for each in ONCE if each in known} | config
    for arguments in (shallow, config):
        try:
            with torch.device("meta"), no_init_weights():
                network = classes()[name](**arguments)
            break
        except (IndexError, TypeError, ValueError, ZeroDivisionError):
            if arguments is config:
                raise
    return infos({key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}, name)


@pytest.mark.parametrize("name", classes())
def test_a_network_of_diffusers_is_of_its_family_or_of_none(name: str) -> None:
    tensors = header(name, CONFIGS.get(name, {}))
    found = [each.name for each in FAMILIES if each.fits(tensors)]
    assert found == ([KNOWN[name]] if name in KNOWN else [])


@pytest.mark.parametrize("model", VARIANTS)
def test_models_of_one_class_are_told_apart(model: str) -> None:
    name, config, family = VARIANTS[model]
    tensors = header(name, config)
    found = [each.name for each in FAMILIES if each.fits(tensors)]
    assert found == ([family] if family else [])


def test_every_known_class_is_one_of_diffusers() -> None:
    assert KNOWN.keys() | CONFIGS.keys() <= classes().keys()


def loading() -> Iterator[tuple[str, set[str]]]:
    """Yield each pipeline that loads LoRAs, and the classes that its network may be of, from diffusers' source."""
    for path in sorted(Path(diffusers.__file__).parent.joinpath("pipelines").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body if "LoraLoaderMixin)" in text or "LoraLoaderMixin," in text else ():
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(base).endswith(("LoraLoaderMixin", "LoRALoaderMixin")) for base in node.bases
            ):
                (start,) = (
                    each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"
                )
                told = {each.arg: ast.unparse(each.annotation) for each in start.args.args if each.annotation}
                network = next(told[name] for name in ("transformer", "unet", "prior") if name in told)
                yield node.name, {each.strip() for each in network.split("|")} - {"None"}


# Networks that bake under their own names alone.
OWN_NAMES = {"UNetControlNetXSModel", "WuerstchenPrior"}


def test_every_pipeline_that_loads_loras_has_a_family() -> None:
    pipelines = dict(loading())
    assert len(pipelines) > 150
    assert set().union(*pipelines.values()) - KNOWN.keys() == OWN_NAMES
