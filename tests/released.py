"""List the modules of each family's released models, from their headers: what lorabake recognises a LoRA by.

`python -m tests.released` writes `lorabake/architectures/released/`; a test compares. A line has a module's name as
LoRA files flatten it (numbers as `N`, dots as underscores), the shape of its weight, and which numbers stand for the
`N`: boxes of ranges, such as `0-18` or `1.0-1.0;2.0-1.0-9`, those of another model of the family behind a `|`. Each
layout's names are there, and those of trainers.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lorabake.architectures import architectures
from lorabake.keymap.spelling import endings, flatten, numbers_of
from lorabake.keymap.table import KeyMap
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


def modules(key_map: KeyMap) -> set[tuple[str, tuple[int, ...]]]:
    """Collect a network's modules that have a matrix or kernel: their names in any layout, and shapes."""
    listed = key_map.modules[key_map.architecture.components[0].name]
    weights = ((name, module.views.get("weight")) for name, module in listed.items())
    return {(name, view.shape) for name, view in weights if view is not None and len(view.shape) > 1}


def lines(family: str) -> list[str]:
    """Write the list of a family's modules."""
    found: dict[tuple[str, tuple[int, ...]], dict[str, None]] = {}
    for key_map in expanded(family):
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
