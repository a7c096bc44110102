"""The quick stage: does each tensor's change fit the recipe, as far as rounding lets a random sum of its rows tell?

It takes the place of the weights stage at a fraction of its cost. Every value is read. What no LoRA touches must be
byte-equal to the base; sums of products are held against random sums (see `projections.py`); of other kinds some rows
are recomputed in float64, or all where rows do not stand alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from math import prod

import numpy as np
from threadpoolctl import threadpool_limits

from lorabake.adapters.shapes import matrix
from lorabake.documents.names import Figures
from lorabake.machine import default_workers
from lorabake.matching.patches import Patch
from lorabake.planning import Plan
from lorabake.planning.steps import Step
from lorabake.planning.tally import Tally
from lorabake.reference.arrays import Files
from lorabake.reference.formulas.formula import Array
from lorabake.reference.survival import note_scales
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.verification.converted import in_layout_of_base
from lorabake.verification.findings import Finding, Status
from lorabake.verification.structure.digests import Digests
from lorabake.verification.weights import WeightsResult
from lorabake.verification.weights.causes import Diagnosis
from lorabake.verification.weights.comparing import Comparer, Extent, Job, each_of, found_in
from lorabake.verification.weights.comparison import Comparison
from lorabake.verification.weights.diagnosis import Diagnostician
from lorabake.verification.weights.limits import FALSE_ALARM, OFF, SIGMAS
from lorabake.verification.weights.projections import VECTORS, Projector
from lorabake.verification.weights.settings import explain_by_settings
from lorabake.verification.weights.telling import findings, told_of, untouched, verdicts, within

PLACES = 8
"""Places in a tensor at which rows are recomputed, from the first row to the last."""


def check_quick(
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


@dataclass(frozen=True, slots=True)
class Summed:
    """Hold the result of one tensor's random sums: the worst row relative to its bound, and faults, if any.

    `gram` has the inner products of the sums of the LoRAs' changes, by `loras`, and `arrived` those with what is
    there, both in units of what rounding does; `moves` tells whose change is not zero.
    """

    step: Step
    values: int
    worst: float
    diagnoses: tuple[Diagnosis, ...]
    loras: tuple[int, ...]
    gram: Array
    arrived: Array
    moves: tuple[tuple[Patch, bool], ...]


class _Check:
    def __init__(self, plan: Plan, baked: Checkpoint, files: Files, progress: Callable[[int], None]) -> None:
        self.plan, self.baked, self.progress = plan, baked, progress
        self.comparer = Comparer(plan, baked, files, progress)
        self.digests = Digests(plan, baked, files, "quick")
        rows = [matrix(target.shape)[0] for step in plan.steps for target in step.targets]
        self.projector = Projector(self.comparer.recomputation, files, VECTORS * sum(rows))
        self.diagnostician = Diagnostician(plan, self.comparer.recomputation)

    def run(self, sample: int | None, *, whole: bool) -> WeightsResult:
        extent = Extent.of(self.plan, self.baked, sample)
        results: list[Comparison] = []
        summed: list[Summed] = []
        with ThreadPoolExecutor(default_workers() + 1) as pool, self.digests.stopped_with():
            digesting = pool.submit(self.digests.take, data=False, whole=whole)
            for found in each_of(pool, self._compare, extent.jobs):
                if isinstance(found, Summed):
                    summed.append(found)
                else:
                    results += found
            digests = digesting.result()
        results.sort(key=lambda each: each.target.key)  # threads finish in any order
        summed.sort(key=lambda each: each.step.targets[0].key)
        strengths = _strengths(self.plan, summed)
        for lora in [lora for lora, strength in strengths.items() if not strength.is_near]:
            results += self._rows_of(lora, summed)
        wrong = [each for each in results if not each.is_right]
        by_setting, diagnoses = explain_by_settings(self.comparer, wrong, "quick")
        explained = {each.key for each in diagnoses}
        diagnoses += [each for some in summed for each in some.diagnoses]
        for some in wrong:
            diagnoses += [] if some.target.key in explained else self.diagnostician.explain(some)
        told = (
            *self.digests.findings(digests, data=False),
            *extent.findings("quick"),
            *untouched(results, "quick"),
            *_summed(summed),
            *_recomputed(results),
            *_loras(self.plan, strengths, {each.lora for each in diagnoses}),
            *told_of(self.plan, "quick", self._tallies(results, summed), digests, is_whole=sample is None),
            *findings(self.plan, diagnoses, results, "quick"),
            *by_setting,
        )
        looked_at = [(each.step, each.target.key) for each in results]
        looked_at += [(each.step, each.step.targets[0].key) for each in summed]
        return WeightsResult(
            told,
            (),
            tuple(verdicts(self.plan, looked_at, diagnoses)),
            self.digests.named(digests),
            self.digests.whole,
        )

    def _compare(self, job: Job) -> Summed | list[Comparison]:
        """Compare one step by random sums, by some of its rows, or completely."""
        found = found_in(self.baked, job.step.targets[0])
        if job.is_copy or not job.step.patches or found is None:
            return self.comparer.compare(job)
        sums = self.projector.sums(job.step, found)
        if sums is None:
            return self.comparer.compare_some(job, PLACES)
        self.progress(found.nbytes)
        diagnoses = self.diagnostician.explain_sums(sums) if len(sums.wrong) else ()
        by_lora: dict[int, Array] = {}
        for product, part in zip(sums.products, sums.parts, strict=True):
            by_lora.setdefault(product.patch.lora, np.zeros_like(sums.arrived))[product.rows] += part
        noise = max(sums.noise / sums.arrived.size, 1e-300)
        parts = np.array([each.ravel() for each in by_lora.values()])
        worst, values = float(sums.ratios.max(initial=0.0)), prod(sums.target.shape)
        gram, arrived = parts @ parts.T / noise, parts @ sums.arrived.ravel() / noise
        moves = ((each.patch, bool(part.any())) for each, part in zip(sums.products, sums.parts, strict=True))
        return Summed(job.step, values, worst, tuple(diagnoses), tuple(by_lora), gram, arrived, tuple(moves))

    def _tallies(self, results: Sequence[Comparison], summed: Sequence[Summed]) -> dict[int, Tally]:
        """Tally LoRAs whose change is zero, negative by its scale, or erased by its DoRA magnitudes."""
        tallies: dict[int, Tally] = {}
        seen = [pair for each in summed for pair in each.moves]
        for each in results:
            seen += [(each.step.patches[number], share.energy != 0) for number, share in each.shares.items()]
        for patch, moves in seen:
            tallies.setdefault(patch.lora, Tally()).count(patch.module, moves=moves)
        for patch in {patch.number: patch for patch, _ in seen}.values():
            lora = self.plan.sources.loras[patch.lora].name
            note_scales(tallies[patch.lora], patch, lora, self.comparer.recomputation)
        return tallies

    def _rows_of(self, lora: int, summed: Sequence[Summed]) -> Iterator[Comparison]:
        """Recompute some rows that one LoRA changes, to tell a wrong strength from losses by rounding."""
        for sums in summed:
            if lora in sums.loras and not sums.diagnoses:
                yield from self.comparer.compare_some(Job(sums.step, False), PLACES)


@dataclass(frozen=True, slots=True)
class Strength:
    """Hold the multiple of the recipe's strength at which a LoRA arrives, its uncertainty, and its source."""

    factor: float
    deviation: float
    tensors: int

    @property
    def is_clear(self) -> bool:
        """Tell whether the LoRA stands out from rounding enough to be told from none."""
        return SIGMAS * self.deviation < 0.5

    @property
    def is_near(self) -> bool:
        """Tell whether it is clearly the recipe's strength, within the usual effect of rounding."""
        return self.is_clear and abs(self.factor - 1) <= max(OFF, SIGMAS * self.deviation)


def _strengths(plan: Plan, summed: Sequence[Summed]) -> dict[int, Strength]:
    """Estimate each LoRA's arriving strength by least squares over all sums."""
    count = len(plan.sources.loras)
    gram, arrived, tensors = np.zeros((count, count)), np.zeros(count), Counter[int]()
    for sums in (some for some in summed if not some.diagnoses):
        gram[np.ix_(sums.loras, sums.loras)] += sums.gram
        arrived[list(sums.loras)] += sums.arrived
        tensors.update(sums.loras)
    inverse = np.linalg.pinv(gram)
    factors, deviations = inverse @ arrived, np.sqrt(np.maximum(np.diag(inverse), 0))
    return {
        index: Strength(float(factors[index]), float(deviations[index]), tensors[index])
        for index in range(count)
        if gram[index, index]
    }


def _loras(plan: Plan, strengths: Mapping[int, Strength], wrong: set[int | None]) -> Iterator[Finding]:
    """Report the LoRAs without faults; the output's dtype may keep less than all of one's change."""
    for index, strength in strengths.items():
        if index in wrong:
            continue
        name, note = plan.sources.loras[index].name, f"no row of its {strength.tensors} products is off"
        if not strength.is_near:
            why = "the output's dtype keeps no more of it" if strength.is_clear else "beside rounding it is too faint"
            note += f", and rows that were recomputed are right: {why}"
        measured = f"×{strength.factor:.4f} ± {strength.deviation:.1g}"
        status, figures = Status.PASS if strength.is_near else Status.WARN, Figures(strength.factor, 1, "factor")
        yield Finding("quick.lora", status, name, measured, "×1", note, figures)


def _summed(summed: Sequence[Summed]) -> Iterator[Finding]:
    right = [sums for sums in summed if not sums.diagnoses]
    if right:
        values, worst = sum(sums.values for sums in right), max(sums.worst for sums in right)
        note = (
            f"{VECTORS} random sums of each row, over all {values:,} values, are what the factors give; one value "
            f"beyond its row's bound escapes once in {2**VECTORS}, a right file fails once in {1 / FALSE_ALARM:.0e}"
        )
        measured = f"worst row at {worst:.2f} of its bound"
        subject, figures = f"{len(right)} baked tensors", Figures(worst, 1, "bound", len(right))
        yield Finding("quick.sums", Status.PASS, subject, measured, "1", note, figures)


def _recomputed(results: Sequence[Comparison]) -> Iterator[Finding]:
    """Report the correct tensors among those that are cast and those whose change is not a sum of products."""
    groups: dict[tuple[str, bool], list[Comparison]] = {}
    for result in results:
        if not result.is_copy and result.is_right:
            is_whole = result.values == prod(result.target.shape)
            groups.setdefault(("rows" if result.step.patches else "cast", is_whole), []).append(result)
    for (check, is_whole), group in groups.items():
        seen, values = sum(result.values for result in group), sum(prod(result.target.shape) for result in group)
        patches = [patch for result in group for patch in result.step.patches]
        titles = dict.fromkeys("DoRA" if patch.has_dora else patch.kind.title for patch in patches)
        what = f" ({', '.join(titles)})" if titles else ""
        note = f"all {values:,} values were recomputed{what}"
        if not is_whole:
            note = f"{seen:,} of {values:,} values, in rows at {PLACES} places of each, were recomputed{what}"
        subject, figures = f"{len(group)} tensors", Figures(0, 0, "values", len(group))
        note += f"; {within(group)}"
        yield Finding(f"quick.{check}", Status.PASS, subject, "0 wrong values", "", note, figures)
