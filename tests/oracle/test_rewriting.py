"""Outputs in another layout against diffusers' own conversions: every name, every shape, every row in its place.

`test_families.py` holds that the key maps put each row where diffusers' conversions put it. Here, what is written
must be what the key maps say, and have the shapes that the conversions read and give.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.loaders import single_file_utils  # noqa: E402

from lorabake.keymap.rewriting import rewritten  # noqa: E402
from lorabake.planning.layout import names_for  # noqa: E402
from lorabake.sources.family import identify  # noqa: E402
from tests import builders as b  # noqa: E402
from tests.conversions import CHECKPOINTS  # noqa: E402
from tests.oracle.test_families import UNMAPPED, convert_cosmos1, expand  # noqa: E402
from tests.tables import infos, load_table, names  # noqa: E402
from tests.test_layout_families import FAMILIES, small  # noqa: E402

BOTH = [table for table in names("checkpoint") if identify(load_table(table)).name in FAMILIES]


@pytest.mark.parametrize("table", CHECKPOINTS)
def test_diffusers_reads_a_maker_s_file_that_is_made_of_its_own(table: str) -> None:
    there, name, unread = CHECKPOINTS[table]
    header = load_table(table)
    component = identify(header).components[0]
    made = {each.name: each.view.shape for each in rewritten(component, "diffusers", there, header)}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in made.items()}
    tensors |= {key: torch.empty(1, device="meta") for key in unread}
    convert = getattr(single_file_utils, name, convert_cosmos1)
    converted = {key: tuple(each.shape) for key, each in convert(tensors).items() if each is not None}
    wanted = {key: info.shape for key, info in header.items()}
    if table == "diffusers_wan_animate":  # diffusers reshapes its motion encoder
        converted, wanted = (
            {key: shape for key, shape in each.items() if not key.startswith(UNMAPPED)}
            for each in (converted, wanted)
        )
    assert converted == wanted


@pytest.mark.parametrize("table", BOTH)
def test_what_is_written_is_what_the_key_map_says(table: str) -> None:
    """Both read the table in their own way."""
    header = load_table(table)
    key_map = expand(header)
    compared = tried = 0
    for component in (key_map.component(name) for name in key_map.placed):
        here, prefix = key_map.placed[component.name]
        own = {
            key.removeprefix(prefix): info for key, info in header.items() if key_map.owner.get(key) == component.name
        }
        for layout in {*names_for(component, "single"), *names_for(component, "diffusers")} - {here}:
            views, tried = {}, tried + 1
            for name, module in key_map.modules_in(component.name, layout.name).items():
                views |= {f"{name}.{parameter}": view for parameter, view in module.views.items()}
                views |= {f"{name}_{parameter}": view for parameter, view in module.views.items()}
                views |= {name: module.views["weight"]} if "weight" in module.views else {}
            for made in rewritten(component, here.name, layout.name, own):
                if made.name in views and not made.view.transpose:
                    assert made.view.regions == views[made.name].regions, made.name
                    compared += 1
    assert compared or not tried


# -- families whose conversion reads a configuration ----------------------------------------------------------


UNET = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
VAE = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
READ_WITH = {
    "unet": (single_file_utils.convert_ldm_unet_checkpoint, UNET),
    "vae": (single_file_utils.convert_ldm_vae_checkpoint, VAE),
}


@pytest.mark.parametrize("name", READ_WITH)
@pytest.mark.parametrize("table", ["full_sd15_singlefile_1131", "full_sdxl_singlefile_2515"])
def test_unets_and_vaes_are_those_of_diffusers_conversions(table: str, name: str) -> None:
    header = load_table(table)
    key_map = expand(header)
    here, prefix = key_map.placed[name]
    numbers = b.Values(1)
    whole = {key: numbers(*map(small, info.shape)) for key, info in header.items() if key_map.owner.get(key) == name}
    own = {key.removeprefix(prefix): each for key, each in whole.items()}
    shapes = infos({key: [*each.shape] for key, each in own.items()})
    made = {
        each.name: each.view.read({key: own[key] for key in each.view.keys})
        for each in rewritten(key_map.component(name), here.name, "diffusers", shapes)
    }
    convert, config = READ_WITH[name]
    more = {"addition_embed_type": "text_time"} if "sdxl" in table and name == "unet" else {}
    converted = convert(whole, {**config, **more})
    assert converted.keys() == made.keys()
    for key, tensor in made.items():
        assert torch.equal(tensor, converted[key]), key


def test_openclip_s_tensors_are_those_of_diffusers_conversion() -> None:
    """Its queries, keys and values are cut, and its projection of texts is turned."""
    prefix = "conditioner.embedders.1.model."
    base = {key: each for key, each in b.sdxl().items() if key.startswith(prefix)}
    component = FAMILIES["sdxl"].components[2]
    own = {key.removeprefix(prefix): each for key, each in base.items()}
    shapes = infos({key: [*each.shape] for key, each in own.items()})
    made = {
        each.name: each.view.read({key: own[key].contiguous() for key in each.view.keys})
        for each in rewritten(component, "openclip", "hf", shapes)
    }

    class Model:
        class config:  # noqa: N801
            projection_dim = own["text_projection"].shape[1]

    converted = single_file_utils.convert_open_clip_checkpoint(Model, dict(base), prefix=prefix)
    common = converted.keys() & made.keys()
    assert common >= made.keys() - {"logit_scale"}
    for key in common - {"text_model.embeddings.position_ids"}:
        assert torch.equal(made[key], converted[key]), key
