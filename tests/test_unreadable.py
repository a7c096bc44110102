"""What exists and cannot be read is an error everywhere, and never taken for what is not there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lorabake
from lorabake.errors import FileError
from lorabake.recipe import load_recipe
from lorabake.verification import embedded_recipe
from lorabake.verification.samples import kit, networks
from tests import builders as b

GONE = "is a link to nothing"


def link(path: Path) -> Path:
    """Put a link to nothing there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")
    return path


def refused(path: Path, recipe: Path) -> None:
    with pytest.raises(FileError) as caught:
        lorabake.plan(load_recipe(recipe))
    assert str(caught.value).splitlines()[0] == f"{path}: {GONE}"


def test_the_configuration_of_an_adapter(tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    slots = {"model.layers.0.self_attn.q_proj": b.lora((8, 8))}
    folder = b.peft(tmp_path / "lora", slots, lora_alpha=8)
    recipe = b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})
    assert lorabake.plan(load_recipe(recipe)).patches[0].scale == 4
    refused(link(folder / "adapter_config.json"), recipe)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("base", ["base", "base/model.safetensors"])
def test_the_configuration_of_a_base(base: str, tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    out = "out" if base == "base" else "out.safetensors"
    recipe = b.recipe(tmp_path, base=base, loras=["lora"], output={"path": out})
    lorabake.plan(load_recipe(recipe))
    refused(link(tmp_path / "base" / "config.json"), recipe)


@pytest.mark.parametrize("name", ["hyperparameters.yaml", "model_config.yaml"])
def test_what_litgpt_says_of_its_training(name: str, tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    lora = {
        "transformer.h.0.attn.proj.lora_A": torch.ones(2, 8),
        "transformer.h.0.attn.proj.lora_B": torch.ones(8, 2),
    }
    (tmp_path / "lora").mkdir()
    torch.save(lora, tmp_path / "lora" / "lit_model.pth.lora")
    (tmp_path / "lora" / "hyperparameters.yaml").write_text("{lora_r: 2, lora_alpha: 4, lora_query: true}")
    (tmp_path / "lora" / "model_config.yaml").write_text("{n_head: 2, n_query_groups: 1}")
    recipe = b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})
    lorabake.plan(load_recipe(recipe))
    place = link(tmp_path / "lora" / name)
    refused(place, recipe)
    place.unlink()
    with pytest.raises(lorabake.errors.MatchError, match=f"litgpt's {name} is not beside it"):
        lorabake.plan(load_recipe(recipe))


def test_the_inputs_of_a_recipe_in_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to nothing is no reason to take another folder's file of that name."""
    b.save(tmp_path / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(tmp_path / "lora.safetensors")
    baked = b.bake_sd1(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for name in ("base.safetensors", "lora.safetensors"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
        link(tmp_path / name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(FileError, match=GONE):
        lorabake.plan(embedded_recipe(baked))


@pytest.mark.parametrize("name", ["vae/config.json", "scheduler/scheduler_config.json", "unet/config.json"])
def test_configurations_of_networks(name: str, tmp_path: Path) -> None:
    for each in ("unet/config.json", "scheduler/scheduler_config.json"):
        (tmp_path / each).parent.mkdir()
        (tmp_path / each).write_text(json.dumps({"a": 1}))
    assert networks._read(tmp_path).keys() == {"unet", "scheduler"}
    link(tmp_path / name)
    with pytest.raises(FileError, match=f"{name}: {GONE}"):
        networks._read(tmp_path)
    recipe = SimpleNamespace(verify=SimpleNamespace(config=".", tokenizers=None), locate=lambda path: tmp_path / path)
    plan = SimpleNamespace(sources=SimpleNamespace(recipe=recipe, base=SimpleNamespace(is_folder=False)))
    component, _, file = name.partition("/")
    with pytest.raises(FileError, match=f"{name}: {GONE}"):
        kit._config(plan, component, file)  # type: ignore[arg-type]


def test_a_tokenizers_folder(tmp_path: Path) -> None:
    recipe = SimpleNamespace(verify=SimpleNamespace(config=None, tokenizers="."), locate=lambda path: tmp_path / path)
    plan = SimpleNamespace(sources=SimpleNamespace(recipe=recipe, base=SimpleNamespace(is_folder=False)))
    link(tmp_path / "tokenizer")
    with pytest.raises(FileError, match=f"tokenizer: {GONE}"):
        kit._other(plan, "tokenizer", dict)  # type: ignore[arg-type]
