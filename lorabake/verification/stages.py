"""Run one stage of a verification: ready it, let it look, and keep what it found or why it broke off.

What a stage lacks is told before any of them takes its time. A stage that breaks off leaves what the others found. A
fault of the inputs or the machine keeps its words; anything else is lorabake's own failure, and is told as that.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from lorabake import arguments
from lorabake.errors import INTERNAL, LorabakeError, first_line, where
from lorabake.machine import worded
from lorabake.planning import Plan
from lorabake.progress import NotebookBar, unseen
from lorabake.settings import STATE
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.verification.findings import Failure, Finding, SampleOptions, Samples, Status
from lorabake.verification.provenance import check_statement, statement_beside
from lorabake.verification.structure import check_structure
from lorabake.verification.weights import WeightsResult, check_weights
from lorabake.verification.weights.comparing import rehearse
from lorabake.verification.weights.quick import check_quick
from lorabake.visible import short_repr

if TYPE_CHECKING:
    from lorabake.verification.samples.album import Album

ORDER = ("structure", "provenance", "quick", "weights", "samples")
STAGES = ("structure", "weights", "samples")
"""What is looked at unless it is said otherwise; `quick` may take the place of weights.

If nothing is said, a statement of provenance that lies beside the output is looked at, too.
"""

COMPARING = {"quick": check_quick, "weights": check_weights}

Result = TypeVar("Result")
Work = Callable[[], tuple[Iterable[Finding], Result | None]]
"""Look, and return findings and what later steps take; None where there is none."""


@arguments.well_made
@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """Say how thoroughly to look.

    `stages` are some of "structure", "provenance", "weights" or "quick", and "samples"; `samples` says how to sample.
    `sample_weights` looks at so many tensors only. `digests` takes the SHA-256 of the base's and the checkpoint's
    files, if a stage reads them anyway. `command` and `date` are repeated in the result. `begin` is told each part of
    the work and the bytes it will read (0 where unknown); `progress` counts them, from any thread. `tell` is told at
    once what will keep a stage from running, and `ended` of each stage that is over: its name, its findings, and its
    seconds, None where it was not begun.
    Without a `progress` of its own, a run in a notebook shows a bar, unless `bar` is False.

    Raise ArgumentError for a value of another type, or out of its range.

    Examples:
        >>> lorabake.VerifyOptions(stages=["structure", "quick"]).stages
        ('structure', 'quick')
    """

    __repr__ = short_repr

    stages: Sequence[str] = STAGES
    sample_weights: int | None = None
    digests: bool = False
    command: str = ""
    date: str = ""
    samples: SampleOptions = field(default_factory=SampleOptions)
    begin: Callable[[str, int], None] = unseen
    progress: Callable[[int], None] = unseen
    tell: Callable[[Finding], None] = unseen
    ended: Callable[[str, Sequence[Finding], float | None], None] = unseen
    bar: bool = True

    def __post_init__(self) -> None:
        least = self.sample_weights
        checked = {
            "stages": arguments.chosen(self.stages, "stages", ORDER),
            "sample_weights": None if least is None else arguments.whole(least, "sample_weights", 1),
            "samples": arguments.instance(self.samples, SampleOptions, "samples", "SampleOptions(…)"),
            "digests": arguments.yes_or_no(self.digests, "digests"),
            "command": arguments.text(self.command, "command"),
            "date": arguments.text(self.date, "date"),
            "begin": arguments.called(self.begin, "begin", "lambda stage, total: None"),
            "progress": arguments.called(self.progress, "progress", "lambda count: None"),
            "tell": arguments.called(self.tell, "tell", "print"),
            "ended": arguments.called(self.ended, "ended", "lambda stage, findings, seconds: None"),
            "bar": arguments.yes_or_no(self.bar, "bar"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def shown_by(options: VerifyOptions, bar: NotebookBar) -> VerifyOptions:
    """Put a notebook's bar in the place of callbacks that were not given."""
    samples = options.samples
    if samples.progress is unseen:
        samples = replace(samples, progress=bar.step)
    if options.begin is not unseen or options.progress is not unseen:
        return replace(options, samples=samples)
    return replace(options, samples=samples, begin=bar.begin, progress=bar.advance)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Result]):
    """Hold what a stage brought: `result` is None where it lacks something, or broke off; then findings say so.

    `seconds` is None for a stage that was not begun.
    """

    stage: str
    findings: tuple[Finding, ...] = ()
    result: Result | None = None
    seconds: float | None = None
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Readied:
    """Hold what each stage after structure will do, or what it lacks."""

    stating: tuple[Outcome[Work[None]], ...]
    comparing: tuple[Outcome[Work[WeightsResult]], ...]
    sampling: tuple[Outcome[Work[Samples]], ...]


def look_at_structure(
    plan: Plan, path: Path, options: VerifyOptions, inputs: Iterable[Finding] = ()
) -> Outcome[Checkpoint]:
    """Check the form of a checkpoint, and hand the checkpoint on; None for one that cannot be read.

    `inputs` are findings on where the inputs were found, which come first.
    """
    options.begin("structure", 0)
    outcome = _attempt("structure", partial(check_structure, plan, path), path, options)
    kept = outcome.findings
    if "structure" not in options.stages:
        # A file of another form is never true, whatever else was asked for.
        kept = tuple(finding for finding in kept if finding.status in (Status.FAIL, Status.ERROR))
    return _ended(replace(outcome, findings=(*inputs, *kept)), options)


def ready(
    plan: Plan,
    path: Path,
    checkpoint: Checkpoint | None,
    options: VerifyOptions,
    opened: ExitStack,
    album: Album | None = None,
) -> Readied:
    """Open what the other stages take, and tell at once what one lacks; `opened` closes it.

    `album` keeps what the base made of prompts, for verifications of other outputs.
    """
    options.begin("getting ready", 0)
    wanted = [stage for stage in ORDER if stage in options.stages]
    if checkpoint is None:
        note = "the file cannot be read"
        skipped = {stage: (Finding(f"{stage}.skipped", Status.SKIP, path.name, "", "", note),) for stage in wanted}
        return Readied(
            tuple(Outcome(stage, skipped[stage]) for stage in wanted if stage == "provenance"),
            tuple(Outcome(stage, skipped[stage]) for stage in wanted if stage in COMPARING),
            tuple(Outcome(stage, skipped[stage]) for stage in wanted if stage == "samples"),
        )
    stating = _stating(plan, path, checkpoint, options)
    comparing = tuple(
        _told(_attempt(stage, partial(_compares, stage, plan, checkpoint, options), path, options), options)
        for stage in wanted
        if stage in COMPARING
    )
    sampling = tuple(
        _told(_attempt(stage, partial(_samples, plan, path, options, opened, album), path, options), options)
        for stage in wanted
        if stage == "samples"
    )
    return Readied(stating, comparing, sampling)


def finish(
    readied: Iterable[Outcome[Work[Result]]], total: int, path: Path, options: VerifyOptions
) -> list[Outcome[Result]]:
    """Let the stages look that are ready; `total` are the bytes that each will read."""
    outcomes: list[Outcome[Result]] = []
    for before in readied:
        if before.result is None:
            lacking: Outcome[Result] = Outcome(before.stage, before.findings, None, before.seconds, before.failures)
            outcomes.append(_ended(lacking, options))
            continue
        options.begin(before.stage, total)
        outcome = _attempt(before.stage, before.result, path, options)
        seconds = (before.seconds or 0.0) + (outcome.seconds or 0.0)
        outcomes.append(_ended(replace(outcome, seconds=seconds), options))
    return outcomes


def _stating(
    plan: Plan, path: Path, checkpoint: Checkpoint, options: VerifyOptions
) -> tuple[Outcome[Work[None]], ...]:
    """Ready the look at a statement of provenance; without one there is a finding only if it was asked for."""
    is_asked, place = "provenance" in options.stages, statement_beside(path)
    if place is None:
        note = "no statement of provenance lies beside the checkpoint: " + f"{STATE}, or put it there"
        skipped = Finding("provenance.skipped", Status.SKIP, path.name, "", "", note)
        return (Outcome("provenance", (skipped,)),) if is_asked else ()
    if not is_asked and tuple(options.stages) != STAGES:
        return ()

    def state() -> tuple[list[Finding], None]:
        return [*check_statement(plan, checkpoint, place, options.progress)], None

    return (Outcome("provenance", result=state),)


def _compares(
    stage: str, plan: Plan, checkpoint: Checkpoint, options: VerifyOptions
) -> tuple[tuple[Finding, ...], Work[WeightsResult]]:
    rehearse(plan)

    def compare() -> tuple[tuple[Finding, ...], WeightsResult]:
        check = COMPARING[stage]
        found = check(
            plan, checkpoint, sample=options.sample_weights, whole=options.digests, progress=options.progress
        )
        return found.findings, found

    return (), compare


def _samples(
    plan: Plan, path: Path, options: VerifyOptions, opened: ExitStack, album: Album | None
) -> tuple[list[Finding], Work[Samples] | None]:
    from lorabake.verification.samples import prepare

    return prepare(plan, path, options.samples, opened, album)


def _told(outcome: Outcome[Result], options: VerifyOptions) -> Outcome[Result]:
    for finding in outcome.findings:
        options.tell(finding)
    return outcome


def _ended(outcome: Outcome[Result], options: VerifyOptions) -> Outcome[Result]:
    """Tell of a stage that is over."""
    options.ended(outcome.stage, outcome.findings, outcome.seconds)
    return outcome


def _attempt(stage: str, work: Work[Result], path: Path, options: VerifyOptions) -> Outcome[Result]:
    """Turn what stops a stage into a finding; count its seconds.

    Raise a LorabakeError where one stage alone was asked for, and cannot be run.
    """
    began = time.perf_counter()
    try:
        with worded():
            findings, result = work()
    except LorabakeError as error:
        if len({*options.stages}) == 1:
            raise
        note, code, stopped = str(error).replace("\n", "; "), error.exit_code, _trace(error)
    except Exception as error:
        note = f"lorabake failed, which says nothing of the file: {type(error).__name__}: {first_line(error)}"
        note, code, stopped = f"{note} ({where(error)})", INTERNAL, _trace(error)
    else:
        return Outcome(stage, tuple(findings), result, time.perf_counter() - began)
    finding = Finding(f"{stage}.error", Status.ERROR, path.name, "", "", note)
    seconds = time.perf_counter() - began
    return Outcome(stage, (finding,), None, seconds, (Failure(stage, code, stopped),))


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
