"""What a bake writes beside the weights of a folder that it makes of a single file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from lorabake import load_recipe, plan
from tests import builders as b


def folder_of(folder: Path, base: b.Tensors, metadata: dict[str, str] | None = None, **fields: object) -> Path:
    b.save(folder / "base.safetensors", base, metadata)
    return b.recipe(
        folder, base="base.safetensors", loras=[], output={"path": "folder", "layout": "diffusers"}, **fields
    )


def schedule(folder: Path) -> dict[str, object]:
    read: dict[str, object] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return read


def test_a_folder_has_the_texts_that_its_pipeline_reads(tmp_path: Path) -> None:
    baked = b.run(folder_of(tmp_path, b.sdxl())).path
    index = json.loads((baked / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    for name, said in index.items():
        if isinstance(said, list) and said[0] is not None:
            assert any((baked / name).glob("*.json")), name
    assert json.loads((baked / "unet" / "config.json").read_text())["cross_attention_dim"] == b.CONTEXT
    assert not (baked / "MISSING.txt").exists()


def test_two_bakes_give_the_same_texts(tmp_path: Path) -> None:
    path = folder_of(tmp_path, b.sd1())
    first = b.tree(b.run(path).path)
    again = b.run(path, overwrite=True).path
    assert b.tree(again) == first


def test_what_the_file_lacks_is_told_and_written(tmp_path: Path) -> None:
    base = {key: value for key, value in b.sd1().items() if not key.startswith("first_stage_model.")}
    path = folder_of(tmp_path, base)
    (note,) = (each for each in plan(load_recipe(path)).notes if "the folder lacks" in each)
    assert note.startswith("the folder lacks vae (AutoencoderKL): name it in output.parts (vae: PATH), or copy it")
    baked = b.run(path).path
    assert "  vae - read by diffusers.AutoencoderKL\n" in (baked / "MISSING.txt").read_text()
    assert not (baked / "vae").exists()


def test_the_scheduler_says_what_markers_metadata_and_recipe_say(tmp_path: Path) -> None:
    base = b.sdxl()
    for number, (tensors, metadata, more, said) in enumerate(
        [
            ({}, {}, {}, "epsilon"),
            ({"v_pred": torch.zeros(0)}, {}, {}, "v_prediction"),
            ({}, {"modelspec.prediction_type": "v"}, {}, "v_prediction"),
            ({}, {}, {"verify": {"prompts": ["a"], "prediction": "v_prediction"}}, "v_prediction"),
        ]
    ):
        place = tmp_path / str(number)
        place.mkdir()
        baked = b.run(folder_of(place, base | tensors, metadata, **more)).path
        assert schedule(baked)["prediction_type"] == said


def test_configurations_that_the_recipe_gives_take_the_place_of_the_familys(tmp_path: Path) -> None:
    given = tmp_path / "given"
    for place, said in {
        "unet/config.json": {"_class_name": "UNet2DConditionModel", "norm_num_groups": 1},
        "scheduler/scheduler_config.json": {"beta_end": 0.5, "prediction_type": "epsilon"},
    }.items():
        (given / place).parent.mkdir(parents=True)
        (given / place).write_text(json.dumps(said))
    verify = {"prompts": ["a"], "config": "given"}
    baked = b.run(folder_of(tmp_path, b.sdxl() | {"v_pred": torch.zeros(0)}, verify=verify)).path
    assert json.loads((baked / "unet" / "config.json").read_text())["norm_num_groups"] == 1
    assert schedule(baked)["beta_end"] == 0.5
    assert schedule(baked)["prediction_type"] == "v_prediction"
    assert json.loads((baked / "vae" / "config.json").read_text())["norm_num_groups"] == 32


def test_on_the_way_back_a_file_is_told_what_only_the_folder_has(tmp_path: Path) -> None:
    baked = b.run(folder_of(tmp_path, b.sdxl() | {"v_pred": torch.zeros(0)})).path
    shutil.rmtree(baked / "vae")
    path = b.recipe(tmp_path, base="folder", loras=[], output={"path": "o.safetensors", "layout": "single"})
    notes = plan(load_recipe(path)).notes
    assert "the file lacks vae (AutoencoderKL): programs load what is missing from files of its own" in notes
    assert any(
        note.startswith("the folder's scheduler says v_prediction, and the file has no tensor") for note in notes
    )
