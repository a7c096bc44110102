"""The second stage: does every tensor have the values that the recipe gives it?

What no LoRA touches must be byte-equal to the base; what is baked is recomputed and compared in units in the last
place (ulps) of the output's dtype. Streamed, a few rows at a time; no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from threadpoolctl import threadpool_limits

from lorabake.documents.names import Figures
from lorabake.machine import default_workers
from lorabake.planning import Plan
from lorabake.planning.tally import Tally
from lorabake.reference.arrays import Files
from lorabake.reference.recompute import Recomputation
from lorabake.reference.survival import is_idle, note_scales, zero_slots
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.verification.converted import in_layout_of_base
from lorabake.verification.findings import Effect, Finding, Status, TensorVerdict
from lorabake.verification.structure.digests import Digests
from lorabake.verification.weights.comparing import Comparer, Extent, each_of
from lorabake.verification.weights.comparison import Comparison, Share
from lorabake.verification.weights.diagnosis import Diagnostician
from lorabake.verification.weights.effects import effects_of
from lorabake.verification.weights.settings import explain_by_settings
from lorabake.verification.weights.telling import findings, told_of, untouched, verdicts, within


@dataclass(frozen=True, slots=True)
class WeightsResult:
    """Hold the stage's findings, what each LoRA does where, what was found of each in each tensor, and digests.

    `whole` has the digests of the base's and the checkpoint's files, by path, where they were asked for.
    """

    findings: tuple[Finding, ...]
    effects: tuple[Effect, ...]
    tensors: tuple[TensorVerdict, ...]
    digests: Mapping[str, str]
    whole: Mapping[str, str] = field(default_factory=dict)


def check_weights(
    plan: Plan,
    baked: Checkpoint,
    *,
    sample: int | None = None,
    whole: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> WeightsResult:
    """Compare a checkpoint's tensors with what the plan would make; `sample` looks at so many of them only.

    `whole` takes the SHA-256 of the base's and the checkpoint's files, too. `progress` receives counts of bytes, from
    any thread. Raise FileError where an input or the checkpoint cannot be read to its end.
    """
    seen = in_layout_of_base(plan, baked)
    with closing(Files(seen.woven)) as files, threadpool_limits(1):
        return _Check(seen.plan, seen.checkpoint, files, progress).run(sample, whole=whole)


class _Check:
    def __init__(self, plan: Plan, baked: Checkpoint, files: Files, progress: Callable[[int], None]) -> None:
        self.plan, self.baked = plan, baked
        self.comparer = Comparer(plan, baked, files, progress)
        self.digests = Digests(plan, baked, files, "weights")

    def run(self, sample: int | None, *, whole: bool) -> WeightsResult:
        extent = Extent.of(self.plan, self.baked, sample)
        with ThreadPoolExecutor(default_workers() + 1) as pool, self.digests.stopped_with():
            digesting = pool.submit(self.digests.take, data=True, whole=whole)
            results = [each for some in each_of(pool, self.comparer.compare, extent.jobs) for each in some]
            digests = digesting.result()
        results.sort(key=lambda each: each.target.key)  # threads finish in any order
        diagnostician = Diagnostician(self.plan, self.comparer.recomputation)
        wrong = [each for each in results if not each.is_right]
        told, diagnoses = explain_by_settings(self.comparer, wrong, "weights")
        explained = {each.key for each in diagnoses}
        for result in wrong:
            diagnoses += [] if result.target.key in explained else diagnostician.explain(result)
        return WeightsResult(
            (
                *self.digests.findings(digests, data=True),
                *extent.findings("weights"),
                *untouched(results, "weights"),
                *_baked(results),
                *self._loras(results),
                *told_of(
                    self.plan,
                    "weights",
                    _tallies(results, self.comparer.recomputation),
                    digests,
                    is_whole=sample is None,
                ),
                *_signs(results),
                *findings(self.plan, diagnoses, results),
                *told,
            ),
            tuple(effects_of(self.plan, results)),
            tuple(verdicts(self.plan, [(each.step, each.target.key) for each in results], diagnoses)),
            self.digests.named(digests),
            self.digests.whole,
        )

    # -- what it says ----------------------------------------------------------------------------------

    def _loras(self, results: Sequence[Comparison]) -> Iterator[Finding]:
        for index, lora in enumerate(self.plan.sources.loras):
            own = [(result, share) for result in results for share in _shares(result, index)]
            right = [result for result, _ in own if result.is_right]
            if own and len(right) == len(own):
                note = f"applied to all {len(own)} tensors at the recipe's strength"
                measured, figures = f"{len(right)} tensors", Figures(len(right), len(own), "tensors")
                yield Finding("weights.lora", Status.PASS, lora.name, measured, f"{len(own)}", note, figures)


def _baked(results: Sequence[Comparison]) -> Iterator[Finding]:
    for is_drawn in (False, True):
        for is_cast, check in ((False, "baked"), (True, "cast")):
            right = [
                result
                for result in results
                if not result.is_copy
                and result.is_right
                and (result.is_drawn, not result.step.patches) == (is_drawn, is_cast)
            ]
            if right:
                subject, figures = f"{len(right)} {check} tensors", Figures(0, 0, "values", len(right))
                yield Finding(f"weights.{check}", Status.PASS, subject, "0 wrong values", "", within(right), figures)


def _signs(results: Sequence[Comparison]) -> Iterator[Finding]:
    """Report zeros that differ from the base's only in their sign, in tensors that nothing changes."""
    flipped = [result for result in results if result.flipped]
    if flipped:
        values = sum(result.flipped for result in flipped)
        subject = flipped[0].target.key if len(flipped) == 1 else f"{len(flipped)} tensors"
        note = "the same numbers and other bytes: zeros have another sign than the base's, where nothing changes them"
        figures = Figures(values, 0, "values", len(flipped) if len(flipped) > 1 else None)
        yield Finding("weights.signs", Status.WARN, subject, f"{values} values", "0", note, figures)


def _tallies(results: Sequence[Comparison], recomputation: Recomputation) -> dict[int, Tally]:
    """Tally each LoRA's change; only correct tensors count for what is lost."""
    tallies: dict[int, Tally] = {}
    for result in results:
        mine = {result.step.patches[number].lora for number in result.shares}
        for lora in mine:
            tallies.setdefault(lora, Tally()).base += result.base_energy
        for number, share in result.shares.items():
            patch = result.step.patches[number]
            tally = tallies[patch.lora]
            if result.step.summed:
                tally.count(patch.module, moves=share.energy != 0)
            tally.energy += share.energy if patch.kind.adds else 0.0
            if result.is_right:
                tally.due += share.due
                tally.arrived += share.arrived
    for patch, step in {patch.number: (patch, each.step) for each in results for patch in each.step.patches}.values():
        tally = tallies.setdefault(patch.lora, Tally())
        if not step.summed:  # what all make together was counted for the first
            tally.count(patch.module, moves=not is_idle(patch, zero_slots(patch, recomputation.files), recomputation))
        note_scales(tally, patch, step.loras[patch.lora], recomputation)
    return tallies


def _shares(result: Comparison, lora: int) -> Iterator[Share]:
    return (share for place, share in result.shares.items() if result.step.patches[place].lora == lora)
