"""Shipped configurations of families, laid out as diffusers lays out a folder, and what a header tells put in.

`configs/<architecture>` is all that sampling knows of a family. Its `lorabake.json` adds what a configuration of
diffusers cannot say:

    sizes      what a header tells, by component, in phrases: {"num_layers": "count transformer_blocks.{}.attn.to_q"}
    optional   components that the pipeline can do without
    arguments  what the pipeline is called with
    padding    what a tokenizer pads with, by its name, where it is not what its kind usually pads with
    loop       how lorabake's own loop draws with the family, where diffusers' pipeline is not used (see `Loop`)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from lorabake.configs.sizes import Config, sizes
from lorabake.keymap.expansion import KeyMap

NOTES = "lorabake.json"


@dataclass(frozen=True, slots=True)
class Loop:
    """Say how a family's own loop reads prompts: by which state of the text encoders, and with what beside it.

    `is_penultimate` takes the state before the last layer, else the last one, normalised. With `zeros_for_no_words`
    an empty prompt becomes zeros. `scores` are what shall and what shall not be, for a model that is told a score.
    """

    is_penultimate: bool
    zeros_for_no_words: bool
    scores: tuple[float, float] | None


def shipped() -> Traversable:
    """Return the folder of configurations and vocabulary that comes with lorabake."""
    return resources.files("lorabake").joinpath("configs")


def notes_of(family: str) -> Config:
    """Read what lorabake adds to a family's configurations."""
    place = shipped().joinpath(family, NOTES)
    notes: Config = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    return notes


def loop_of(family: str) -> Loop | None:
    """Return how a family's own loop reads prompts; None for a family that diffusers' pipeline draws with."""
    said: dict[str, Any] | None = notes_of(family).get("loop")
    if said is None:
        return None
    scores = said.get("scores")
    return Loop(
        is_penultimate=said["state"] == "penultimate",
        zeros_for_no_words=bool(said.get("zeros_for_no_words", False)),
        scores=(float(scores[0]), float(scores[1])) if scores is not None else None,
    )


def family_config(key_map: KeyMap, component: str, file: str) -> Config | None:
    """Return what ships for one part of a family's pipeline, with what the header tells put in."""
    family = key_map.architecture.name
    place = shipped().joinpath(family, component, file)
    if not place.is_file():
        return None
    config: Config = json.loads(place.read_text(encoding="utf-8"))
    return config | sizes_of(component, key_map, config)


def sizes_of(component: str, key_map: KeyMap, config: Config) -> Config:
    """Read the sizes that a header tells of one network; `config` has what it does not tell.

    Raise SizeUnknownError where the header lacks a module that a phrase names.
    """
    said = notes_of(key_map.architecture.name).get("sizes", {}).get(component or "model_index", {})
    named = {
        f"{owner}:{name}": module for owner, modules in key_map.modules.items() for name, module in modules.items()
    }
    return sizes(said, {**named, **key_map.modules.get(component, {})}, config)
