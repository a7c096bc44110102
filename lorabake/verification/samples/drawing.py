"""The one sampler: every model that is compared draws every prompt, with only the networks in memory that it takes.

It encodes with all models, then takes noise away with all, then decodes. What a model is made of, and how each of
the three is done, an `Artist` says: lorabake's own loop (`unets.py`) or diffusers' pipelines (`pipelines.py`). There
are two, because diffusers has no pipeline that draws a prompt alone with a refiner, or with a model for inpainting or
depth, and lorabake's loop has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorabake.codecs.codec import Stored
from lorabake.keymap.expansion import KeyMap
from lorabake.recipe import Verify
from lorabake.reference.arrays import Files
from lorabake.verification.converted import Seen
from lorabake.verification.findings import SampleOptions, SettingValue
from lorabake.verification.samples.album import Album, Drawn, facts_of_base
from lorabake.verification.samples.loading import Loaders, LoadFile
from lorabake.verification.samples.placing import Factors, Weights
from lorabake.verification.samples.refusals import CannotLoadError
from lorabake.verification.samples.tokenizers import check_words
from lorabake.verification.samples.values import in_words, seen

if TYPE_CHECKING:
    from lorabake.verification.findings import Pixels

Networks = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Variant:
    """Name one model to sample: the base with `factors` on the LoRAs' strengths, or the checkpoint itself.

    `round_off` gives the weights the output's precision; without `factors` no LoRA is applied.
    """

    name: str
    factors: Factors | None = None
    round_off: bool = False
    is_checkpoint: bool = False


BASE = Variant("base")
"""The base alone."""


@dataclass(frozen=True, slots=True)
class State:
    """Tell apart what some networks are in different variants: whose tensors they have, and what is applied."""

    tensors: str
    factors: Factors | None
    round_off: bool


@dataclass(frozen=True, slots=True)
class Denoised:
    """Hold what is left of the noise: as an array, and as whatever the artist decodes."""

    latents: NDArray[np.float32]
    arguments: tuple[Any, ...]


@dataclass(slots=True)
class Results:
    """Hold what each variant made of each prompt."""

    latents: dict[tuple[str, int], NDArray[np.float32]] = field(default_factory=dict)
    pictures: dict[tuple[str, int], Pixels] = field(default_factory=dict)

    def missing(self, variant: Variant, prompts: int) -> list[int]:
        """Return the numbers of the prompts that a variant has still to draw."""
        return [number for number in range(prompts) if (variant.name, number) not in self.pictures]


class Artist(ABC):
    """Draw pictures with one kind of model; `steps` is the number of steps that one picture takes.

    `encoders`, `denoisers` and `decoders` name the networks that each part of the work takes.
    """

    steps: int
    encoders: Sequence[str]
    denoisers: Sequence[str]
    decoders: Sequence[str]

    def __init__(self, there: Seen, files: Files, prompts: tuple[str, ...], options: SampleOptions) -> None:
        plan = there.plan
        self.plan, self.files, self.prompts, self.options = plan, files, prompts, options
        self.said = plan.sources.recipe.verify or Verify.model_validate({"prompts": prompts})
        self.seed = options.seed if options.seed is not None else self.said.seed
        self.guidance = options.guidance if options.guidance is not None else self.said.guidance
        self.size = options.sides or self.said.size
        self.device = options.device or "cpu"
        self.negative = self.said.negative_prompt
        self.weights, self.loaders = Weights(plan, files), Loaders(plan, self.load_file)
        owner = plan.sources.key_map.owner
        self.touched = {owner.get(target.key) for step in plan.steps for target in step.targets}
        base = seen(plan.sources.base)
        self._tensors: dict[str, Mapping[str, Stored]] = {
            "base": base,
            "checkpoint": seen(there.itself or there.checkpoint),
        }
        self._own_map: KeyMap | None = None
        if there.itself is not None:  # networks are built of it as of any file of its layout, whoever made it
            self._own_map = KeyMap.expand(plan.sources.key_map.architecture, there.itself.tensors)
        if plan.sources.vae is not None:
            vae = [each for file in plan.files for each in file.targets if owner.get(each.key) == "vae"]
            self._tensors["base with another VAE"] = base | {target.key: target.weight for target in vae}
        self.fallback = ""
        self.done = self.total = 0

    def make(self, work: Sequence[Variant], album: Album | None = None) -> Results:
        """Make every variant's results; where a library cannot load a LoRA, with lorabake's formulas instead.

        What the base drew already is taken from the album, and what it draws now is kept there.
        """
        known = Results()
        if album is not None:
            for number in range(len(self.prompts)):
                if (drawn := album.picture(self._facts(number))) is not None:
                    known.latents[BASE.name, number], known.pictures[BASE.name, number] = drawn.latents, drawn.picture
        self.total = self.steps * sum(len(known.missing(variant, len(self.prompts))) for variant in work)
        try:
            results = self._draw(work, known)
        except CannotLoadError as error:
            self.fallback = str(error)
            self.done = 0
            results = self._draw(work, known)
        if album is not None and BASE in work:
            for number in known.missing(BASE, len(self.prompts)):
                key = BASE.name, number
                album.keep_picture(self._facts(number), Drawn(results.latents[key], results.pictures[key]))
        return results

    def check_words(self) -> None:
        """Raise CannotDrawError where a tokenizer is not the one that a text encoder was trained with."""
        for encoder, made, rows in self.vocabularies():
            check_words(made, (*self.prompts, self.negative), rows, encoder)

    # -- what an artist says ---------------------------------------------------------------------------

    @abstractmethod
    def vocabularies(self) -> Iterator[tuple[str, Any, int]]:
        """Yield each text encoder, its tokenizer, and how many tokens the encoder knows."""

    @abstractmethod
    def settings(self) -> dict[str, SettingValue]:
        """Tell how the pictures were made."""

    @property
    @abstractmethod
    def load_file(self) -> LoadFile:
        """Return what loads a LoRA's file into a network as diffusers does."""

    @abstractmethod
    def build(self, name: str, variant: Variant) -> Any:
        """Build one network of a variant, without LoRAs, on the CPU."""

    @abstractmethod
    def encode(self, networks: Networks, variant: Variant, number: int) -> Any:
        """Return what the text encoders make of a prompt."""

    @abstractmethod
    def denoise(
        self, networks: Networks, words: Any, variant: Variant, number: int, tick: Callable[[], None]
    ) -> Denoised:
        """Take the noise of a seed away; `tick` is called after each step."""

    @abstractmethod
    def decode(self, networks: Networks, made: Denoised) -> Pixels:
        """Make a picture of it."""

    def is_of_base(self, name: str) -> bool:
        """Tell whether a network's tensors are the base's, or the checkpoint's, and not from elsewhere."""
        return True

    # -- the sampler -----------------------------------------------------------------------------------

    def _facts(self, number: int) -> tuple[object, ...]:
        """Return all that the base's picture of a prompt depends on."""
        settings = (self.steps, self.size, self.guidance, self.device, self.negative)
        drawn_by = type(self).__name__, facts_of_base(self.plan)
        return *drawn_by, settings, self.prompts[number], self.seed + number

    def _draw(self, wanted: Sequence[Variant], known: Results) -> Results:
        """Draw what is not known; return all results."""
        numbers = range(len(self.prompts))
        work = [variant for variant in wanted if known.missing(variant, len(self.prompts))]
        words: dict[State | None, list[Any]] = {}
        for variant in work:
            state = self._state(self.encoders, variant)
            if state not in words:
                networks = self._networks(self.encoders, variant)
                words[state] = [self.encode(networks, variant, number) for number in numbers]
                del networks
        results, made = Results({**known.latents}, {**known.pictures}), dict[tuple[str, int], Denoised]()
        for variant, networks in self._by_variant(self.denoisers, work):
            for number in known.missing(variant, len(self.prompts)):
                said = words[self._state(self.encoders, variant)][number]
                tick = partial(self.tick, self.label(variant, number))
                denoised = self.denoise(networks, said, variant, number, tick)
                made[variant.name, number] = denoised
                results.latents[variant.name, number] = denoised.latents
        for variant, networks in self._by_variant(self.decoders, work):
            for number in known.missing(variant, len(self.prompts)):
                results.pictures[variant.name, number] = self.decode(networks, made[variant.name, number])
        return results

    def _by_variant(self, names: Sequence[str], work: Sequence[Variant]) -> Iterator[tuple[Variant, Networks]]:
        """Yield each variant with its networks, those of the variant before where they are the same."""
        networks: Networks = {}
        kept: State | None = None
        for variant in work:
            state = self._state(names, variant)
            if not networks or state != kept:
                networks.clear()  # before others take their place in memory
                networks.update(self._networks(names, variant))
                kept = state
            yield variant, networks
        networks.clear()

    def _state(self, names: Sequence[str], variant: Variant) -> State | None:
        own = [name for name in names if self.is_of_base(name)]
        if not own:
            return None
        applied = variant.factors is not None and any(name in self.touched for name in own)
        factors, round_off = (variant.factors, variant.round_off) if applied else (None, False)
        return State(self._source(variant), factors, round_off)

    def _networks(self, names: Sequence[str], variant: Variant) -> Networks:
        made: Networks = {}
        for name in names:
            network = self.build(name, variant)
            if self.is_of_base(name):
                self._apply(network, name, variant)
            made[name] = network.to(self.device)
        return made

    def _apply(self, network: Any, component: str, variant: Variant) -> None:
        """Give a network of the base the LoRAs of a variant, if any of them touches it."""
        if variant.factors is None or component not in self.touched:
            return
        if variant.round_off or self.fallback:
            self.weights.place(network, component, variant.factors, round_off=variant.round_off)
        else:
            self.loaders.load(network, component, variant.factors)

    def _source(self, variant: Variant) -> str:
        if variant.is_checkpoint:
            return "checkpoint"
        return [*self._tensors][-1] if variant.factors is not None and len(self._tensors) > 2 else "base"

    def tables(self, variant: Variant) -> KeyMap:
        """Return what names the tensors of `infos`: the base's key map, or the checkpoint's own."""
        return self._own_map if variant.is_checkpoint and self._own_map is not None else self.plan.sources.key_map

    def infos(self, variant: Variant) -> Mapping[str, Stored]:
        """Return the tensors that a variant's networks are built of, by the base's keys."""
        return self._tensors[self._source(variant)]

    def label(self, variant: Variant, number: int) -> str:
        """Say what is being made."""
        return f"{in_words(variant.name)}, prompt {number + 1} of {len(self.prompts)}"

    def tick(self, label: str) -> None:
        """Count one step."""
        self.done += 1
        self.options.progress(self.done, self.total, label)
