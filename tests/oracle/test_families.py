"""Families against diffusers' own conversions: every row of every tensor, and of every LoRA, at its place.

The tensors have one column, in which each row has a number of its own: where a conversion puts the numbers is
where it puts the rows of the real ones, whatever their size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.loaders import lora_conversion_utils, single_file_utils  # noqa: E402

from lorabake.keymap.expansion import KeyMap  # noqa: E402
from lorabake.keymap.spelling import Spellings  # noqa: E402
from lorabake.keymap.view import View  # noqa: E402
from lorabake.sources.family import identify  # noqa: E402
from lorabake.tensors.header import TensorInfo  # noqa: E402
from tests.conversions import CHECKPOINTS  # noqa: E402
from tests.released import DEPTHS  # noqa: E402
from tests.tables import infos, load_table  # noqa: E402
from tests.translation import translate  # noqa: E402

Header = dict[str, TensorInfo]
Tensors = dict[str, torch.Tensor]


def number(header: Header) -> Tensors:
    """Give each row of each tensor a number of its own."""
    tensors: Tensors = {}
    count = 0
    for key, info in header.items():
        size = info.shape[0] if info.shape else 1
        numbers = torch.arange(count, count + size, dtype=torch.float64)
        tensors[key] = numbers.reshape((size,) + (1,) * (len(info.shape) - 1))
        count += size
    return tensors


def read(view: View, tensors: Mapping[str, torch.Tensor]) -> list[float]:
    """Return the numbers of the rows that a view shows, in its order."""
    pieces = [tensors[region.key][region.start : region.stop].flatten() for region in view.regions]
    return torch.cat(pieces).tolist()


def expand(header: Header) -> KeyMap:
    return KeyMap.expand(identify(header), header)


def views(header: Header) -> dict[str, View]:
    """Map every name of a tensor, in any layout, to its rows on the base with this header."""
    key_map = expand(header)
    found: dict[str, View] = {}
    for name, module in key_map.modules[key_map.architecture.components[0].name].items():
        found |= {f"{name}.{parameter}": view for parameter, view in module.views.items()}
        found |= {f"{name}_{parameter}": view for parameter, view in module.views.items()}  # in_proj_weight
        if "weight" in module.views:
            found[name] = module.views["weight"]
    return found


# -- checkpoints ------------------------------------------------------------------------------------------


class _Cosmos1(dict[str, torch.Tensor]):
    """Still say that the version's mark is there: diffusers empties the dictionary before it looks for it."""

    def __contains__(self, key: object) -> bool:
        return True


def convert_cosmos1(tensors: Tensors) -> Tensors:
    """Let diffusers convert Cosmos 1."""
    named = _Cosmos1({f"net.{key}": tensor for key, tensor in tensors.items()})
    converted: Tensors = single_file_utils.convert_cosmos_transformer_checkpoint_to_diffusers(named)
    return converted


# Tensors that are no rows of a table: they have other shapes in both layouts.
UNMAPPED = ("motion_encoder.",)


@pytest.mark.parametrize("table", CHECKPOINTS)
def test_both_layouts_hold_the_rows_that_diffusers_conversion_gives(table: str) -> None:
    there, name, unread = CHECKPOINTS[table]
    convert: Callable[[Tensors], Tensors] = getattr(single_file_utils, name, convert_cosmos1)
    _check_conversion(table, there, convert, unread)


@pytest.mark.parametrize(("table", "widths"), [("sd15", (320, 640, 1280, 1280)), ("sdxl", (320, 640, 1280))])
def test_controlnets_hold_the_rows_that_diffusers_conversion_gives(table: str, widths: tuple[int, ...]) -> None:
    config = {"layers_per_block": 2, "block_out_channels": widths, "class_embed_type": None}
    config["addition_embed_type"] = None

    def convert(tensors: Tensors) -> Tensors:
        converted: Tensors = single_file_utils.convert_controlnet_checkpoint(dict(tensors), config)
        # SDXL's embedding of sizes, which diffusers converts for the UNet only.
        for number_here, there in ((0, 1), (2, 2)):
            for parameter in ("weight", "bias"):
                key = f"label_emb.0.{number_here}.{parameter}"
                if key in tensors:
                    converted[f"add_embedding.linear_{there}.{parameter}"] = tensors[key]
        return converted

    _check_conversion(f"diffusers_controlnet_{table}", "ldm", convert, ())


def _check_conversion(table: str, there: str, convert: Callable[[Tensors], Tensors], unread: tuple[str, ...]) -> None:
    header = load_table(table)
    key_map = expand(header)
    component = key_map.architecture.components[0]
    other = infos(translate(component, header, key_map.placed[component.name][0].name, there))
    numbered = number(other)
    converted = convert({**numbered, **{key: torch.zeros(1) for key in unread}})
    wanted = {key for key in header if not key.startswith(UNMAPPED)}
    assert {key for key, tensor in converted.items() if tensor is not None and not key.startswith(UNMAPPED)} == wanted

    on_other, on_diffusers = views(other), views(header)
    for key in wanted:
        rows = read(on_other[key], numbered) if key in on_other else numbered[key].flatten().tolist()
        assert rows == converted[key].flatten().tolist(), key
    for key in other.keys() & on_diffusers.keys():
        if all(region.key in wanted for region in on_diffusers[key].regions):
            assert read(on_diffusers[key], converted) == numbered[key].flatten().tolist(), key


# -- LoRAs ------------------------------------------------------------------------------------------------

BLOCKS = ("double_blocks.", "single_blocks.")
WAN = ("blocks.",)
LUMINA = ("layers.", "noise_refiner.", "context_refiner.")
# diffusers' conversion -> table of the base, layout of the names, their prefix, the modules that it reads, suffixes.
LORAS = {
    "_convert_kohya_flux_lora_to_diffusers": (
        "diffusers_flux1_dev_transformer",
        "bfl",
        "lora_unet_",
        BLOCKS,
        ("lora_down", "lora_up"),
    ),
    "_convert_fal_kontext_lora_to_diffusers": (
        "diffusers_flux1_dev_transformer",
        "bfl",
        "base_model.model.",
        (*BLOCKS, "final_layer.linear"),
        ("lora_A", "lora_B"),
    ),
    "_convert_non_diffusers_flux2_lora_to_diffusers": (
        "diffusers_flux2_dev",
        "bfl",
        "diffusion_model.",
        BLOCKS,
        ("lora_A", "lora_B"),
    ),
    "_convert_kohya_flux2_lora_to_diffusers": (
        "diffusers_flux2_dev",
        "bfl",
        "lora_unet_",
        BLOCKS,
        ("lora_down", "lora_up"),
    ),
    "_convert_non_diffusers_wan_lora_to_diffusers": (
        "diffusers_wan21_i2v",
        "wan",
        "diffusion_model.",
        WAN,
        ("lora_A", "lora_B"),
    ),
    "_convert_musubi_wan_lora_to_diffusers": (
        "diffusers_wan21_i2v",
        "wan",
        "lora_unet_",
        WAN,
        ("lora_down", "lora_up"),
    ),
    "_convert_hunyuan_video_lora_to_diffusers": (
        "diffusers_hunyuan_video",
        "tencent",
        "diffusion_model.",
        (*BLOCKS, "img_in"),
        ("lora_A", "lora_B"),
    ),
    "_convert_non_diffusers_lumina2_lora_to_diffusers": (
        "diffusers_lumina2",
        "alpha_vllm",
        "diffusion_model.",
        LUMINA,
        ("lora_A", "lora_B"),
    ),
    "_convert_non_diffusers_z_image_lora_to_diffusers": (
        "diffusers_z_image_turbo",
        "diffusers",
        "lora_unet_",
        tuple(f"{part}{name}" for part in LUMINA for name in ("0.attention.", "1.feed_forward.")),
        ("lora_down", "lora_up"),
    ),
    "_convert_non_diffusers_ltx2_lora_to_diffusers": (
        "diffusers_ltx2",
        "lightricks",
        "diffusion_model.",
        ("transformer_blocks.", "patchify_proj", "audio_adaln_single", "av_ca_"),
        ("lora_A", "lora_B"),
    ),
    "_convert_non_diffusers_anima_lora_to_diffusers": (
        "diffusers_cosmos2",
        "nvidia",
        "diffusion_model.",
        ("blocks.", "final_layer.", "t_embedder.", "x_embedder."),
        ("lora_A", "lora_B"),
    ),
    "_convert_non_diffusers_qwen_lora_to_diffusers": (
        "diffusers_qwen_image",
        "diffusers",
        "lora_unet_",
        ("transformer_blocks.", "img_in", "txt_in", "proj_out", "norm_out.linear"),
        ("lora_down", "lora_up"),
    ),
    "_convert_non_diffusers_flux3_lora_to_diffusers": (
        "diffusers_flux3",
        "bfl",
        "diffusion_model.",
        ("content_mode_blocks.", "single_blocks.", "txt_mode_blocks."),
        ("lora_A", "lora_B"),
    ),
    "_convert_non_diffusers_krea2_lora_to_diffusers": (
        "diffusers_krea2",
        "krea",
        "diffusion_model.",
        ("blocks.", "txtfusion.", "first", "last.", "tmlp.", "tproj.", "txtmlp."),
        ("lora_A", "lora_B"),
    ),
    "_convert_non_diffusers_ideogram4_lora_to_diffusers": (
        "diffusers_ideogram4",
        "ideogram",
        "conditional_transformer.",
        ("layers.",),
        ("lora_A", "lora_B"),
    ),
    "_convert_non_diffusers_ace_step_lora_to_diffusers": (
        "diffusers_ace_step",
        "ace_step",
        "base_model.model.",
        ("layers.0.self_attn.", "layers.7.cross_attn."),
        ("lora_A", "lora_B"),
    ),
}


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_lands_where_diffusers_conversion_puts_it(name: str) -> None:
    table, layout, prefix, leads, (down, up) = LORAS[name]
    header = load_table(table)
    key_map = expand(header)
    component = key_map.architecture.components[0]
    named = translate(component, header, key_map.placed[component.name][0].name, layout)
    modules = [
        key.removesuffix(".weight")
        for key, shape in named.items()
        if key.endswith(".weight") and len(shape) > 1 and key.startswith(leads)
    ]
    numbered = number(infos({module: (named[f"{module}.weight"][0], 1) for module in modules}))
    lora: Tensors = {}
    spellings = {}
    for module in modules:
        spelling = prefix + (module.replace(".", "_") if prefix.endswith("_") else module)
        spellings[module] = spelling
        lora[f"{spelling}.{down}.weight"] = torch.ones(1, 1, dtype=torch.float64)
        lora[f"{spelling}.{up}.weight"] = numbered[module]
        if down == "lora_down":
            lora[f"{spelling}.alpha"] = torch.tensor(1.0, dtype=torch.float64)
    converted = getattr(lora_conversion_utils, name)(lora)
    changes = {
        key.removeprefix("transformer.").replace(".lora_B.weight", ".weight"): tensor
        for key, tensor in converted.items()
        if key.endswith(".lora_B.weight")
    }
    spelled = Spellings(key_map)
    seen = set()
    for module, spelling in spellings.items():
        (found,) = spelled[spelling]
        view = found.views["weight"]
        assert read(view, changes) == numbered[module].flatten().tolist(), spelling
        seen.update(view.keys)
    assert seen == changes.keys()


# Table -> diffusers' class, and its arguments that say how many layers there are below which stem.
CLASSES = {
    "diffusers_amused": ("UVit2DModel", {"num_hidden_layers": "transformer_layers"}),
    "diffusers_ernie_image": ("ErnieImageTransformer2DModel", {"num_layers": "layers"}),
    "diffusers_flux3": (
        "Flux3Transformer2DModel",
        {"num_layers": "txt_mode_blocks", "num_single_layers": "single_transformer_blocks"},
    ),
    "diffusers_helios": ("HeliosTransformer3DModel", {"num_layers": "blocks"}),
    "diffusers_hunyuan_video15": ("HunyuanVideo15Transformer3DModel", {"num_layers": "transformer_blocks"}),
    "diffusers_ideogram4": ("Ideogram4Transformer2DModel", {"num_layers": "layers"}),
    "diffusers_kandinsky2_prior": ("PriorTransformer", {"num_layers": "transformer_blocks"}),
    "diffusers_krea2": ("Krea2Transformer2DModel", {"num_layers": "transformer_blocks"}),
    "diffusers_minimax_h3": ("MiniMaxH3Transformer3DModel", {"num_layers": "transformer_blocks"}),
    "diffusers_prx": ("PRXTransformer2DModel", {"depth": "blocks"}),
    "diffusers_qwen_image21": ("QwenImage21Transformer2DModel", {"num_layers": "transformer_blocks"}),
    "diffusers_sana_video": ("SanaVideoTransformer3DModel", {"num_layers": "transformer_blocks"}),
}


@pytest.mark.parametrize("table", CLASSES)
def test_released_models_have_as_many_layers_as_diffusers_classes(table: str) -> None:
    name, arguments = CLASSES[table]
    found = getattr(diffusers, name, None)
    if found is None:
        pytest.skip(f"this diffusers has no {name}")
    defaults = {stem: signature(found.__init__).parameters[argument].default for argument, stem in arguments.items()}
    assert defaults.items() <= DEPTHS[table].items()
    # Bria FIBO's class has Flux.1's numbers, and diffusers has none of Anima.
    assert DEPTHS.keys() - CLASSES.keys() == {"diffusers_bria_fibo", "invoke_anima_comfyui_keys"}
