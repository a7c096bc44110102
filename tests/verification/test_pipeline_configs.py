"""What ships for diffusers' pipelines: each network, built on no memory, has the names and shapes of real headers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from lorabake.configs import Told, family_config, shipped
from lorabake.keymap.expansion import KeyMap
from lorabake.sources.family import identify
from lorabake.verification.samples import NEEDED
from lorabake.verification.samples.building import empty
from lorabake.verification.samples.kit import Part, class_of
from tests.tables import load_table, names

pytestmark = pytest.mark.skipif(any(find_spec(name) is None for name in NEEDED), reason="lorabake[verify] is missing")

CONFIGS = Path(str(shipped()))
FAMILIES = sorted(each.parent.parent.name for each in CONFIGS.glob("*/transformer/config.json"))

OTHERS = ("framepack", "wan21_i2v", "wan_animate", "wan_vace")
"""Members of a family whose pipelines start from a picture or a video, which a prompt is not."""


def headers() -> list[tuple[str, str]]:
    """List (family, table) of every real header whose family ships a transformer."""
    found = []
    for table in names("checkpoint"):
        family = identify(load_table(table)).name
        if family in FAMILIES and not table.endswith(OTHERS):
            found.append((family, table))
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("family", "table"), headers())
def test_the_shipped_network_is_the_headers(family: str, table: str) -> None:
    tensors = load_table(table)
    key_map = KeyMap.expand(identify(tensors), tensors)
    told = Told.by(key_map)
    index, config = family_config(told, "", "model_index.json"), family_config(told, "transformer", "config.json")
    assert index is not None
    assert config is not None
    network = empty(Part("transformer", class_of(*index["transformer"]), config, {}))
    due = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    layout, prefix = key_map.placed["transformer"]
    own = {key.removeprefix(prefix) for key, owner in key_map.owner.items() if owner == "transformer"}
    if layout.name == "diffusers":
        assert {name: tensors[prefix + name].shape for name in own} == due
        return
    there = {name: tensors[prefix + name].shape for name in own if name in due}
    for name, module in key_map.modules_in("transformer", "diffusers").items():
        for parameter, view in module.views.items():
            there[name if name in due else f"{name}.{parameter}"] = view.shape
    assert {name: there.get(name) for name in due} == due


def test_what_ships_is_read() -> None:
    """Every file is one that diffusers has by that name, and every component has its class's configuration."""
    for family in FAMILIES:
        folder = CONFIGS / family
        index = json.loads((folder / "model_index.json").read_text())
        for each in folder.glob("*/*config.json"):
            config = json.loads(each.read_text())
            said = config.get("_class_name") or config.get("architectures", [index[each.parent.name][1]])[0]
            assert said == index[each.parent.name][1], each
