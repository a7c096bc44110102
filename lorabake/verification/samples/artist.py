"""What makes results for every model that is compared: variants in; latents and pictures of every prompt out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorabake.planning import Plan
from lorabake.recipe import Verify
from lorabake.reference.arrays import Files
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.header import TensorInfo
from lorabake.verification.findings import SampleOptions
from lorabake.verification.samples.networks import seen
from lorabake.verification.samples.parts import check_words
from lorabake.verification.samples.runtime import CannotLoadError, Factors, Loaders, Weights

if TYPE_CHECKING:
    from lorabake.verification.findings import Pixels


@dataclass(frozen=True, slots=True)
class Variant:
    """Name one model to sample: the base with `factors` on the LoRAs' strengths, or the checkpoint itself.

    `round_off` gives the weights the output's precision; without `factors` no LoRA is applied.
    """

    name: str
    factors: Factors | None = None
    round_off: bool = False
    is_checkpoint: bool = False


@dataclass(slots=True)
class Results:
    """Hold what each variant made of each prompt."""

    latents: dict[tuple[str, int], NDArray[np.float32]] = field(default_factory=dict)
    pictures: dict[tuple[str, int], Pixels] = field(default_factory=dict)


class Artist(ABC):
    """Draw pictures with one kind of model; `steps` is the number of steps that one picture takes."""

    steps: int

    def __init__(
        self, plan: Plan, baked: Checkpoint, files: Files, prompts: tuple[str, ...], options: SampleOptions
    ) -> None:
        self.plan, self.files, self.prompts, self.options = plan, files, prompts, options
        self.said = plan.sources.recipe.verify or Verify.model_validate({"prompts": prompts})
        self.seed = options.seed if options.seed is not None else self.said.seed
        self.guidance = options.guidance if options.guidance is not None else self.said.guidance
        self.size = options.size or self.said.size
        self.device = options.device or "cpu"
        self.negative = self.said.negative_prompt
        self.weights, self.loaders = Weights(plan, files), Loaders(plan)
        owner = plan.sources.key_map.owner
        self.touched = {owner.get(target.key) for step in plan.steps for target in step.targets}
        self._base = self._sources = seen(plan.sources.base)
        self._baked = seen(baked)
        if plan.sources.vae is not None:
            vae = [each for file in plan.files for each in file.targets if owner.get(each.key) == "vae"]
            self._sources = self._base | {target.key: target.source for target in vae}
        self.fallback = ""
        self.done = self.total = 0

    def make(self, work: list[Variant]) -> Results:
        """Make every variant's results; where a library cannot load a LoRA, with lorabake's formulas instead."""
        self.total = len(work) * len(self.prompts) * self.steps
        try:
            return self._draw(work)
        except CannotLoadError as error:
            self.fallback = str(error)
            self.done = 0
            return self._draw(work)

    @abstractmethod
    def _draw(self, work: list[Variant]) -> Results: ...

    def check_words(self) -> None:
        """Raise CannotDrawError where a tokenizer is not the one that a text encoder was trained with."""
        for encoder, made, rows in self.vocabularies():
            check_words(made, (*self.prompts, self.negative), rows, encoder)

    @abstractmethod
    def vocabularies(self) -> Iterator[tuple[str, Any, int]]:
        """Yield each text encoder, its tokenizer, and how many tokens the encoder knows."""

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """Tell how the pictures were made, in words."""

    def infos(self, variant: Variant) -> Mapping[str, TensorInfo]:
        """Return the tensors that a variant's networks are built of, by the base's keys."""
        if variant.is_checkpoint:
            return self._baked
        if variant.factors is None:
            return self._base
        return self._sources

    def apply(self, network: Any, component: str, variant: Variant) -> None:
        """Give a network of the base the LoRAs of a variant, if any of them touches it."""
        if variant.factors is None or component not in self.touched:
            return
        if variant.round_off or self.fallback:
            self.weights.place(network, component, variant.factors, round_off=variant.round_off)
        else:
            self.loaders.load(network, component, variant.factors)

    def label(self, variant: Variant, number: int) -> str:
        """Say what is being made."""
        return f"{variant.name}, prompt {number + 1} of {len(self.prompts)}"

    def tick(self, label: str) -> None:
        """Count one step."""
        self.done += 1
        self.options.progress(self.done, self.total, label)
