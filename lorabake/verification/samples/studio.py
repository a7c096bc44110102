"""Let an artist draw with every model that is compared, and judge what it made.

The models are the base, the base with its LoRAs at run time, that with its weights rounded as the output's are, and
the checkpoint; for the ceiling also the model without each LoRA, and for a sweep the one with other strengths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import isfinite, nan

import numpy as np

from lorabake.documents.names import Figures
from lorabake.verification.findings import (
    FORMULAS_APPLIED,
    Finding,
    Likeness,
    PromptSample,
    Samples,
    SettingValue,
    Status,
    SweepSample,
    programs_of,
)
from lorabake.verification.samples.album import Album
from lorabake.verification.samples.drawing import BASE, Artist, Results, Variant
from lorabake.verification.samples.judge import CONSTANT, LEAST_OF_LATENTS, Yardstick
from lorabake.verification.samples.metrics import distance, likeness
from lorabake.visible import counted


class Studio:
    """Let an artist draw with every model, and judge the results."""

    def __init__(self, artist: Artist, album: Album | None = None) -> None:
        self.album = album
        self.artist, self.plan, self.options = artist, artist.plan, artist.options
        self.prompts, self.seed = artist.prompts, artist.seed

    def run(self) -> tuple[list[Finding], Samples]:
        """Make all pictures and judge them."""
        loras = len(self.plan.sources.loras)
        ones = (1.0,) * loras
        runtime = Variant("runtime", ones)
        variants = [
            BASE,
            runtime,
            Variant("floor", ones, round_off=True),
            Variant("baked", is_checkpoint=True),
        ]
        without = [Variant(f"without {i}", tuple(float(i != j) for j in range(loras))) for i in range(loras)]
        alone = without if loras > 1 else []
        sweep = [
            runtime if factor == 1 else Variant(f"sweep {factor}", (factor,) * loras)
            for factor in self.options.strengths
        ]
        work = [*dict.fromkeys([*variants, *alone, *sweep])]
        results = self.artist.make(work, self.album)
        pictures = tuple(self._sample(results, number) for number in range(len(self.prompts)))
        strips = tuple(
            SweepSample(
                prompt,
                self.seed + number,
                tuple(self.options.strengths),
                tuple(results.pictures[variant.name, number] for variant in sweep),
            )
            for number, prompt in enumerate(self.prompts if sweep else ())
        )
        samples = Samples(self._reference(), self._settings(), pictures, strips)
        away = [self._distances(results, variant) for variant in alone or variants[:1] * loras]
        return [*self._findings(results, pictures, away), *self._effects(pictures, away)], samples

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
                yield Finding(
                    "samples.finite", Status.FAIL, each.prompt, "NaN", "", note, Figures(nan, unit="distance")
                )
                continue
            if each.pictures["baked"].std() < CONSTANT:
                is_new = each.pictures["runtime"].std() >= CONSTANT
                note = "the picture is black or of one colour" + (
                    "" if is_new else ", and so is the run-time model's"
                )
                yield Finding("samples.constant", Status.FAIL if is_new else Status.WARN, each.prompt, "", "", note)
            floor, base = each.likeness["floor"].latents, each.likeness["base"].latents
            near = Yardstick.of(floor, base, LEAST_OF_LATENTS).near
            # A LoRA that this prompt does not show is no ceiling.
            wrong = [measured[number] for measured in away if measured[number] > near]
            yield _judge(each, Yardstick.of(floor, min([base, *wrong]), LEAST_OF_LATENTS))

    def _told(self) -> Finding:
        if self.artist.fallback:
            note = f"lorabake's formulas applied the LoRAs at run time, because of {self.artist.fallback}"
        else:
            counts = Counter(self.plan.sources.loras[patch.lora].name for patch in self.plan.patches)
            note = f"loaded by a program that knows nothing of lorabake: {counted(counts)} modules"
        reference = self._reference()
        figures = Figures("+".join(programs_of(reference)), unit="program")
        return Finding("samples.reference", Status.PASS, "run-time model", reference, "", note, figures)

    def _effects(self, pictures: tuple[PromptSample, ...], away: list[list[float]]) -> Iterator[Finding]:
        """Tell LoRAs that no prompt shows: every picture with them and without is as at the floor."""
        floors = [max(each.likeness["floor"].latents, LEAST_OF_LATENTS) for each in pictures]
        for lora, distances in zip(self.plan.sources.loras, away, strict=True):
            if not all(isfinite(each) for each in (*distances, *floors)):
                continue
            most = max(range(len(floors)), key=lambda number: distances[number] / floors[number])
            measured, limit = distances[most], 2 * floors[most]
            is_seen = measured > limit
            note = f"leaving it out changes {'the pictures' if is_seen else 'nothing that is seen'}"
            status = Status.PASS if is_seen else Status.WARN
            figures = Figures(measured, limit, "distance")
            yield Finding("samples.effect", status, lora.name, f"{measured:.2g}", f"above {limit:.2g}", note, figures)

    # -- words -----------------------------------------------------------------------------------------

    def _reference(self) -> str:
        if self.artist.fallback:
            return FORMULAS_APPLIED
        kinds = {"PEFT" if lora.config is not None else "diffusers" for lora in self.plan.sources.loras}
        return " and ".join(sorted(kinds)) or "diffusers"

    def _settings(self) -> dict[str, SettingValue]:
        fallback = {"run_time": self.artist.fallback} if self.artist.fallback else {}
        return {**self.artist.settings(), "device": self.artist.device, "precision": "float32", **fallback}


def _judge(sample: PromptSample, yardstick: Yardstick) -> Finding:
    """Place the checkpoint between the floor and the nearest wrong model."""
    measured, floor, ceiling = (sample.likeness[name] for name in ("baked", "floor", "base"))
    if not yardstick.passes(measured.latents):
        status, told = Status.FAIL, "not what base and LoRAs make at run time"
    elif not yardstick.tells:
        status, told = Status.WARN, "this prompt cannot tell: rounding changes the picture as much as the LoRAs do"
    else:
        near = yardstick.is_at_floor(measured.latents)
        status, told = Status.PASS, "at the floor" if near else "nearer to the floor than to the ceiling"
    note = f"{told}; floor {_figures(floor)}; ceiling {_figures(ceiling)}"
    limit, figures = f"latents {yardstick.limit:.2g}", Figures(measured.latents, yardstick.limit, "distance")
    return Finding("samples.likeness", status, sample.prompt, _figures(measured), limit, note, figures)


def _figures(each: Likeness) -> str:
    psnr = f"{each.psnr:.1f} dB" if isfinite(each.psnr) else "equal pictures"
    return f"latents {each.latents:.2g}, {psnr}, SSIM {each.ssim:.4f}"
