"""List the modules of each family's released models, from their headers: what lorabake recognises a LoRA by.

`python -m tests.released` writes `lorabake/architectures/released/`; a test compares. A line has a module's name as
LoRA files flatten it (numbers as `N`, dots as underscores), the shape of its weight, and which numbers stand for the
`N`: boxes of ranges, such as `0-18` or `1.0-1.0;2.0-1.0-9`, those of another model of the family behind a `|`. Each
layout's names are there, and those of trainers. Other sizes of a model are made by diffusers, so writing needs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lorabake.architectures import architectures
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.names import flatten, numbers_of
from lorabake.keymap.spelling import endings
from tests.tables import infos, load_table

FOLDER = Path(__file__).parent.parent / "lorabake" / "architectures" / "released"

Place = tuple[int, ...]
Box = tuple[tuple[int, int], ...]

# family -> the headers of its models, the one that most others were made of first.
HEADERS: dict[str, tuple[str, ...]] = {
    "ace_step": ("diffusers_ace_step",),
    "amused": ("diffusers_amused",),
    "anima": ("invoke_anima_comfyui_keys",),
    "auraflow": ("diffusers_auraflow",),
    "bria_fibo": ("diffusers_bria_fibo",),
    "bria_fibo2": ("diffusers_bria_fibo2",),
    "chroma": ("diffusers_chroma",),
    "clip": ("arenasys_clip_v1_sd", "transformers_sd21_clip_h"),
    "clip_bigg": ("arenasys_clip_xl_sd",),
    "cogvideox": ("diffusers_cogvideox",),
    "cogview3plus": ("diffusers_cogview3plus",),
    "cogview4": ("diffusers_cogview4",),
    "cosmos": ("diffusers_cosmos2",),
    "cosmos1": ("diffusers_cosmos1",),
    "ernie_image": ("diffusers_ernie_image",),
    "flux": ("diffusers_flux1_dev_transformer",),
    "flux2": ("diffusers_flux2_dev",),
    "flux3": ("diffusers_flux3",),
    "helios": ("diffusers_helios",),
    "hidream": ("diffusers_hidream",),
    "hunyuan_image": ("diffusers_hunyuan_image",),
    "hunyuan_video": ("diffusers_hunyuan_video", "diffusers_framepack"),
    "hunyuan_video15": ("diffusers_hunyuan_video15",),
    "hunyuandit": ("diffusers_hunyuandit",),
    "ideogram4": ("diffusers_ideogram4",),
    "kandinsky2": ("diffusers_kandinsky2",),
    "kandinsky2_prior": ("diffusers_kandinsky2_prior",),
    "kandinsky3": ("diffusers_kandinsky3",),
    "kandinsky5": ("diffusers_kandinsky5",),
    "kolors": ("diffusers_kolors_unet",),
    "krea2": ("diffusers_krea2",),
    "ltx": ("diffusers_ltx_video",),
    "ltx2": ("diffusers_ltx2",),
    "lumina2": ("diffusers_lumina2",),
    "minimax_h3": ("diffusers_minimax_h3",),
    "mochi": ("diffusers_mochi",),
    "motion_module": ("diffusers_motion_adapter",),
    "pixart": ("diffusers_pixart_alpha_1024", "diffusers_pixart_sigma"),
    "prx": ("diffusers_prx",),
    "qwen_image": ("diffusers_qwen_image",),
    "qwen_image21": ("diffusers_qwen_image21",),
    "rfd4_proteina": ("diffusers_rfd4_proteina",),
    "sana": ("diffusers_sana_1600m",),
    "sana_video": ("diffusers_sana_video",),
    "sd1": ("full_sd15_singlefile_1131", "diffusers_sd15_inpaint_unet", "arenasys_unet_v1_pix2pix"),
    "sd2": ("arenasys_unet_v2_sd", "arenasys_unet_v2_depth"),
    "sd3": ("diffusers_sd3_3_medium_diffusers", "diffusers_sd35_medium", "diffusers_sd35_large"),
    "sdxl": ("full_sdxl_singlefile_2515",),
    "sdxl_refiner": ("arenasys_unet_xl_refiner",),
    "stable_cascade": ("diffusers_cascade_c",),
    "stable_cascade_decoder": ("diffusers_cascade_b",),
    "svd": ("diffusers_svd",),
    "text_to_video": ("diffusers_text_to_video",),
    "wan": ("diffusers_wan21_t2v_14b", "diffusers_wan21_i2v", "diffusers_wan_vace", "diffusers_wan_animate"),
    "z_image": ("diffusers_z_image_turbo",),
}

# Tables that hold a layer or two of each sort -> how many the released model has: the stem of their names, the count.
# All but Bria FIBO's and Anima's are what diffusers' classes have by default.
DEPTHS: dict[str, dict[str, int]] = {
    "diffusers_amused": {"transformer_layers": 22},
    "diffusers_bria_fibo": {"transformer_blocks": 8, "single_transformer_blocks": 38, "caption_projection": 46},
    "diffusers_ernie_image": {"layers": 24},
    "diffusers_flux3": {
        "mode_blocks.image": 5,
        "mode_blocks.image_cond": 5,
        "txt_mode_blocks": 5,
        "single_transformer_blocks": 28,
    },
    "diffusers_helios": {"blocks": 40},
    "diffusers_hunyuan_video15": {"transformer_blocks": 54},
    "diffusers_ideogram4": {"layers": 34},
    "diffusers_kandinsky2_prior": {"transformer_blocks": 20},
    "diffusers_krea2": {"transformer_blocks": 28},
    "diffusers_minimax_h3": {"transformer_blocks": 50},
    "diffusers_prx": {"blocks": 16},
    "diffusers_qwen_image21": {"transformer_blocks": 32},
    "diffusers_sana_video": {"transformer_blocks": 20},
    "invoke_anima_comfyui_keys": {"net.blocks": 28},
}

Config = dict[str, object]

SANA = {"cross_attention_dim": 1152, "num_cross_attention_heads": 16, "cross_attention_head_dim": 72}
COGVIDEOX = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
COSMOS_14B = {"num_attention_heads": 40, "num_layers": 36}
COSMOS2 = {"in_channels": 17, "extra_pos_embed_type": None}
COSMOS25 = {**COSMOS2, "use_crossattn_projection": True, "crossattn_proj_in_channels": 100352}
CASCADE = ["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]
WAN_1300M = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}

# family -> diffusers' class, and the models beside those of HEADERS: how each differs from the class's defaults.
SIZES: dict[str, tuple[str, dict[str, Config]]] = {
    "cogvideox": (
        "CogVideoXTransformer3DModel",
        {
            "5B": COGVIDEOX,
            "5B I2V": {**COGVIDEOX, "in_channels": 32, "use_learned_positional_embeddings": True},
            "1.5 5B": {**COGVIDEOX, "patch_size_t": 2, "patch_bias": False},
            "1.5 5B I2V": {
                **COGVIDEOX,
                "patch_size_t": 2,
                "patch_bias": False,
                "in_channels": 32,
                "ofs_embed_dim": 512,
            },
        },
    ),
    "cosmos": (
        "CosmosTransformer3DModel",
        {
            "2 14B": {**COSMOS2, **COSMOS_14B},
            "2.5 2B": {**COSMOS25, "num_attention_heads": 16},
            "2.5 14B": {**COSMOS25, **COSMOS_14B},
        },
    ),
    "cosmos1": ("CosmosTransformer3DModel", {"14B": COSMOS_14B}),
    "flux2": (
        "Flux2Transformer2DModel",
        {
            "klein 4B": {
                "num_layers": 5,
                "num_single_layers": 20,
                "num_attention_heads": 24,
                "joint_attention_dim": 7680,
                "guidance_embeds": False,
            },
            "klein 9B": {
                "num_layers": 8,
                "num_single_layers": 24,
                "num_attention_heads": 32,
                "joint_attention_dim": 12288,
                "guidance_embeds": False,
            },
        },
    ),
    "kandinsky5": (
        "Kandinsky5Transformer3DModel",
        {
            "lite": {"model_dim": 1792, "ff_dim": 7168, "in_visual_dim": 16, "out_visual_dim": 16},
            "image lite": {
                "model_dim": 2560,
                "ff_dim": 10240,
                "num_visual_blocks": 50,
                "axes_dims": (32, 48, 48),
                "in_visual_dim": 16,
                "out_visual_dim": 16,
            },
            "pro": {
                "model_dim": 4096,
                "ff_dim": 16384,
                "time_dim": 1024,
                "num_text_blocks": 4,
                "num_visual_blocks": 60,
                "axes_dims": (32, 48, 48),
                "in_visual_dim": 16,
                "out_visual_dim": 16,
            },
        },
    ),
    "ltx": (
        "LTXVideoTransformer3DModel",
        {"13B": {"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48}},
    ),
    "ltx2": (
        "LTX2VideoTransformer3DModel",
        {
            "2.3": {
                "gated_attn": True,
                "cross_attn_mod": True,
                "audio_gated_attn": True,
                "audio_cross_attn_mod": True,
                "use_prompt_embeddings": False,
            }
        },
    ),
    "motion_module": (
        "MotionAdapter",
        {"SDXL": {"block_out_channels": (320, 640, 1280), "use_motion_mid_block": False}},
    ),
    "sana": (
        "SanaTransformer2DModel",
        {
            "600M": {**SANA, "num_attention_heads": 36, "num_layers": 28},
            "1.5 4.8B": {"num_layers": 60},
        },
    ),
    "stable_cascade": (
        "StableCascadeUNet",
        {
            "lite": {
                "in_channels": 16,
                "out_channels": 16,
                "patch_size": 1,
                "conditioning_dim": 1536,
                "block_out_channels": (1536, 1536),
                "num_attention_heads": (24, 24),
                "down_num_layers_per_block": (4, 12),
                "up_num_layers_per_block": (12, 4),
                "down_blocks_repeat_mappers": (1, 1),
                "up_blocks_repeat_mappers": (1, 1),
                "block_types_per_layer": (CASCADE, CASCADE),
                "clip_text_in_channels": 1280,
                "clip_text_pooled_in_channels": 1280,
                "clip_image_in_channels": 768,
                "dropout": (0.1, 0.1),
                "timestep_conditioning_type": ("sca", "crp"),
                "switch_level": (False,),
            }
        },
    ),
    "stable_cascade_decoder": (
        "StableCascadeUNet",
        {
            "lite": {
                "in_channels": 4,
                "out_channels": 4,
                "patch_size": 2,
                "conditioning_dim": 1280,
                "block_out_channels": (320, 576, 1152, 1152),
                "num_attention_heads": (0, 9, 18, 18),
                "down_num_layers_per_block": (2, 4, 14, 4),
                "up_num_layers_per_block": (4, 14, 4, 2),
                "down_blocks_repeat_mappers": (1, 1, 1, 1),
                "up_blocks_repeat_mappers": (2, 2, 2, 2),
                "block_types_per_layer": (CASCADE[:2], CASCADE[:2], CASCADE, CASCADE),
                "clip_text_pooled_in_channels": 1280,
                "effnet_in_channels": 16,
                "pixel_mapper_in_channels": 3,
                "dropout": (0, 0, 0.1, 0.1),
                "timestep_conditioning_type": ("sca",),
            }
        },
    ),
    "wan": (
        "WanTransformer3DModel",
        {
            "2.1 1.3B": WAN_1300M,
            "2.2 5B": {
                "num_attention_heads": 24,
                "ffn_dim": 14336,
                "num_layers": 30,
                "in_channels": 48,
                "out_channels": 48,
            },
        },
    ),
}


def whole_table(table: str) -> dict[str, tuple[int, ...]]:
    """Return a table's keys and shapes, with as many layers as the released model has."""
    shapes = {key: info.shape for key, info in load_table(table).items()}
    for stem, count in DEPTHS.get(table, {}).items():
        first = {key: shape for key, shape in shapes.items() if key.startswith(f"{stem}.0.")}
        assert first, (table, stem)
        for number in range(count):
            for key, shape in first.items():
                shapes.setdefault(f"{stem}.{number}.{key.removeprefix(f'{stem}.0.')}", shape)
    return shapes


@cache
def expanded(family: str) -> tuple[KeyMap, ...]:
    """Expand the family's tables against each of its headers."""
    architecture = next(each for each in architectures() if each.name == family)
    return tuple(KeyMap.expand(architecture, infos(dict(whole_table(table)))) for table in HEADERS[family])


@cache
def made(family: str) -> dict[str, KeyMap]:
    """Expand the family's tables against its other sizes, which diffusers makes without values."""
    if family not in SIZES:
        return {}
    import diffusers
    import torch

    architecture = next(each for each in architectures() if each.name == family)
    name, sizes = SIZES[family]
    found = {}
    for size, config in sizes.items():
        with torch.device("meta"):
            model = getattr(diffusers, name)(**config)
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        found[size] = KeyMap.expand(architecture, infos(dict(shapes)))
    return found


def modules(key_map: KeyMap) -> set[tuple[str, tuple[int, ...]]]:
    """Collect a network's modules that have a matrix or kernel: their names in any layout, and shapes."""
    listed = key_map.modules[key_map.architecture.components[0].name]
    weights = ((name, module.views.get("weight")) for name, module in listed.items())
    return {(name, view.shape) for name, view in weights if view is not None and len(view.shape) > 1}


def lines(family: str) -> list[str]:
    """Write the list of a family's modules."""
    found: dict[tuple[str, tuple[int, ...]], dict[str, None]] = {}
    for key_map in (*expanded(family), *made(family).values()):
        places: dict[tuple[str, tuple[int, ...]], set[Place]] = {}
        for path, shape in modules(key_map):
            for name in endings(path):
                places.setdefault((flatten(name), shape), set()).add(numbers_of(name))
        for each, numbers in places.items():
            found.setdefault(each, {})[";".join(map(written, boxes(numbers)))] = None
    return [
        f"{name} {'x'.join(map(str, shape))} {'|'.join(models)}".rstrip()
        for (name, shape), models in sorted(found.items())
    ]


def boxes(places: Iterable[Place]) -> list[Box]:
    """Cover places by boxes that do not overlap: for each number a range, first and last."""
    found: set[Box] = {tuple((number, number) for number in place) for place in places}
    for at in reversed(range(len(next(iter(found))))):
        alike: dict[Box, list[tuple[int, int]]] = {}
        for box in sorted(found):
            alike.setdefault(box[:at] + box[at + 1 :], []).append(box[at])
        found = set()
        for rest, ranges in alike.items():
            first, last = ranges[0]
            for start, stop in ranges[1:]:
                if start > last + 1:
                    found.add((*rest[:at], (first, last), *rest[at:]))
                    first = start
                last = stop
            found.add((*rest[:at], (first, last), *rest[at:]))
    return sorted(found)


def written(box: Box) -> str:
    return ".".join(f"{first}-{last}" if first < last else str(first) for first, last in box)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in HEADERS:
        (FOLDER / f"{each}.txt").write_text("\n".join(lines(each)) + "\n", encoding="utf-8")
