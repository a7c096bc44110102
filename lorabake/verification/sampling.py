"""The third stage: let the base, the base with its LoRAs at run time, and the checkpoint make the same thing.

Two controls take the place of thresholds. The *floor* is the run-time model with its weights rounded to the output's
dtype: a right bake is no further from the run-time model than that. The *ceiling* is the base, without the LoRAs. A
checkpoint passes where it is nearer to the floor than to the ceiling, on a logarithmic scale: its distance is below
their geometric mean.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from math import isfinite, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorabake.errors import RecipeError, SurroundingsError
from lorabake.planning import Plan
from lorabake.recipe import Verify
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.tensors.safetensors import TensorInfo
from lorabake.verification.arrays import Files
from lorabake.verification.findings import (
    Finding,
    Likeness,
    PromptSample,
    SampleOptions,
    Samples,
    Status,
    SweepSample,
)
from lorabake.verification.metrics import distance, likeness
from lorabake.verification.networks import EXTRA, TEXT_ENCODERS, Configs, build, configs, has_configs, tokenizer
from lorabake.verification.pictures import Setting, Words, decode, denoise, encode
from lorabake.verification.runtime import CannotLoadError, Factors, Loaders, Weights

if TYPE_CHECKING:
    from lorabake.verification.findings import Pixels

NEEDED = ("diffusers", "transformers", "peft", "accelerate")
STEPS, GUIDANCE = 25, 7.5
LEAST = 1e-7
"""The distance below which two float32 results count as equal."""

CONSTANT = 2.0
"""Levels of standard deviation, of 255, below which a picture shows nothing."""


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


def sample(plan: Plan, baked: Path, options: SampleOptions) -> tuple[Samples | None, list[Finding]]:
    """Sample whatever the base can make; None, and a finding that says why, where it can make nothing.

    Raise SurroundingsError where the extra is not installed.
    """
    from lorabake.verification.texts import is_language_model, speak

    said = plan.sources.recipe.verify
    prompts = options.prompts or (said.prompts if said else None)
    if not prompts:
        note = "no prompts: give verify.prompts in the recipe, or --prompt"
        return None, [Finding("samples.skipped", Status.SKIP, baked.name, "", "", note)]
    speaks = is_language_model(plan)
    if not speaks and not has_configs(plan):
        note = f"lorabake cannot sample {plan.sources.key_map.architecture.title}"
        return None, [Finding("samples.skipped", Status.SKIP, baked.name, "", "", note)]
    lacking = {"unet", "vae"} - plan.sources.key_map.placed.keys()
    if not speaks and (lacking or not {*TEXT_ENCODERS} & plan.sources.key_map.placed.keys()):
        note = "a single network: pictures take a UNet, a VAE and a text encoder"
        return None, [Finding("samples.skipped", Status.SKIP, baked.name, "", "", note)]
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise SurroundingsError(
            f"sampling needs {', '.join(missing)}\nTo sample, {EXTRA}; or leave it out with --stage"
        )
    with _quiet():
        if speaks:
            return speak(plan, baked, prompts, options)
        files = Files()
        try:
            with configs(plan) as made:
                return _Studio(plan, baked, made, files, prompts, options).run()
        finally:
            files.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' advice and bars out of the way, and put their levels back."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    peft_level = logging.getLogger("peft").level
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()
        logging.getLogger("peft").setLevel(peft_level)


class _Studio:
    """Sample pictures, with one network of one model in memory at a time."""

    def __init__(
        self, plan: Plan, baked: Path, made: Configs, files: Files, prompts: tuple[str, ...], options: SampleOptions
    ) -> None:
        said = plan.sources.recipe.verify or Verify.model_validate({"prompts": prompts})
        self.plan, self.configs, self.files, self.prompts, self.options = plan, made, files, prompts, options
        self.seed = options.seed if options.seed is not None else said.seed
        self.negative = said.negative_prompt
        self.baked = open_checkpoint(baked, plan.sources.recipe.base.variant if baked.is_dir() else None)
        side = int(made.parts["vae"].get("sample_size", 512))
        guidance = options.guidance if options.guidance is not None else said.guidance
        self.setting = Setting(
            steps=options.steps or said.steps or STEPS,
            size=options.size or said.size or (side, side),
            guidance=GUIDANCE if guidance is None else guidance,
            device=options.device or "cpu",
            factor=2 ** (len(made.parts["vae"]["block_out_channels"]) - 1),
        )
        step = self.setting.factor * 2 ** (len(made.parts["unet"]["block_out_channels"]) - 1)
        if any(each % step for each in self.setting.size):
            width, height = self.setting.size
            raise RecipeError(
                f"size {width}x{height}: pictures of this model have sides that are multiples of {step}"
            )
        self.schedule = dict(made.parts["scheduler"])
        if said.prediction is not None:
            self.schedule["prediction_type"] = said.prediction
        elif "v_pred" in plan.sources.base.tensors:
            self.schedule["prediction_type"] = "v_prediction"
        self.weights, self.loaders = Weights(plan, files), Loaders(plan)
        owner = plan.sources.key_map.owner
        self._touched = {owner.get(target.key) for bake in plan.bakes for target in bake.targets}
        self._sources = {target.key: target.source for file in plan.files for target in file.targets}
        if plan.sources.vae is None:
            self._sources = plan.sources.base.tensors
        self._kept: tuple[str, int, Any] | None = None
        self.fallback = ""
        self.done = self.total = 0

    def run(self) -> tuple[Samples, list[Finding]]:
        """Make all pictures and judge them."""
        loras = len(self.plan.sources.loras)
        ones = (1.0,) * loras
        variants = [
            Variant("base"),
            Variant("runtime", ones),
            Variant("floor", ones, round_off=True),
            Variant("baked", is_checkpoint=True),
        ]
        without = [Variant(f"without {i}", tuple(float(i != j) for j in range(loras))) for i in range(loras)]
        alone = without if loras > 1 else []
        sweep = [Variant(f"sweep {factor}", (factor,) * loras) for factor in self.options.strengths]
        work = {variant: range(len(self.prompts)) for variant in variants}
        work |= {variant: range(1) for variant in alone}
        work |= {variant: range(len(self.prompts)) for variant in sweep}
        self.total = sum(len(numbers) for numbers in work.values()) * self.setting.steps
        results = self._make(work)
        pictures = tuple(self._sample(results, number) for number in range(len(self.prompts)))
        strips = tuple(
            SweepSample(
                prompt,
                self.seed + number,
                self.options.strengths,
                tuple(results.pictures[variant.name, number] for variant in sweep),
            )
            for number, prompt in enumerate(self.prompts if sweep else ())
        )
        samples = Samples(self._reference(), self._settings(), pictures, strips)
        return samples, [*self._findings(results, pictures), *self._effects(results, alone, pictures)]

    # -- making ----------------------------------------------------------------------------------------

    def _make(self, work: Mapping[Variant, range]) -> Results:
        try:
            return self._with(work)
        except CannotLoadError as error:
            self.fallback = str(error)
            self.done = 0
            return self._with(work)

    def _with(self, work: Mapping[Variant, range]) -> Results:
        """Encode with all models, then denoise with all, then decode, so that only one network is in memory."""
        placed = self.plan.sources.key_map.placed
        encoders = [name for name in TEXT_ENCODERS if name in placed]
        tokenizers = {name: tokenizer("!" if self._pads_with_bang(name) else "<|endoftext|>") for name in encoders}
        words: dict[tuple[Variant, int], Words] = {}
        for variant in work:
            networks = {name: self._network(name, variant) for name in encoders}
            for number in work[variant]:
                words[variant, number] = encode(
                    networks, tokenizers, self.prompts[number], self.negative, self.setting.device
                )
        results = Results()
        for variant in work:
            unet = self._network("unet", variant)
            for number in work[variant]:
                tick = partial(self._tick, f"{variant.name}, prompt {number + 1} of {len(self.prompts)}")
                results.latents[variant.name, number] = denoise(
                    unet,
                    self.schedule,
                    words[variant, number],
                    self.seed + number,
                    self.setting,
                    tick,
                )
            del unet
        for variant in work:
            vae = self._network("vae", variant)
            for number in work[variant]:
                latents = results.latents[variant.name, number]
                results.pictures[variant.name, number] = decode(vae, latents, self.setting.device)
            del vae
        return results

    def _tick(self, label: str) -> None:
        self.done += 1
        self.options.progress(self.done, self.total, label)

    def _pads_with_bang(self, encoder: str) -> bool:
        return encoder == "text_encoder_2" or self.plan.sources.key_map.architecture.name == "sd2"

    def _network(self, component: str, variant: Variant) -> Any:
        """Build one network of one model, or take the one before where it is the same."""
        sources = self._infos(variant)
        is_base = variant.factors is None or component not in self._touched
        if is_base and self._kept is not None and self._kept[:2] == (component, id(sources)):
            return self._kept[2]
        self._kept = None  # before another takes its place in memory
        network = build(component, self.plan.sources.key_map, sources, self.configs, self.files)
        if variant.factors is not None and not is_base:
            if variant.round_off or self.fallback:
                self.weights.place(network, component, variant.factors, round_off=variant.round_off)
            else:
                self.loaders.load(network, component, variant.factors)
        network = network.to(self.setting.device)
        if is_base:
            self._kept = component, id(sources), network
        return network

    def _infos(self, variant: Variant) -> Mapping[str, TensorInfo]:
        if variant.is_checkpoint:
            return self.baked.tensors
        if variant.factors is None:
            return self.plan.sources.base.tensors
        return self._sources

    # -- judging ---------------------------------------------------------------------------------------

    def _sample(self, results: Results, number: int) -> PromptSample:
        names = ("base", "runtime", "floor", "baked")
        pictures = {name: results.pictures[name, number] for name in names}
        reference = results.latents["runtime", number]
        likenesses = {
            name: likeness(results.latents[name, number], pictures[name], reference, pictures["runtime"])
            for name in names
            if name != "runtime"
        }
        return PromptSample(self.prompts[number], self.seed + number, pictures, likenesses)

    def _findings(self, results: Results, pictures: tuple[PromptSample, ...]) -> Iterator[Finding]:
        yield self._told()
        for number, each in enumerate(pictures):
            broken = [name for name in each.pictures if not np.isfinite(results.latents[name, number]).all()]
            if "baked" in broken:
                others = [name for name in broken if name != "baked"]
                note = f"the latents hold NaN or infinity{f', as those of {others} do' if others else ''}"
                yield Finding("samples.finite", Status.FAIL, each.prompt, "NaN", "", note)
                continue
            if each.pictures["baked"].std() < CONSTANT:
                is_new = each.pictures["runtime"].std() >= CONSTANT
                note = "the picture is black or of one colour" + (
                    "" if is_new else ", and so is the run-time model's"
                )
                yield Finding("samples.constant", Status.FAIL if is_new else Status.WARN, each.prompt, "", "", note)
            yield _judge(each)

    def _told(self) -> Finding:
        if self.fallback:
            note = f"lorabake's formulas applied the LoRAs at run time, because of {self.fallback}"
            return Finding("samples.reference", Status.PASS, "run-time model", self._reference(), "", note)
        layers = ", ".join(f"{name} ×{count}" for name, count in self._layers().items())
        note = f"loaded by a program that knows nothing of lorabake: {layers} modules"
        return Finding("samples.reference", Status.PASS, "run-time model", self._reference(), "", note)

    def _layers(self) -> dict[str, int]:
        kinds: dict[str, int] = {}
        for index, lora in enumerate(self.plan.sources.loras):
            kinds[lora.name] = len(self.loaders.patches.get(index, []))
        return kinds

    def _effects(
        self, results: Results, alone: list[Variant], pictures: tuple[PromptSample, ...]
    ) -> Iterator[Finding]:
        """Tell LoRAs that change nothing that is seen: the first prompt with them and without is as at the floor."""
        floor = max(pictures[0].likeness["floor"].latents, LEAST)
        for index, lora in enumerate(self.plan.sources.loras):
            if alone:
                reference = results.latents["runtime", 0]
                measured = distance(results.latents[alone[index].name, 0], reference)
            else:
                measured = pictures[0].likeness["base"].latents
            if not isfinite(measured):
                continue
            seen = measured > 2 * floor
            note = (
                "leaving it out changes the first picture" if seen else "leaving it out changes nothing that is seen"
            )
            status = Status.PASS if seen else Status.WARN
            yield Finding("samples.effect", status, lora.name, f"{measured:.2g}", f"above {2 * floor:.2g}", note)

    # -- words -----------------------------------------------------------------------------------------

    def _reference(self) -> str:
        if self.fallback:
            return "lorabake's formulas"
        kinds = {"PEFT" if lora.config is not None else "diffusers" for lora in self.plan.sources.loras}
        return " and ".join(sorted(kinds)) or "diffusers"

    def _settings(self) -> dict[str, str]:
        width, height = self.setting.size
        return {
            "scheduler": "DDIM",
            "prediction": str(self.schedule.get("prediction_type", "epsilon")),
            "steps": str(self.setting.steps),
            "size": f"{width} × {height}",
            "guidance": f"{self.setting.guidance:g}",
            "device": self.setting.device,
            "precision": "float32",
            **({"run time": self.fallback} if self.fallback else {}),
        }


def _judge(each: PromptSample) -> Finding:
    """Place the checkpoint between floor and ceiling."""
    measured, floor, ceiling = (each.likeness[name] for name in ("baked", "floor", "base"))
    low = max(floor.latents, LEAST)
    limit = sqrt(low * max(ceiling.latents, low))
    is_true = measured.latents <= max(limit, 2 * low)
    told = "at the floor" if measured.latents <= 2 * low else "nearer to the floor than to the ceiling"
    told = told if is_true else "not what base and LoRAs make at run time"
    note = f"{told}; floor {_figures(floor)}; ceiling {_figures(ceiling)}"
    status = Status.PASS if is_true else Status.FAIL
    return Finding("samples.likeness", status, each.prompt, _figures(measured), f"latents {limit:.2g}", note)


def _figures(each: Likeness) -> str:
    psnr = f"{each.psnr:.1f} dB" if isfinite(each.psnr) else "equal pictures"
    return f"latents {each.latents:.2g}, {psnr}, SSIM {each.ssim:.4f}"
