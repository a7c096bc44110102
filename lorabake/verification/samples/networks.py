"""Build the networks that lorabake's own loop draws with, wholly offline, one at a time, in float32.

diffusers' own single-file conversion names the tensors, so that sampling does not rest on lorabake's tables. The
configurations ship with lorabake (`configs/`), with what a header tells of sizes put in, so that small, pruned and
widened models work.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabake.codecs.codec import Stored
from lorabake.configs import SCHEDULER_CONFIG, Told, family_config
from lorabake.configs.sizes import Config
from lorabake.errors import FileError
from lorabake.keymap.expansion import KeyMap
from lorabake.planning import Plan
from lorabake.planning.beside import told_of
from lorabake.reference.arrays import Files
from lorabake.tensors.checkpoint import optional_object
from lorabake.tensors.reader import is_there
from lorabake.verification.samples.kit import class_of, pipeline_class
from lorabake.verification.samples.values import as_torch

if TYPE_CHECKING:
    import torch

UNREAD = "text_projection.weight"
"""What files have of text encoders whose class in transformers ends before it."""

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
COMPONENTS = ("unet", "vae", *TEXT_ENCODERS, "scheduler")
CONFIG_FILES = {"scheduler": SCHEDULER_CONFIG}
"""What a component's configuration is called where it is not config.json."""

OWN_LAYOUTS = ("diffusers", "hf", "hf_flat")
"""Layouts that name tensors as diffusers' and transformers' classes do; others are converted."""


@dataclass(frozen=True, slots=True)
class Configs:
    """Hold a family's configurations by component, sizes from the header put in; `folder` holds them as files.

    `classes` names library and class of each component, `pipeline` is diffusers' class for the family.
    """

    folder: Path
    parts: Mapping[str, Config]
    classes: Mapping[str, tuple[str, str]]
    pipeline: Any


@contextmanager
def configs(plan: Plan) -> Iterator[Configs]:
    """Write the configurations of a plan's base to a folder that lives as long as this.

    They come from `verify.config` of the recipe, from the base where it is a diffusers folder, else from the shipped
    ones of its family.
    """
    said, told = plan.sources.recipe.verify, told_of(plan.sources)
    with tempfile.TemporaryDirectory(prefix="lorabake-") as name:
        folder = Path(name)
        if said is not None and said.config is not None:
            source = plan.sources.recipe.locate(said.config)
            if not is_there(source / "unet" / "config.json"):
                raise FileError(f"{source}: verify.config must be a folder with unet/config.json, vae/config.json …")
            parts = _read(source)
        elif plan.sources.base.is_folder:
            parts = _read(plan.sources.base.path)
        else:
            parts = _shipped(told)
        for component, config in parts.items():
            (folder / component).mkdir()
            (folder / component / _file_of(component)).write_text(json.dumps(config))
        index = family_config(told, "", "model_index.json") or {}
        classes = {
            component: (index[component][0], index[component][1]) for component in COMPONENTS if component in index
        }
        yield Configs(folder, parts, classes, pipeline_class(index["_class_name"]))


def _read(source: Path) -> dict[str, Config]:
    found: dict[str, Config] = {}
    for component in COMPONENTS:
        for name in ("config.json", "scheduler_config.json"):
            if (said := optional_object(source / component / name)) is not None:
                found[component] = dict(said)
    return found


def _shipped(told: Told) -> dict[str, Config]:
    there = (component for component in COMPONENTS if component in told.modules or component == "scheduler")
    found = {component: family_config(told, component, _file_of(component)) for component in there}
    return {component: config for component, config in found.items() if config is not None}


def _file_of(component: str) -> str:
    return CONFIG_FILES.get(component, "config.json")


def build(
    component: str, key_map: KeyMap, infos: Mapping[str, Stored], configs: Configs, files: Files
) -> torch.nn.Module:
    """Build one network in float32 from the tensors of `infos` (by the base's keys) that belong to it."""
    layout, prefix = key_map.placed[component]
    own = [key for key, owner in key_map.owner.items() if owner == component and key in infos]
    is_encoder = component in TEXT_ENCODERS
    converts = layout.name not in OWN_LAYOUTS or (is_encoder and not prefix.endswith("/"))
    state = {key if converts else key.removeprefix(prefix): as_torch(infos[key], files) for key in own}
    make = _text_encoder if is_encoder else _network
    network = make(class_of(*configs.classes[component]), component, state, configs, converts=converts)
    made: torch.nn.Module = network.float().eval().requires_grad_(False)  # a configuration may name another dtype
    return made


def _network(maker: Any, component: str, state: Mapping[str, Any], configs: Configs, *, converts: bool) -> Any:
    if converts:
        return maker.from_single_file(dict(state), **_options(component, configs))
    network = maker.from_config(configs.parts[component])
    network.load_state_dict(state, strict=True)
    return network


def _text_encoder(maker: Any, component: str, state: Mapping[str, Any], configs: Configs, *, converts: bool) -> Any:
    if converts:
        from diffusers.loaders import single_file_utils

        convert: Any = single_file_utils.create_diffusers_clip_model_from_ldm  # it has no types
        return convert(maker, checkpoint=dict(state), **_options(component, configs))
    network = maker(maker.config_class.from_pretrained(configs.folder / component))
    if not hasattr(network, "text_model"):
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
    unread = {UNREAD} - network.state_dict().keys()
    network.load_state_dict(
        {key: value for key, value in state.items() if key not in unread and not key.endswith("position_ids")},
        strict=True,
    )
    return network


def _options(component: str, configs: Configs) -> dict[str, Any]:
    import torch

    return {
        "config": str(configs.folder),
        "subfolder": component,
        "local_files_only": True,
        "torch_dtype": torch.float32,
    }
