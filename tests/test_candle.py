"""Converted outputs have what candle's builders ask for: each name, in its shape and a dtype that candle reads.

`tests/candle.py` says what they ask. The bases are headers of published checkpoints, with no data behind them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from lorabake import load_recipe, plan
from lorabake.planning import Plan
from lorabake.tensors.header import TensorInfo
from tests import builders as b
from tests import candle
from tests.tables import infos, load_table


def hollow(path: Path, tensors: Mapping[str, TensorInfo]) -> Path:
    """Write a checkpoint whose data are a hole in the file: it has its full size and takes no room."""
    entries = {
        key: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [info.start, info.stop]}
        for key, info in tensors.items()
    }
    head = json.dumps(entries).encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    os.truncate(path, 8 + len(head) + max(info.stop for info in tensors.values()))
    return path


def planned(folder: Path, base: str, layout: str) -> Plan:
    output = {"path": "out" if layout == "diffusers" else "out.safetensors", "layout": layout}
    return plan(load_recipe(b.recipe(folder, base=base, loras=[], output=output)))


def shapes(made: Plan, file: str) -> candle.Shapes:
    (found,) = (each for each in made.files if each.name == file)
    assert {target.dtype for target in found.targets} <= candle.DTYPES
    return {target.name: target.shape for target in found.targets}


def assert_has(there: candle.Shapes, asked: candle.Shapes, unasked: tuple[str, ...] = ()) -> None:
    """Require all that is asked for, and nothing else but what `unasked` names."""
    assert {name: there.get(name) for name in asked} == asked
    more = there.keys() - asked.keys()
    assert not [name for name in more if not any(fnmatchcase(name, glob) for glob in unasked)]
    for glob in unasked:
        assert any(fnmatchcase(name, glob) for name in more), glob


UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT, TEXT_2 = "text_encoder/model.safetensors", "text_encoder_2/model.safetensors"


PREFIXES = {"model.diffusion_model.": candle.flux(candle.FLUX_DEV), "vae.": candle.flux_vae()}
"""What a whole model in one file puts before the names, and a `VarBuilder` takes away (`vb.pp("vae")`)."""


def test_a_folder_of_stable_diffusion_1_is_what_candle_asks_for(tmp_path: Path) -> None:
    hollow(tmp_path / "base.safetensors", load_table("full_sd15_singlefile_1131"))
    made = planned(tmp_path, "base.safetensors", "diffusers")
    assert_has(shapes(made, UNET), candle.unet(candle.V1_5))
    assert_has(shapes(made, VAE), candle.vae())
    assert_has(shapes(made, TEXT), candle.clip(candle.CLIP_V1_5))


def test_a_folder_of_stable_diffusion_xl_is_what_candle_asks_for(tmp_path: Path) -> None:
    hollow(tmp_path / "base.safetensors", load_table("full_sdxl_singlefile_2515"))
    made = planned(tmp_path, "base.safetensors", "diffusers")
    # candle draws without the embedding of sizes, and without the projection of the whole text.
    assert_has(shapes(made, UNET), candle.unet(candle.SDXL), ("add_embedding.*",))
    assert_has(shapes(made, VAE), candle.vae())
    assert_has(shapes(made, TEXT), candle.clip(candle.CLIP_SDXL))
    assert_has(shapes(made, TEXT_2), candle.clip(candle.CLIP_SDXL_2), ("text_projection.weight",))


@pytest.mark.parametrize(
    ("table", "asked"),
    [
        ("arenasys_unet_v2_sd", candle.V2_1),
        ("arenasys_unet_v1_sd", candle.V1_5),
    ],
)
def test_a_unet_alone_is_what_candle_asks_for(table: str, asked: candle.UNet, tmp_path: Path) -> None:
    hollow(tmp_path / "base.safetensors", load_table(table))
    made = planned(tmp_path, "base.safetensors", "diffusers")
    assert_has(shapes(made, made.files[0].name), candle.unet(asked))


@pytest.mark.parametrize("asked", [candle.FLUX_DEV, candle.FLUX_SCHNELL], ids=["dev", "schnell"])
def test_a_single_file_of_flux_is_what_candle_asks_for(asked: candle.Flux, tmp_path: Path) -> None:
    tensors = load_table("diffusers_flux1_dev_transformer")
    if not asked.guidance:
        tensors = {key: info for key, info in tensors.items() if "guidance" not in key}
        tensors = infos({key: [info.dtype, info.shape] for key, info in tensors.items()})
    hollow(tmp_path / "flux" / "diffusion_pytorch_model.safetensors", tensors)
    made = planned(tmp_path, "flux", "single")
    assert_has(shapes(made, made.files[0].name), candle.flux(asked))


def test_the_vae_in_a_single_file_of_flux_is_what_candle_asks_for(tmp_path: Path) -> None:
    vae = {key: shape for key, shape in candle.vae(latents=16).items() if "quant_conv" not in key}
    (tmp_path / "flux").mkdir()
    index = {"transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "flux" / "model_index.json").write_text(json.dumps(index))
    hollow(tmp_path / "flux" / "vae" / "diffusion_pytorch_model.safetensors", infos(dict(vae)))
    transformer = load_table("diffusers_flux1_dev_transformer")
    hollow(tmp_path / "flux" / "transformer" / "diffusion_pytorch_model.safetensors", transformer)
    made = planned(tmp_path, "flux", "single")
    there = shapes(made, made.files[0].name)
    below = {prefix: {key: shape for key, shape in there.items() if key.startswith(prefix)} for prefix in PREFIXES}
    assert sum(map(len, below.values())) == len(there)
    for prefix, asked in PREFIXES.items():
        assert_has({key.removeprefix(prefix): shape for key, shape in below[prefix].items()}, asked)


def test_the_tables_agree_with_published_headers() -> None:
    """The names that candle takes from the makers' own files are those of these files."""
    published = {key: info.shape for key, info in load_table("full_flux1_dev_bfl_780").items()}
    assert candle.flux(candle.FLUX_DEV) == published
    unet = {key: info.shape for key, info in load_table("diffusers_sd15_unet").items()}
    assert candle.unet(candle.V1_5) == unet
