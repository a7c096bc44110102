"""All that PEFT's configurations can say is baked, or refused by name: a new PEFT's new words fail these tests."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path

import pytest
import torch

from lorabake.adapters import peft_fields
from lorabake.errors import FileError, LorabakeError
from lorabake.keymap.adapter_config import PLAIN_INITS, REFUSED, REFUSED_FIELDS, WITHOUT_EFFECT, read_config
from tests import builders as b
from tests.oracle.test_peft_kinds import LAYERS, METHODS, Net, adapter

peft = pytest.importorskip("peft")
CONFIGS = pytest.importorskip("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
TYPES = [each.value for each in peft.PeftType]

# What AdaLoRA's configuration has of LoRA's, and PEFT refuses or does not read; refused here, too, where it is set.
OF_LORA = {"alpha_pattern", "lora_bias", "monteclora_config", "target_parameters", "trainable_token_indices"}
OF_LORA |= {"use_dora", "use_rslora", "velora_config"}

CHANGED_INITS = {"olora", "pissa", "pissa_niter_[number of iters]", "corda", "loftq"}


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_baked_or_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    assert (name in peft_fields()) != (name in REFUSED), "bake it, or say in keymap/adapter_config.py why not"
    if name in REFUSED:
        b.save(tmp_path / "base.safetensors", {"fc.weight": torch.zeros(4, 4)})
        b.save(tmp_path / "adapter" / "adapter_model.safetensors", {"base_model.model.fc.x": torch.zeros(4)})
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": name}))
        with pytest.raises(LorabakeError, match=f"type {name} cannot be baked: it") as refusal:
            b.bake_sd1(tmp_path, loras=["adapter"])
        assert REFUSED[name] in str(refusal.value)
        assert not (tmp_path / "out.safetensors").exists()


def test_every_baked_type_is_compared_with_pefts_merge() -> None:
    compared = {
        getattr(peft, config)(**{"target_modules": LAYERS, **options}).peft_type.value
        for config, options in METHODS.values()
    }
    assert compared == peft_fields().keys()


@pytest.mark.parametrize("name", sorted(peft_fields()))
def test_every_field_of_a_baked_type_is_known(name: str) -> None:
    fields = {each.name for each in dataclasses.fields(CONFIGS[peft.PeftType(name)])}
    known = peft_fields()[name] | WITHOUT_EFFECT | REFUSED_FIELDS.keys() | {"init_lora_weights"}
    assert fields - known == (OF_LORA if name == "ADALORA" else set()), "what do they do to a merge?"


@pytest.mark.parametrize("field", REFUSED_FIELDS)
def test_every_refused_field_is_one_of_pefts(field: str) -> None:
    assert field in {each.name for each in dataclasses.fields(peft.LoraConfig)}


def test_every_initialisation_leaves_the_base_or_is_refused() -> None:
    said = typing.get_type_hints(peft.LoraConfig)["init_lora_weights"]
    names = {name for each in typing.get_args(said) for name in typing.get_args(each)}
    assert names == {each for each in PLAIN_INITS if isinstance(each, str)} | CHANGED_INITS
    for name in (*CHANGED_INITS, "lora_ga"):
        config = {"peft_type": "LORA", "init_lora_weights": name}
        with pytest.raises(FileError, match="trained against a changed base"):
            read_config(config, "here", peft_fields())


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "mica", "pissa", "olora"])
def test_an_initialisation_is_plain_if_it_leaves_the_base(init: bool | str) -> None:
    torch.manual_seed(0)
    net = Net()
    before = net.fc.weight.detach().clone()
    peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=["fc"], init_lora_weights=init))
    assert torch.equal(net.fc.weight, before) == (init in PLAIN_INITS)


def test_oft_by_the_series_of_an_older_peft_is_refused(tmp_path: Path) -> None:
    """PEFT says its version since 0.18, when it changed the series; it warns of older files itself."""
    adapter(tmp_path, "OFT by the series", torch.float32)
    b.bake_sd1(tmp_path, loras=["adapter"])
    place = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(place.read_text())
    del config["peft_version"]
    place.write_text(json.dumps(config))
    with pytest.raises(LorabakeError, match=r"the series of PEFT before 0\.18 was another"):
        b.bake_sd1(tmp_path, loras=["adapter"])
