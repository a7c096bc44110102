"""A bake says what it is, in SAI ModelSpec's words, and no longer what its base is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorabake.architectures import architectures
from lorabake.errors import RecipeError
from lorabake.keymap.expansion import KeyMap
from lorabake.planning import plan
from lorabake.planning.identity import Identity, known_architectures, spec_name
from lorabake.recipe import load_recipe
from lorabake.sources import resolve
from lorabake.sources.family import identify
from lorabake.storage.fields import describes, kept
from tests import builders as b
from tests.tables import load_table

# The names that the specification lists, that kohya's trainers and ComfyUI write, and that SwarmUI reads.
LISTED = """
stable-diffusion-v1 stable-diffusion-v1-inpainting stable-diffusion-v2-512 stable-diffusion-v2-768-v
stable-diffusion-v2-depth stable-diffusion-v2-inpainting stable-diffusion-v2-unclip-h stable-diffusion-v2-unclip-l
stable-diffusion-v2-turbo stable-diffusion-xl-v1-base stable-diffusion-xl-v1-refiner stable-diffusion-xl-v1-edit
stable-diffusion-xl-turbo-v1 stable-diffusion-xl-v0_9-base stable-diffusion-xl-v0_9-refiner
segmind-stable-diffusion-1b stable-diffusion-v3-medium stable-diffusion-v3.5-medium stable-diffusion-v3.5-large
stable-diffusion-v3.5-large-turbo stable-video-diffusion-img2vid-v1 stable-video-diffusion-img2vid-v0_9
stable-cascade-v1-stage-b stable-cascade-v1-stage-b-bf16 stable-cascade-v1-stage-c flux-1 flux-1-dev flux-1-schnell
Flux.1-dev Flux.1-schnell Flux.1-dev/inpaint Flux.1-dev/kontext Flux.1-dev/canny Flux.1-dev/depth flux.2-dev
flux.2-klein-4b flux.2-klein-9b chroma chroma-radiance lumina-2 z-image qwen-image qwen-image-edit
qwen-image-edit-plus Qwen-Image Qwen-Image-Edit hidream-i1 hidream-i1-edit omnigen-2 auraflow-v1 anima krea-2
ideogram-4 ernie-image minimax-h3 hunyuan-image-2_1 hunyuan-image-2_1-refiner hunyuan-video hunyuan-video-i2v
hunyuan-video-i2v-v2 hunyuan-video-skyreels hunyuan-video-skyreels-i2v framepack hunyuan-video-1_5
hunyuan-video-1_5-sr lightricks-ltx-video lightricks-ltx-video-2 lightricks-ltx-video-2-3 lightricks-ltx-video-2-5
genmo-mochi-1 pixart-ms-sigma-xl-2 pixart-ms-sigma-xl-2-2k nvidia-sana-1600 nvidia-cosmos-1-7b-text2world
nvidia-cosmos-1-7b-video2world nvidia-cosmos-1-14b-text2world nvidia-cosmos-1-14b-video2world
nvidia-cosmos-predict2-t2i-2b nvidia-cosmos-predict2-t2i-14b wan2.1 wan-2_1-text2video-14b wan-2_1-text2video-1_3b
wan-2_1-image2video-14b wan-2_1-image2video-1_3b wan-2_1-flf2v-14b wan-2_1-vace-14b wan-2_1-vace-1_3b
wan-2_2-image2video-14b wan-2_2-ti2v-5b kandinsky5-image-lite kandinsky5-video-lite kandinsky5-video-pro
stable-diffusion-v1/controlnet stable-diffusion-xl-v1-base/controlnet flux-1-dev/controlnet
"""

# Header of a released model -> its name, and what the header leaves open.
RELEASED = {
    "full_sd15_singlefile_1131": "stable-diffusion-v1",
    "diffusers_sd15_unet": "stable-diffusion-v1",
    "arenasys_unet_v1_inpainting": "stable-diffusion-v1-inpainting",
    "arenasys_unet_v1_pix2pix": "",
    "diffusers_sd15_inpaint_unet": "stable-diffusion-v1-inpainting",
    "arenasys_unet_v2_depth": "stable-diffusion-v2-depth",
    "arenasys_unet_v2_sd": "",
    "full_sdxl_singlefile_2515": "stable-diffusion-xl-v1-base",
    "arenasys_unet_xl_refiner": "stable-diffusion-xl-v1-refiner",
    "diffusers_sd3_3_medium_diffusers": "stable-diffusion-v3-medium",
    "mecha_sd3_comfyui": "stable-diffusion-v3-medium",
    "diffusers_sd35_medium": "stable-diffusion-v3.5-medium",
    "diffusers_sd35_large": "stable-diffusion-v3.5-large",
    "full_flux1_dev_bfl_780": "flux-1-dev",
    "full_flux1_schnell_bfl_776": "flux-1-schnell",
    "diffusers_flux1_dev_transformer": "flux-1-dev",
    "diffusers_flux2_dev": "flux.2-dev",
    "invoke_flux2_transformer_bfl_keys": "flux.2-klein-9b",
    "diffusers_wan21_t2v_14b": "wan-2_1-text2video-14b",
    "diffusers_wan21_i2v": "wan-2_1-image2video-14b",
    "diffusers_wan_vace": "wan-2_1-vace-14b",
    "diffusers_wan_animate": "",
    "diffusers_hunyuan_video": "hunyuan-video",
    "diffusers_sana_1600m": "nvidia-sana-1600",
    "diffusers_pixart_alpha": "",
    "diffusers_controlnet_sd15": "stable-diffusion-v1/controlnet",
}

OF_THE_BASE = {
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.title": "Famous Base",
    "modelspec.author": "Somebody Else",
    "modelspec.description": "the best base",
    "modelspec.date": "2024-01-01",
    "modelspec.thumbnail": "data:image/jpeg;base64,AAAA",
    "modelspec.usage_hint": "say please",
    "modelspec.hash_sha256": "0x" + "ab" * 32,
    "modelspec.tags": "photo",
    "modelspec.trigger_phrase": "base phrase",
    "modelspec.merged_from": "x, y",
    "ss_sd_model_name": "famous",
    "sd_merge_models": "{}",
    "title": "Famous Base",
    "Author": "Somebody Else",
    "prompt": "{}",
    "workflow": "{}",
}


def identity(folder: Path, **fields: object) -> Identity:
    """Plan a recipe of a folder, and return what the bake would be."""
    return plan(resolve(load_recipe(b.recipe(folder, **fields)))).identity


def made(
    folder: Path,
    base: dict[str, str] | None = None,
    lora: dict[str, str] | None = None,
    markers: tuple[str, ...] = (),
) -> Path:
    """Make a base and a LoRA with these metadata; the base has these empty tensors, too."""
    tensors = b.sd1(extras=False) | {name: torch.empty(0) for name in markers}
    b.save(folder / "base.safetensors", tensors, metadata=base)
    return another(folder, "lora", lora)


def another(folder: Path, name: str, said: dict[str, str] | None) -> Path:
    """Make a LoRA with these metadata."""
    b.kohya(folder / f"{name}.safetensors", {b.unet_lora(b.Q): b.lora((b.W, b.W))}, said)
    return folder


# -- Architectures ---------------------------------------------------------------------------------------


def test_families_have_listed_names_and_each_name_is_one_familys() -> None:
    assert known_architectures() == {*LISTED.split()}
    names = [spec.name for family in architectures() for spec in family.spec if spec.name]
    assert len(names) == len({*names})


def test_families_with_a_name_say_whose_code_their_files_follow() -> None:
    assert [family.name for family in architectures() if family.spec and not family.code] == []


@pytest.mark.parametrize("table", RELEASED)
def test_headers_of_released_models_tell_the_name(table: str) -> None:
    tensors = load_table(table)
    key_map = KeyMap.expand(identify(tensors), tensors)
    assert spec_name(key_map, "", "").name == RELEASED[table]


def test_what_only_the_prediction_tells() -> None:
    tensors = load_table("arenasys_unet_v2_sd")
    key_map = KeyMap.expand(identify(tensors), tensors)
    assert spec_name(key_map, "", "v").name == "stable-diffusion-v2-768-v"
    assert spec_name(key_map, "", "epsilon").name == "stable-diffusion-v2-512"
    assert spec_name(key_map, "stable-diffusion-v2-768-v", "").predicts == "v"
    assert spec_name(key_map, "stable-diffusion-xl-v1-base", "").name == ""


# -- What goes, what comes, what stays -------------------------------------------------------------------


def test_nothing_that_describes_the_base_is_left(tmp_path: Path) -> None:
    metadata = b.header(b.run(b.recipe(made(tmp_path, OF_THE_BASE | {"modelspec.license": "MIT"}))).path)[1]
    values = {*OF_THE_BASE.values()} - {"{}", "1.0.0"}
    assert not [name for name, text in metadata.items() if name != "lorabake.recipe" and text in values]
    assert {name for name in metadata if describes(name) and not name.startswith("lorabake.")} == {
        "sshs_model_hash",
        *(f"modelspec.{field}" for field in ("sai_model_spec", "architecture", "implementation", "title")),
        *(
            f"modelspec.{field}"
            for field in ("resolution", "prediction_type", "merged_from", "license", "hash_sha256")
        ),
    }


def test_a_bake_says_what_it_is(tmp_path: Path) -> None:
    made(tmp_path, OF_THE_BASE, {"modelspec.trigger_phrase": "ohwx"})
    output = {"path": "deeper/My Portrait.safetensors"}
    loras = [{"path": "lora.safetensors", "strength": {"unet": 0.5}}]
    metadata = b.header(b.run(b.recipe(tmp_path, loras=loras, output=output)).path)[1]
    assert {name[10:]: text for name, text in metadata.items() if name.startswith("modelspec.")} == {
        "sai_model_spec": "1.0.1",
        "architecture": "stable-diffusion-v1",
        "implementation": "sgm",
        "title": "My Portrait",
        "resolution": "512x512",
        "prediction_type": "epsilon",
        "merged_from": "base, lora (unet 0.5)",
        "trigger_phrase": "ohwx",
        "usage_hint": "Trigger phrases: ohwx (of lora)",
        "hash_sha256": "0x" + metadata["sshs_model_hash"],
    }
    assert json.loads(metadata["lorabake.trigger_phrases"]) == [["lora", "ohwx"]]


def test_unknown_fields_stay_and_so_does_what_loaders_read() -> None:
    said = {"config": "{}", "format": "pt", "_quantization_metadata": "{}", "model_type": "x", "zz": "y"}
    assert kept({**said, **OF_THE_BASE}) == said


def test_files_of_other_networks_say_which(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    another(tmp_path, "lora", None)
    out = b.run(b.recipe(tmp_path, base="base", output={"path": "baked"})).path
    found = {
        path.parent.name: b.header(path)[1]["modelspec.architecture"] for path in sorted(out.glob("*/*.safetensors"))
    }
    assert found["unet"] == "stable-diffusion-v1"
    assert found["vae"] == "stable-diffusion-v1/vae"
    assert found["text_encoder"] == "stable-diffusion-v1/text_encoder"
    assert (
        b.header(out / "unet" / "diffusion_pytorch_model.safetensors")[1]["modelspec.implementation"] == "diffusers"
    )


def test_a_language_model_has_no_modelspec_but_a_title(tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    told = identity(tmp_path, base="base", loras=["lora"], output={"path": "out"})
    assert (told.title, told.architecture, told.merged_from) == ("out", "", "base, lora (1)")


# -- Predictions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "markers", "verify", "expected"),
    [
        ({}, (), None, "epsilon"),
        ({}, ("v_pred",), None, "v"),
        ({}, ("v_pred", "ztsnr"), None, "v"),
        ({"modelspec.prediction_type": "v"}, (), None, "v"),
        ({"modelspec.predict_key": "v"}, (), None, "v"),
        ({"ss_v_parameterization": "True"}, (), None, "v"),
        ({"modelspec.prediction_type": "strange"}, (), None, "epsilon"),
        ({}, ("edm_mean", "edm_std"), None, ""),
        ({}, (), "v_prediction", "v"),
        ({}, ("v_pred",), "epsilon", "epsilon"),
    ],
)
def test_what_says_the_prediction(
    tmp_path: Path, said: dict[str, str], markers: tuple[str, ...], verify: str | None, expected: str
) -> None:
    fields = {"verify": {"prompts": ["a"], "prediction": verify}} if verify else {}
    assert identity(made(tmp_path, said, None, markers), **fields).prediction == expected


def test_a_folders_scheduler_says_it_too(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    another(tmp_path, "lora", None)
    (tmp_path / "base" / "scheduler").mkdir(exist_ok=True)
    said = json.dumps({"prediction_type": "v_prediction"})
    (tmp_path / "base" / "scheduler" / "scheduler_config.json").write_text(said)
    assert identity(tmp_path, base="base", output={"path": "out"}).prediction == "v"


@pytest.mark.parametrize(("said", "expected"), [("768x640", "768x640"), ("big", "512x512"), ("0x9", "512x512")])
def test_the_bases_resolution_counts_if_it_is_one(tmp_path: Path, said: str, expected: str) -> None:
    assert identity(made(tmp_path, {"modelspec.resolution": said})).resolution == expected


# -- What inputs state -----------------------------------------------------------------------------------


SUBSETS = {"subsets": [{"class_tokens": "sks man"}, {"class_tokens": "man", "is_reg": True}, {"image_dir": "x"}]}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, []),
        ({"modelspec.trigger_phrase": "None"}, []),
        ({"modelspec.trigger_phrase": " ohwx, smile "}, ["ohwx, smile"]),
        ({"trigger_phrase": "plain"}, ["plain"]),
        ({"ss_datasets": json.dumps([SUBSETS, SUBSETS])}, ["sks man"]),
        ({"ss_datasets": "no json"}, []),
        ({"ss_datasets": json.dumps({"subsets": 3})}, []),
        ({"ss_datasets": json.dumps([SUBSETS]), "modelspec.trigger_phrase": "ohwx"}, ["ohwx"]),
        ({"modelspec.trigger_phrase": "x" * 2001}, []),
    ],
)
def test_trigger_phrases_of_a_lora(tmp_path: Path, said: dict[str, str], expected: list[str]) -> None:
    told = identity(made(tmp_path, None, said))
    assert [(phrase.name, phrase.text) for phrase in told.trigger_phrases] == [("lora", text) for text in expected]


def test_trigger_phrases_of_several_are_attributed_and_each_is_there_once(tmp_path: Path) -> None:
    made(tmp_path, None, {"modelspec.trigger_phrase": "ohwx"})
    another(another(tmp_path, "b", {"modelspec.trigger_phrase": "sks"}), "c", {"modelspec.trigger_phrase": "ohwx"})
    told = identity(tmp_path, loras=["lora.safetensors", "b.safetensors", "c.safetensors"])
    assert told.trigger_phrase == "ohwx, sks"
    assert told.usage_hint == "ohwx (of lora); sks (of b); ohwx (of c)"


def test_a_bake_on_a_bake_keeps_the_phrases_of_the_first(tmp_path: Path) -> None:
    first = b.run(b.recipe(made(tmp_path, None, {"modelspec.trigger_phrase": "ohwx"}))).path
    another(tmp_path, "b", {"modelspec.trigger_phrase": "sks"})
    told = identity(tmp_path, base=first.name, loras=["b.safetensors"], output={"path": "second.safetensors"})
    assert [(phrase.name, phrase.text) for phrase in told.trigger_phrases] == [("lora", "ohwx"), ("b", "sks")]


@pytest.mark.parametrize(
    ("base", "lora", "expected"),
    [
        ("", "", ""),
        ("MIT", "MIT", "MIT"),
        ("MIT", "", "base: MIT"),
        ("", "CC0", "lora: CC0"),
        ("MIT", "CC0", "base: MIT; lora: CC0"),
        ("MIT", "one\ntwo", "base: MIT\n\nlora: one\ntwo"),
    ],
)
def test_licences_are_listed_and_never_merged(tmp_path: Path, base: str, lora: str, expected: str) -> None:
    made(tmp_path, {"modelspec.license": base} if base else {}, {"license": lora} if lora else {})
    assert identity(tmp_path).license == expected


def test_files_whose_names_say_nothing_are_called_by_their_folder(tmp_path: Path) -> None:
    made(tmp_path)
    b.peft(tmp_path / "knight", {b.Q: b.lora((b.W, b.W))})
    told = identity(tmp_path, loras=[{"path": "knight/adapter_model.safetensors", "strength": -0.25}])
    assert told.merged_from == "base, knight (-0.25)"


# -- The recipe's last word ------------------------------------------------------------------------------


def test_a_recipe_sets_and_removes_fields(tmp_path: Path) -> None:
    fields = {"author": "me", "modelspec.date": "2026-11-29", "title": "Mine", "modelspec.license": None, "own": "x"}
    made(tmp_path, {"modelspec.license": "MIT", "config": "{}"})
    path = b.run(b.recipe(tmp_path, output={"metadata": {**fields, "config": None}})).path
    metadata = b.header(path)[1]
    assert metadata["modelspec.author"] == "me"
    assert metadata["modelspec.date"] == "2026-11-29"
    assert metadata["modelspec.title"] == "Mine"
    assert metadata["own"] == "x"
    assert not {"modelspec.license", "config", "title", "author"} & metadata.keys()
    assert json.loads(metadata["lorabake.recipe"])["output"]["metadata"]["modelspec.author"] == "me"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lorabake.recipe": "x"}, "lorabake.recipe cannot be set: lorabake writes it itself"),
        ({"lorabake.inputs": None}, "lorabake.inputs cannot be set"),
        ({"modelspec.hash_sha256": "0x0"}, "modelspec.hash_sha256 cannot be set: it is computed from the tensors"),
        ({"_quantization_metadata": None}, "_quantization_metadata cannot be set: it says how weights are stored"),
        ({"title": "a", "modelspec.title": "b"}, "modelspec.title is there twice"),
        ({"tags": 3}, "tags must be text, found the number 3; put it in quotes"),
    ],
)
def test_fields_that_no_recipe_may_set(tmp_path: Path, fields: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml:") as caught:
        load_recipe(b.recipe(made(tmp_path), output={"metadata": fields}))
    assert words in str(caught.value)


def test_the_data_do_not_change(tmp_path: Path) -> None:
    made(tmp_path)
    plain = b.run(b.recipe(tmp_path)).data_sha256
    named = b.run(b.recipe(tmp_path, output={"metadata": {"author": "me"}, "thumbnail": "verify"})).data_sha256
    assert plain == named


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stable-diffusion-v1", None),
        ("stable-diffusion-v1/inpaint", None),
        ("stable-difusion-v1", "did you mean stable-diffusion-v1?"),
        ("zzz", "none of the names that lorabake knows"),
    ],
)
def test_an_architecture_that_nobody_knows_is_noted(tmp_path: Path, name: str, words: str | None) -> None:
    fields = {"output": {"metadata": {"architecture": name}}}
    notes = plan(resolve(load_recipe(b.recipe(made(tmp_path), **fields)))).notes
    assert [words in note for note in notes if "modelspec.architecture" in note] == ([True] if words else [])
