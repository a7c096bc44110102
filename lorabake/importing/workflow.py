"""Read a ComfyUI workflow, as far as its plain loader nodes say which LoRAs a sampler's model has.

A picture holds the workflow in ComfyUI's API format: a node's number -> its class and inputs; an input is a value, or
[number of a node, number of its output]. Names of nodes and inputs from ComfyUI's nodes.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from lorabake.errors import FileError
from lorabake.importing.wanted import Call, Wanted
from lorabake.visible import at_a_glance

Node = Mapping[str, object]

SAMPLERS = ("KSampler", "KSamplerAdvanced")
LORAS = ("LoraLoader", "LoraLoaderModelOnly")
LOADERS = {"CheckpointLoaderSimple": "ckpt_name", "CheckpointLoader": "ckpt_name", "UNETLoader": "unet_name"}
"""Class of a node that loads a model -> the input with the file's name."""

TEXT_LOADERS = (*LOADERS, "CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader")

OF_SAMPLING = (
    "ModelSamplingDiscrete",
    "ModelSamplingContinuousEDM",
    "ModelSamplingContinuousV",
    "ModelSamplingSD3",
    "ModelSamplingAuraFlow",
    "ModelSamplingFlux",
    "ModelSamplingLTXV",
    "RescaleCFG",
    "CFGNorm",
    "FreeU",
    "FreeU_V2",
    "HyperTile",
    "TomePatchModel",
    "PatchModelAddDownscale",
    "PerturbedAttentionGuidance",
    "SelfAttentionGuidance",
    "DifferentialDiffusion",
    "CLIPSetLastLayer",
)
"""Nodes that set how a model is sampled, and leave its weights as they are."""

IS_NEEDED = "Give the base and LoRAs yourself: --base PATH --lora PATH=0.8."


def read_workflow(text: str, name: str) -> Wanted:
    """Return what a workflow says; `name` stands for the picture in messages.

    Raise FileError where a node changes the model that is no plain loader.
    """
    try:
        nodes = json.loads(text)
    except ValueError:
        raise FileError(f"{name}: the workflow in it is no JSON", IS_NEEDED) from None
    if not isinstance(nodes, dict) or not all(isinstance(node, dict) for node in nodes.values()):
        raise FileError(f"{name}: the workflow in it is not in ComfyUI's API format", IS_NEEDED)
    return _Graph(nodes, name).wanted()


@dataclass(frozen=True, slots=True)
class _Graph:
    """Follow the links of a workflow."""

    nodes: Mapping[str, Node]
    name: str

    def wanted(self) -> Wanted:
        """Follow the one sampler's model and text encoder back to what loads them."""
        sampler = self._sampler()
        model, text = [*self._behind(sampler, "model")], [*self._texts(sampler)]
        uses = dict.fromkeys([*model, *text])
        ends = [number for number in model if self._class(number) in LOADERS]
        order = [number for number in reversed(uses) if self._class(number) in LORAS]
        passed = sorted({self._class(number) for number in uses if self._class(number) in OF_SAMPLING})
        positive, negative = (self._prompt(sampler, side) for side in ("positive", "negative"))
        return Wanted(
            calls=tuple(self._call(number, number in model, number in text) for number in order),
            base=str(self._input(ends[0], LOADERS[self._class(ends[0])])),
            prompt=positive,
            negative_prompt=negative,
            seed=self._whole(sampler, "seed", "noise_seed"),
            steps=self._whole(sampler, "steps"),
            size=self._size(sampler),
            guidance=self._number(sampler, "cfg"),
            notes=tuple(f"The workflow has a node {title}: it is about sampling, and not baked." for title in passed),
        )

    def _sampler(self) -> str:
        """Return the only sampler; several are alike if they sample one model with one set of LoRAs."""
        samplers = [number for number in self.nodes if self._class(number) in SAMPLERS]
        if not samplers:
            raise self._error(f"the workflow has no node {' or '.join(SAMPLERS)}")
        chains = {tuple(self._behind(number, "model")) for number in samplers}
        if len(chains) > 1:
            raise self._error(f"the workflow samples {len(chains)} models")
        return samplers[0]

    def _behind(self, number: str, link: str) -> Iterator[str]:
        """Yield the nodes behind an input, the nearest first, up to what loads a model."""
        seen = set()
        while (node := self._linked(number, link)) is not None:
            title = self._class(node)
            if node in seen:
                raise self._error(f"node {node} ({at_a_glance(title)}) is its own input")
            seen.add(node)
            if title not in (*LORAS, *OF_SAMPLING, *TEXT_LOADERS):
                what = "model" if link == "model" else "text encoder"
                raise self._error(f"node {node} ({at_a_glance(title)}) gives a {what}, in a way unknown here")
            yield node
            if title in TEXT_LOADERS:
                return
            number = node
        raise self._error(f"node {number} ({at_a_glance(self._class(number))}) has no {link}")

    def _texts(self, sampler: str) -> Iterator[str]:
        """Yield the nodes behind the text encoder of the prompt."""
        encoder = self._encoder(sampler, "positive")
        yield from () if encoder is None else self._behind(encoder, "clip")

    def _encoder(self, sampler: str, side: str) -> str | None:
        """Return the node that encodes a prompt, where that is plain."""
        node = self._linked(sampler, side)
        while node is not None and self._class(node) in ("FluxGuidance", "ConditioningZeroOut"):
            node = self._linked(node, "conditioning")
        is_plain = node is not None and self._linked(node, "clip") is not None
        if side == "positive" and node is not None and not is_plain:
            raise self._error(f"node {node} ({at_a_glance(self._class(node))}) gives the prompt, and is not plain")
        return node if is_plain else None

    def _prompt(self, sampler: str, side: str) -> str:
        encoder = self._encoder(sampler, side)
        text = None if encoder is None else self._inputs(encoder).get("text")
        return " ".join(text.split()) if isinstance(text, str) else ""

    def _size(self, sampler: str) -> tuple[int, int] | None:
        latent = self._linked(sampler, "latent_image")
        sides = [self._inputs(latent).get(side) for side in ("width", "height")] if latent is not None else []
        return (sides[0], sides[1]) if len(sides) == 2 and all(type(side) is int for side in sides) else None  # type: ignore[return-value]

    def _call(self, number: str, is_on_model: bool, is_on_text: bool) -> Call:
        model = self._strength(number, "strength_model") if is_on_model else 0.0
        text = self._strength(number, "strength_clip") if is_on_text else 0.0
        return Call(str(self._input(number, "lora_name")), model=model, text=text)

    def _strength(self, number: str, name: str) -> float:
        value = self._input(number, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(f"node {number}: its {name} comes from another node")
        return float(value)

    def _class(self, number: str) -> str:
        return str(self.nodes[number].get("class_type", ""))

    def _inputs(self, number: str) -> Mapping[str, object]:
        inputs = self.nodes[number].get("inputs")
        return cast(Mapping[str, object], inputs) if isinstance(inputs, dict) else {}

    def _input(self, number: str, name: str) -> object:
        value = self._inputs(number).get(name)
        if value is None or isinstance(value, list):
            raise self._error(f"node {number} ({at_a_glance(self._class(number))}) does not say its {name}")
        return value

    def _linked(self, number: str, name: str) -> str | None:
        match self._inputs(number).get(name):
            case [node, _] if str(node) in self.nodes:
                return str(node)
        return None

    def _whole(self, number: str, *names: str) -> int | None:
        values = (self._inputs(number).get(name) for name in names)
        return next((value for value in values if type(value) is int and value >= 0), None)

    def _number(self, number: str, name: str) -> float | None:
        value = self._inputs(number).get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def _error(self, what: str) -> FileError:
        return FileError(f"{self.name}: {what}", IS_NEEDED)
