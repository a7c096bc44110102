"""What is compared of a checkpoint, and how one step of a plan is: bytes, numbers, or what float64 makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import TypeVar

from lorabake.documents.names import Figures
from lorabake.errors import SurroundingsError
from lorabake.keymap.names import patterns
from lorabake.machine import default_workers
from lorabake.planning import Plan, in_base_layout
from lorabake.planning.steps import Step, Target, precision_of
from lorabake.reference.arrays import Files
from lorabake.reference.formulas.products import PRODUCTS
from lorabake.reference.recompute import Recomputation
from lorabake.settings import SAMPLE_WEIGHTS
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.dtypes import DTYPES, is_output
from lorabake.tensors.header import TensorInfo
from lorabake.verification.findings import Finding, Status
from lorabake.verification.weights.comparison import Comparison
from lorabake.verification.weights.screening import Screen

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Job:
    """Hold a step whose tensors are compared together; a tensor that must equal the base's is a step, too."""

    step: Step
    is_copy: bool


@dataclass(frozen=True, slots=True)
class Extent:
    """Say what of a checkpoint is compared, by `jobs`, and what is not, by keys."""

    jobs: tuple[Job, ...]
    due: int
    left_out: tuple[str, ...]
    lacking: tuple[str, ...]
    misshapen: tuple[str, ...]
    surplus: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan, baked: Checkpoint, sample: int | None = None) -> Extent:
        """Take every step of a plan whose tensors are there, or so many at even distances as `sample` says."""
        touched = {target.key for step in plan.steps for target in step.targets}
        targets = {target.key: target for file in plan.files for target in file.targets}
        copies = (target for key, target in targets.items() if key not in touched)
        precision = precision_of(plan.steps)
        jobs = [Job(step, False) for step in plan.steps] + [
            Job(Step.cast(number, each, precision), True) for number, each in enumerate(copies, len(plan.steps))
        ]
        jobs = [job for job in jobs if any(found_in(baked, target) for target in job.step.targets)]
        chosen = jobs
        if sample is not None and sample < len(jobs):
            chosen = [jobs[at * len(jobs) // sample] for at in range(sample)]
        taken = {job.step.number for job in chosen}
        left_out = (target for job in jobs if job.step.number not in taken for target in job.step.targets)
        return cls(
            tuple(chosen),
            len(targets),
            tuple(target.key for target in left_out if found_in(baked, target)),
            tuple(key for key in targets if key not in baked.tensors),
            tuple(key for key, target in targets.items() if key in baked.tensors and not found_in(baked, target)),
            tuple(key for key in baked.tensors if key not in targets),
        )

    def findings(self, stage: str) -> Iterator[Finding]:
        """Tell how much was compared, and name what was not."""
        compared = self.due - len(self.left_out) - len(self.lacking) - len(self.misshapen)
        reasons = (
            (self.lacking, "not there"),
            (self.misshapen, "of another shape"),
            (self.surplus, "that the recipe does not make"),
        )
        told = [f"{len(keys)} {what} ({patterns(keys)})" for keys, what in reasons if keys]
        if self.left_out:
            told.append(f"{len(self.left_out)} left out by {SAMPLE_WEIGHTS}")
            note = f"the others were not looked at; leave {SAMPLE_WEIGHTS} out to see them all"
            subject = f"{compared} of {compared + len(self.left_out)} tensors"
            figures = Figures(compared, compared + len(self.left_out), "tensors", compared)
            yield Finding(f"{stage}.sampled", Status.SKIP, subject, "", "", note, figures)
        note = f"not compared: {'; '.join(told)}" if told else "every tensor of checkpoint and recipe was compared"
        status = Status.SKIP if told else Status.PASS
        figures = Figures(compared, self.due, "tensors", compared)
        yield Finding(f"{stage}.compared", status, f"{compared} tensors", f"{compared}", f"{self.due}", note, figures)


def found_in(baked: Checkpoint, target: Target) -> TensorInfo | None:
    """Return the tensor that a checkpoint has for a target; None where it has none of this shape."""
    info = baked.tensors.get(target.key)
    return info if info is not None and info.shape == target.shape else None


class Comparer:
    """Compare the steps of one plan with one checkpoint; `progress` is told the bytes that were read of it."""

    def __init__(self, plan: Plan, baked: Checkpoint, files: Files, progress: Callable[[int], None]) -> None:
        self.plan, self.baked, self.files, self.progress = plan, baked, files, progress
        self.recomputation = Recomputation(files, baked.tensors)
        self.screen = Screen(self.recomputation, files)

    def compare(self, job: Job) -> list[Comparison]:
        """Compare every value of a step's tensors."""
        results = self._results(job)
        if job.is_copy:
            (copied,) = results
            source, found = copied.target.weight.first, copied.found
            if source.dtype == found.dtype or not _are_floats(source, found):
                same = self._holds_same(source, found)
                if same or not _are_floats(source, found):
                    copied.wrong = int(not same)
                    self.progress(found.nbytes)
                    return [copied]
        elif len(results) == 1 and (right := self.screen.compare(job.step, results[0].found)):
            self.progress(right.found.nbytes)
            return [right]
        self._recompute(job.step, results, None)
        for result in results:
            if job.is_copy and result.target.weight.dtype == result.found.dtype:
                result.wrong = max(1, result.wrong)  # other bytes may mean the same numbers, such as -0 for 0
        return results

    def compare_some(self, job: Job, places: int) -> list[Comparison]:
        """Compare rows of so many places; of a tensor whose rows do not stand alone all of them."""
        results = self._results(job)
        self._recompute(job.step, results, places)
        return results

    def _results(self, job: Job) -> list[Comparison]:
        return [
            Comparison(target, found, job.step, job.is_copy)
            for target in job.step.targets
            if (found := found_in(self.baked, target)) is not None
        ]

    def _recompute(self, step: Step, results: list[Comparison], places: int | None) -> None:
        by_key = {result.target.key: result for result in results}
        for tile in self.recomputation.tiles(step, places):
            if (result := by_key.get(tile.target.key)) is not None:
                rows, columns = tile.base.shape
                values = self.files.rows(result.found, tile.start, tile.start + rows, columns)
                result.add(tile, values, self.recomputation)
                self.progress(result.found.nbytes * tile.base.size // max(1, prod(result.target.shape)))

    def _holds_same(self, source: TensorInfo, found: TensorInfo) -> bool:
        """Tell whether two tensors hold the same bytes, or, in another dtype, the same numbers."""
        if source.dtype == found.dtype:
            return self.files.equal(source, found)
        if not (_is_plain(source) and _is_plain(found)):
            return False
        return bool((self.files.whole(source) == self.files.whole(found)).all())


def rehearse(plan: Plan) -> None:
    """Recompute some rows for each kind in a plan that is no plain product, so that what it lacks is told at once.

    Raise SurroundingsError for a kind without a formula, or whose formula takes a package that is not installed.
    """
    first: dict[str, Step] = {}
    for step in in_base_layout(plan).steps:
        for patch in step.patches:
            if patch.kind.name not in PRODUCTS:
                first.setdefault(patch.kind.name, step)
    with closing(Files()) as files:
        recomputation = Recomputation(files)
        try:
            for step in first.values():
                next(recomputation.tiles(step, 2))
        except ImportError as error:
            raise SurroundingsError(f"verification takes {error.name}, which is not installed") from None


def _are_floats(*infos: TensorInfo) -> bool:
    return all(is_output(info.dtype) for info in infos)


def _is_plain(info: TensorInfo) -> bool:
    """Tell whether a tensor holds one number a value, which NumPy knows."""
    if is_output(info.dtype):
        return True
    return not DTYPES[info.dtype].floating and info.dtype != "C64"


def each_of(pool: ThreadPoolExecutor, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """Work on jobs in a pool, few of them waiting at a time, and yield what they give."""
    left = iter(jobs)
    running = {pool.submit(work, job) for job in islice(left, default_workers())}
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        running |= {pool.submit(work, job) for job in islice(left, len(done))}
        for each in done:
            yield each.result()
