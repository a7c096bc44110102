"""The third stage: let the base, the base with its LoRAs at run time, and the checkpoint make the same thing.

Two controls take the place of thresholds. The *floor* is the run-time model with its weights rounded to the output's
dtype: a right bake is no further from the run-time model than that. The *ceiling* is the base, without the LoRAs, or
the model without one of them where that is nearer. A checkpoint passes where it is nearer to the floor than to the
ceiling, on a logarithmic scale: its distance is below their geometric mean. Samplers multiply rounding, but floor
and checkpoint alike, so that a right bake has the floor's distance to a few per cent; twice the floor always passes.
Where not even the ceiling is above that, the prompt cannot tell, and the finding warns.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from math import isfinite, sqrt
from pathlib import Path
from warnings import catch_warnings, filterwarnings, simplefilter

import numpy as np

from lorabake.errors import SurroundingsError, first_line
from lorabake.planning import Plan
from lorabake.reference.arrays import Files
from lorabake.tensors.checkpoint import Checkpoint, open_checkpoint
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.packing import PackedInfo
from lorabake.verification.findings import (
    Finding,
    Likeness,
    PromptSample,
    SampleOptions,
    Samples,
    Status,
    SweepSample,
)
from lorabake.verification.samples.artist import Artist, Results, Variant
from lorabake.verification.samples.foreign_code import carried
from lorabake.verification.samples.metrics import distance, likeness
from lorabake.verification.samples.networks import EXTRA, TEXT_ENCODERS, configs, has_configs, seen
from lorabake.verification.samples.parts import CannotDrawError, kit
from lorabake.verification.samples.pipelines import Pipelines
from lorabake.verification.samples.runtime import FORMULAS_APPLIED
from lorabake.verification.samples.unets import UNets

NEEDED = ("diffusers", "transformers", "peft", "accelerate")
LEAST = 1e-7
"""The distance below which two float32 results count as equal."""

CONSTANT = 2.0
"""Levels of standard deviation, of 255, below which a picture shows nothing."""


Ready = Callable[[], tuple[Samples | None, list[Finding]]]
"""Sample, once all that it takes is there."""


def prepare(plan: Plan, baked: Path, options: SampleOptions, stack: ExitStack) -> tuple[Ready | None, list[Finding]]:
    """Find and open all that sampling takes, and return what then samples; or a finding that says what is lacking.

    What is opened is closed with `stack`. Raise SurroundingsError where the extra or the device is not there.
    """
    from lorabake.verification.samples.texts import is_language_model, prepare_texts

    said = plan.sources.recipe.verify
    prompts = options.prompts or (said.prompts if said else None)

    def lacking(note: str) -> tuple[None, list[Finding]]:
        return None, [Finding("samples.skipped", Status.SKIP, baked.name, "", "", note)]

    if not prompts:
        return lacking("no prompts: give verify.prompts in the recipe, or --prompt")
    code = _carried(plan)
    speaks = is_language_model(plan)
    if speaks and (plan.sources.packing.packed or plan.sources.packing.scaled):
        return lacking(
            "the base's weights are packed or scaled: transformers has no plain model of them to compare with"
        )
    if strange := plan.sources.packing.strange:
        key, first = next(iter(strange.items()))
        return lacking(f"{len(strange)} of the base's weights cannot be decoded, such as {key}: {first.title}")
    has_unet = has_configs(plan)
    absent = {"unet", "vae"} - plan.sources.key_map.placed.keys()
    if has_unet and (absent or not {*TEXT_ENCODERS} & plan.sources.key_map.placed.keys()):
        return lacking("a single network: pictures take a UNet, a VAE and a text encoder")
    if not speaks and (lost := _unfit(plan, baked)):
        return lacking(f"{lost[0]} and {len(lost) - 1} more tensors are not there in the base's shape")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise SurroundingsError(
            f"sampling needs {', '.join(missing)}", f"To sample, {EXTRA}; or leave it out with --stage"
        )
    with _quiet():
        _try_device(options.device or "cpu")
        files = Files()
        stack.callback(files.close)
        try:
            if speaks:
                ready = prepare_texts(plan, baked, prompts, options)
            else:
                if not has_unet:
                    artist: Artist = Pipelines(plan, _opened(plan, baked), kit(plan), files, prompts, options)
                else:
                    written = stack.enter_context(configs(plan))
                    artist = UNets(plan, _opened(plan, baked), written, files, prompts, options)
                artist.check_words()
                ready = _Studio(artist).run
        except CannotDrawError as error:
            more = f"; the model carries code of its own ({code}), which lorabake does not run" if code else ""
            return lacking(f"{error}{more}")
    return _quietly(ready, code), []


def _carried(plan: Plan) -> str:
    """Say by what the folders of a plan ask for code of their own to be run; empty if none does."""
    said = plan.sources.recipe.verify
    given = [plan.sources.recipe.locate(name) for name in (said.config, said.tokenizers) if name] if said else []
    folders = [*([plan.sources.base.path] if plan.sources.base.is_folder else []), *given]
    return ", ".join(filter(None, (carried(folder) for folder in folders if folder.is_dir())))


def _quietly(work: Ready, code: str) -> Ready:
    """Return what a pipeline cannot do with the base as a finding, and keep libraries quiet meanwhile.

    `code` says by what the model asks for code of its own, which is a finding, too.
    """
    note = (
        f"the model carries code of its own ({code}), which lorabake does not run: the libraries' classes were used"
    )
    told = [Finding("samples.code", Status.WARN, "the base", "", "", note)] if code else []

    def sample() -> tuple[Samples | None, list[Finding]]:
        with _quiet():
            try:
                samples, findings = work()
            except CannotDrawError as error:
                return None, [*told, Finding("samples.skipped", Status.SKIP, "the base", "", "", str(error))]
        return samples, [*told, *findings]

    return sample


def _try_device(name: str) -> None:
    """Compute something on a device; raise SurroundingsError where that cannot be done."""
    import torch

    try:
        (torch.ones(1, device=name) + 1).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SurroundingsError(f"device {name!r} cannot be used: {first_line(error)}", "Try --device cpu.") from None


def _unfit(plan: Plan, baked: Path) -> list[str]:
    """List what a network would miss in the checkpoint: weights that are absent or of another shape."""
    there, owner = seen(_opened(plan, baked)), plan.sources.key_map.owner
    return [
        key
        for key, info in seen(plan.sources.base).items()
        if key in owner and _is_weight(info) and (key not in there or there[key].shape != info.shape)
    ]


def _is_weight(info: TensorInfo) -> bool:
    return isinstance(info, PackedInfo) or DTYPES[info.dtype].floating


def _opened(plan: Plan, baked: Path) -> Checkpoint:
    return open_checkpoint(baked, plan.sources.recipe.base.variant if baked.is_dir() else None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' advice and bars out of the way, and put their levels back."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
    peft_level = logging.getLogger("peft").level
    try:
        with catch_warnings():
            simplefilter("ignore", FutureWarning)
            simplefilter("ignore", DeprecationWarning)
            filterwarnings("ignore", "In CPU autocast", UserWarning)
            yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()
        logging.getLogger("peft").setLevel(peft_level)


class _Studio:
    """Let an artist draw with every model, and judge the results."""

    def __init__(self, artist: Artist) -> None:
        self.artist, self.plan, self.options = artist, artist.plan, artist.options
        self.prompts, self.seed = artist.prompts, artist.seed

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
        work = [*variants, *alone, *sweep]
        results = self.artist.make(work)
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
        away = [self._distances(results, variant) for variant in alone or variants[:1] * loras]
        return samples, [*self._findings(results, pictures, away), *self._effects(pictures, away)]

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

    def _distances(self, results: Results, variant: Variant) -> list[float]:
        """Measure how far the latents of one model are from the run-time model's, by prompt."""
        return [
            distance(results.latents[variant.name, number], results.latents["runtime", number])
            for number in range(len(self.prompts))
        ]

    def _findings(
        self, results: Results, pictures: tuple[PromptSample, ...], away: list[list[float]]
    ) -> Iterator[Finding]:
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
            low = 2 * max(each.likeness["floor"].latents, LEAST)
            # A LoRA that this prompt does not show is no ceiling.
            wrong = [measured[number] for measured in away if measured[number] > low]
            yield _judge(each, min([each.likeness["base"].latents, *wrong]))

    def _told(self) -> Finding:
        if self.artist.fallback:
            note = f"lorabake's formulas applied the LoRAs at run time, because of {self.artist.fallback}"
            return Finding("samples.reference", Status.PASS, "run-time model", self._reference(), "", note)
        counts = Counter(self.plan.sources.loras[patch.lora].name for patch in self.plan.patches)
        layers = ", ".join(f"{name} ×{count}" for name, count in counts.items())
        note = f"loaded by a program that knows nothing of lorabake: {layers} modules"
        return Finding("samples.reference", Status.PASS, "run-time model", self._reference(), "", note)

    def _effects(self, pictures: tuple[PromptSample, ...], away: list[list[float]]) -> Iterator[Finding]:
        """Tell LoRAs that no prompt shows: every picture with them and without is as at the floor."""
        floors = [max(each.likeness["floor"].latents, LEAST) for each in pictures]
        for lora, distances in zip(self.plan.sources.loras, away, strict=True):
            if not all(isfinite(each) for each in (*distances, *floors)):
                continue
            most = max(range(len(floors)), key=lambda number: distances[number] / floors[number])
            measured, limit = distances[most], 2 * floors[most]
            is_seen = measured > limit
            note = f"leaving it out changes {'the pictures' if is_seen else 'nothing that is seen'}"
            status = Status.PASS if is_seen else Status.WARN
            yield Finding("samples.effect", status, lora.name, f"{measured:.2g}", f"above {limit:.2g}", note)

    # -- words -----------------------------------------------------------------------------------------

    def _reference(self) -> str:
        if self.artist.fallback:
            return FORMULAS_APPLIED
        kinds = {"PEFT" if lora.config is not None else "diffusers" for lora in self.plan.sources.loras}
        return " and ".join(sorted(kinds)) or "diffusers"

    def _settings(self) -> dict[str, str]:
        fallback = {"run time": self.artist.fallback} if self.artist.fallback else {}
        return {**self.artist.settings(), "device": self.artist.device, "precision": "float32", **fallback}


def _judge(each: PromptSample, ceiling: float) -> Finding:
    """Place the checkpoint between the floor and the nearest wrong model."""
    measured, floor = each.likeness["baked"], each.likeness["floor"]
    low = max(floor.latents, LEAST)
    limit = max(sqrt(low * ceiling), 2 * low)
    if not measured.latents <= limit:
        status, told = Status.FAIL, "not what base and LoRAs make at run time"
    elif ceiling <= 2 * low:
        status, told = Status.WARN, "this prompt cannot tell: rounding changes the picture as much as the LoRAs do"
    else:
        status = Status.PASS
        told = "at the floor" if measured.latents <= 2 * low else "nearer to the floor than to the ceiling"
    note = f"{told}; floor {_figures(floor)}; ceiling {_figures(each.likeness['base'])}"
    return Finding("samples.likeness", status, each.prompt, _figures(measured), f"latents {limit:.2g}", note)


def _figures(each: Likeness) -> str:
    psnr = f"{each.psnr:.1f} dB" if isfinite(each.psnr) else "equal pictures"
    return f"latents {each.latents:.2g}, {psnr}, SSIM {each.ssim:.4f}"
