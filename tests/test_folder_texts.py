"""The texts of a diffusers folder that is made of a single file: configurations, schedule, CLIP's tokenizer."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import PurePosixPath

import pytest

from lorabake.configs import Told, family_config, shipped
from lorabake.configs.folder import DIFFUSERS_VERSION, FolderTexts, folder_texts
from lorabake.configs.tokenizers import VOCABULARY, clip_files
from lorabake.keymap.expansion import KeyMap
from lorabake.sources.family import identify
from tests.tables import infos, load_table


@cache
def told(table: str, **more: tuple[int, ...]) -> tuple[KeyMap, Told]:
    tensors = load_table(table) | infos(dict(more))
    key_map = KeyMap.expand(identify(tensors), tensors)
    return key_map, Told.by(key_map)


def made(table: str, **more: tuple[int, ...]) -> FolderTexts:
    key_map, headers = told(table, **more)
    return folder_texts(headers, key_map.placed)


def read(folder: FolderTexts, path: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(folder.texts[path])
    return found


TABLES = (
    "arenasys_unet_v1_inpainting", "arenasys_unet_v2_depth", "arenasys_unet_v2_sd", "arenasys_unet_xl_refiner",
    "diffusers_auraflow", "diffusers_chroma", "diffusers_cogvideox", "diffusers_cogview4", "diffusers_flux2_dev",
    "diffusers_hidream", "diffusers_hunyuan_video", "diffusers_hunyuandit", "diffusers_ltx_video",
    "diffusers_lumina2", "diffusers_mochi", "diffusers_pixart_sigma", "diffusers_qwen_image", "diffusers_sana_1600m",
    "diffusers_sd35_medium", "diffusers_wan21_t2v_14b", "full_flux1_schnell_bfl_776", "full_sd15_singlefile_1131",
    "full_sdxl_singlefile_2515", "invoke_z_image_transformer_comfyui_keys", "mecha_flux_flux", "mecha_sd3_comfyui",
)  # fmt: skip


def blob(text: str) -> str:
    """Return git's name of a text, by which the hub lists small files."""
    data = text.encode()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def test_the_vocabulary_is_the_published_one_byte_for_byte() -> None:
    files = clip_files()
    assert blob(files["vocab.json"]) == "469be27c5c010538f845f518c4f5e8574c78f7c8"
    assert blob(files["merges.txt"]) == "76e821f1b6f0a9709293c3b6b51ed90980b3166b"
    assert len(json.loads(files["vocab.json"])) == VOCABULARY


def test_each_tokenizer_pads_as_its_family_does() -> None:
    folder = made("full_sdxl_singlefile_2515")
    assert read(folder, "tokenizer/tokenizer_config.json")["pad_token"] == "<|endoftext|>"
    assert read(folder, "tokenizer_2/tokenizer_config.json")["pad_token"] == "!"
    assert read(folder, "tokenizer_2/special_tokens_map.json")["pad_token"] == "!"


def test_each_family_that_ships_is_tried() -> None:
    families = {each.name for each in shipped().iterdir() if each.joinpath("model_index.json").is_file()}
    assert {told(table)[1].family for table in TABLES} == families


@pytest.mark.parametrize("table", TABLES)
def test_each_part_of_the_pipeline_has_its_texts_or_is_told_as_missing(table: str) -> None:
    key_map, headers = told(table)
    folder = folder_texts(headers, key_map.placed)
    assert folder.is_known
    index = read(folder, "model_index.json")
    parts = {name for name, said in index.items() if isinstance(said, list) and said[0] is not None}
    written = {PurePosixPath(path).parent.name for path in folder.texts} - {""}
    missing = {each.name for each in folder.missing}
    assert written | missing == parts
    assert not written & missing
    assert key_map.placed.keys() & parts <= written | {each.name for each in folder.missing if each.is_config}
    assert index["_diffusers_version"] == DIFFUSERS_VERSION
    for path, text in folder.texts.items():
        assert text.endswith("\n"), path
        if path.endswith("config.json") and "tokenizer" not in path:
            config = json.loads(text)
            assert ("_diffusers_version" in config) == ("_class_name" in config)


@pytest.mark.parametrize("table", TABLES)
def test_what_is_written_is_what_verify_builds(table: str) -> None:
    key_map, headers = told(table)
    for path, text in folder_texts(headers, key_map.placed).texts.items():
        place = PurePosixPath(path)
        if place.parent.name.startswith("tokenizer"):
            continue
        built = family_config(headers, "" if place.parent == PurePosixPath() else place.parent.name, place.name)
        assert built is not None
        written = json.loads(text)
        written.pop("_diffusers_version", None)
        assert {name: built[name] for name in written if written[name] != [None, None]} == {
            name: value for name, value in written.items() if value != [None, None]
        }


def test_the_bytes_are_the_same_each_time() -> None:
    first, second = made("full_sdxl_singlefile_2515"), made("full_sdxl_singlefile_2515")
    assert list(first.texts.items()) == list(second.texts.items())


@pytest.mark.parametrize("table", ["full_sdxl_singlefile_2515", "full_sd15_singlefile_1131"])
def test_markers_say_what_is_predicted_and_that_the_last_step_is_noise(table: str) -> None:
    plain, velocity = made(table), made(table, v_pred=())
    schedule = "scheduler/scheduler_config.json"
    assert read(plain, schedule)["prediction_type"] == "epsilon"
    assert read(velocity, schedule) == {**read(plain, schedule), "prediction_type": "v_prediction"}
    both = read(made(table, v_pred=(), ztsnr=()), schedule)
    assert both["rescale_betas_zero_snr"] is True
    assert both["timestep_spacing"] == "trailing"
    alone = read(made(table, ztsnr=()), schedule)
    assert alone == read(plain, schedule)  # noise cannot be predicted where there is nothing else


@pytest.mark.parametrize(
    ("metadata", "said", "prediction", "side"),
    [
        ({}, None, "v_prediction", 96),
        ({"modelspec.prediction_type": "epsilon"}, None, "epsilon", 64),
        ({"modelspec.prediction_type": "v"}, None, "v_prediction", 96),
        ({}, "epsilon", "epsilon", 64),
        ({"modelspec.prediction_type": "epsilon"}, "v_prediction", "v_prediction", 96),
        ({"modelspec.prediction_type": "something"}, None, "v_prediction", 96),
    ],
)
def test_stable_diffusion_2_predicts_what_is_said(
    metadata: dict[str, str], said: str | None, prediction: str, side: int
) -> None:
    key_map, _ = told("arenasys_unet_v2_sd")
    folder = folder_texts(Told.by(key_map, metadata, said), key_map.placed)
    assert read(folder, "scheduler/scheduler_config.json")["prediction_type"] == prediction
    assert read(folder, "unet/config.json")["sample_size"] == side


def test_a_marker_comes_before_the_metadata() -> None:
    key_map, _ = told("full_sdxl_singlefile_2515", v_pred=())
    assert Told.by(key_map, {"modelspec.prediction_type": "epsilon"}).prediction == "v_prediction"


@pytest.mark.parametrize(
    ("table", "pipeline"),
    [
        ("arenasys_unet_v1_inpainting", "StableDiffusionInpaintPipeline"),
        ("arenasys_unet_v1_pix2pix", "StableDiffusionInstructPix2PixPipeline"),
        ("arenasys_unet_v2_depth", "StableDiffusionDepth2ImgPipeline"),
        ("arenasys_unet_xl_refiner", "StableDiffusionXLImg2ImgPipeline"),
        ("full_flux1_dev_bfl_780", "FluxPipeline"),
    ],
)
def test_the_pipeline_is_the_one_that_the_first_layer_asks_for(table: str, pipeline: str) -> None:
    assert read(made(table), "model_index.json")["_class_name"] == pipeline


def test_what_a_flux_file_lacks_is_named_with_what_reads_it() -> None:
    missing = made("full_flux1_dev_bfl_780").missing
    assert [str(each) for each in missing] == [
        "text_encoder (CLIPTextModel)",
        "text_encoder_2 (T5EncoderModel)",
        "tokenizer_2 (T5TokenizerFast)",
        "vae (AutoencoderKL)",
    ]


def test_what_a_pipeline_can_do_without_is_null() -> None:
    without = made("diffusers_sd35_large")
    assert read(without, "model_index.json")["text_encoder_3"] == [None, None]
    assert read(without, "model_index.json")["tokenizer_3"] == [None, None]
    assert "tokenizer_3" in [each.name for each in made("mecha_sd3_comfyui").missing]  # its T5 is there


def test_what_brings_its_own_texts_is_neither_written_nor_missing() -> None:
    key_map, headers = told("full_flux1_dev_bfl_780")
    folder = folder_texts(headers, {*key_map.placed, "vae"}, copied=("vae", "tokenizer_2", "tokenizer"))
    assert not any(path.startswith(("vae/", "tokenizer")) for path in folder.texts)
    assert [each.name for each in folder.missing] == ["text_encoder", "text_encoder_2"]


def test_a_family_without_configurations_says_so() -> None:
    key_map, headers = told("full_sdxl_singlefile_2515")
    assert not folder_texts(Told("nowhere", headers.modules), key_map.placed).is_known
