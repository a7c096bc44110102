"""Shipped configurations of families, laid out as diffusers lays out a folder, and what headers tell put in.

`configs/<architecture>` is all that sampling, and a folder made of a single file, know of a family. Its
`lorabake.json` adds what a configuration of diffusers cannot say:

    sizes      what a header tells, by component, in phrases: {"num_layers": "count transformer_blocks.{}.attn.to_q"}
    predicting what differs, by component, in a model that predicts this: {"epsilon": {"unet": {"sample_size": 64}}}
    optional   components that the pipeline can do without
    arguments  what the pipeline is called with
    padding    what a tokenizer pads with, by its name, where it is not what its kind usually pads with
    loop       how lorabake's own loop draws with the family, where diffusers' pipeline is not used (see `Loop`)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Self

from lorabake.configs.sizes import Config, sizes
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.module import Module

NOTES = "lorabake.json"

VELOCITY, NOISE = "v_prediction", "epsilon"
V_PRED, ZERO_SNR = "v_pred", "ztsnr"
"""Tensors by which a single file says that it predicts v, and that its last step is noise alone."""

WORDS = {"epsilon": NOISE, "v": VELOCITY, "v_prediction": VELOCITY}
"""What a header's modelspec.prediction_type says, and what diffusers calls it."""

SCHEDULER, SCHEDULER_CONFIG = "scheduler", "scheduler_config.json"

ZERO_SNR_SCHEDULE = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@dataclass(frozen=True, slots=True)
class Told:
    """Hold what headers tell of a model: its family, its modules by component, and what it predicts.

    `prediction` is diffusers' word, or None where nothing but the family says it. `zero_snr` tells whether the
    schedule ends in noise alone. `given` are configurations that the recipe gives in the place of the family's, by
    their paths in a folder.
    """

    family: str
    modules: Mapping[str, Mapping[str, Module]]
    prediction: str | None = None
    zero_snr: bool = False
    given: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @classmethod
    def by(
        cls,
        key_map: KeyMap,
        metadata: Mapping[str, str] | None = None,
        said: str | None = None,
        given: Mapping[str, Mapping[str, object]] | None = None,
    ) -> Self:
        """Gather what a base's header tells; the recipe's word for what it predicts, `said`, comes before all.

        Marker tensors come before the metadata: loaders read them.
        """
        marked = VELOCITY if V_PRED in key_map.tensors else None
        named = WORDS.get((metadata or {}).get("modelspec.prediction_type", "").strip().lower())
        prediction = said or marked or named
        return cls(
            key_map.architecture.name,
            key_map.modules,
            prediction,
            prediction == VELOCITY and ZERO_SNR in key_map.tensors,
            given or {},
        )


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


def family_config(told: Told, component: str, file: str) -> Config | None:
    """Return what ships for one part of a family's pipeline, with what headers tell put in; or what the recipe gives.

    Raise SizeUnknownError where a header lacks a module that tells a size.
    """
    if (given := told.given.get(f"{component}/{file}")) is not None:
        return {**given, **(_schedule_told(told, given) if component == SCHEDULER else {})}
    place = shipped().joinpath(told.family, component, file)
    if not place.is_file():
        return None
    config: Config = json.loads(place.read_text(encoding="utf-8"))
    config |= sizes_of(component, told, config)
    if not component:  # this model's pipeline does not have what is null
        return {name: value for name, value in config.items() if value is not None}
    if component == SCHEDULER:
        return config | _schedule_told(told, config)
    by_prediction: dict[str, dict[str, Config]] = notes_of(told.family).get("predicting", {})
    return config | by_prediction.get(_predicted(told), {}).get(component, {})


def sizes_of(component: str, told: Told, config: Config) -> Config:
    """Read the sizes that headers tell of one network; `config` has what they do not tell."""
    said = notes_of(told.family).get("sizes", {}).get(component or "model_index", {})
    named = {f"{owner}:{name}": module for owner, modules in told.modules.items() for name, module in modules.items()}
    return sizes(said, {**named, **told.modules.get(component, {})}, config)


def _predicted(told: Told) -> str:
    """Return what a model predicts: what is told, or what its family does; empty where that is but one thing."""
    if told.prediction is not None:
        return told.prediction
    schedule = family_config(told, SCHEDULER, SCHEDULER_CONFIG) or {}
    return str(schedule.get("prediction_type", ""))


def _schedule_told(told: Told, config: Mapping[str, object]) -> Config:
    """Return the fields of a schedule that say what the model predicts; none for a family that always does one."""
    if "prediction_type" not in config or told.prediction is None:
        return {}
    return {"prediction_type": told.prediction} | (ZERO_SNR_SCHEDULE if told.zero_snr else {})
