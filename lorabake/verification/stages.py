"""Run the stages of a verification one after the other: what one lacks is said before any takes its time.

A stage that breaks off leaves what the others found. A fault of the inputs or the machine keeps its words; anything
else is lorabake's own failure, and is told as that.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lorabake.errors import INTERNAL, LorabakeError, first_line, where
from lorabake.machine import worded
from lorabake.planning import Plan
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.verification.findings import Failure, Finding, SampleOptions, Samples, Status
from lorabake.verification.structure import check_structure
from lorabake.verification.weights import WeightsResult, check_weights
from lorabake.verification.weights.comparing import rehearse
from lorabake.verification.weights.quick import check_quick

ORDER = ("structure", "quick", "weights", "samples")
COMPARING = {"quick": check_quick, "weights": check_weights}


class Run:
    """Gather what the `stages` asked for find; `tell` is told at once what keeps one of them from running."""

    def __init__(self, plan: Plan, path: Path, stages: tuple[str, ...], tell: Callable[[Finding], None]) -> None:
        self.plan, self.path, self.tell = plan, path, tell
        self.stages = tuple(stage for stage in ORDER if stage in stages)
        self.weights: WeightsResult | None = None
        self.samples: Samples | None = None
        self.seconds: dict[str, float] = {}
        self.failures: list[Failure] = []
        self._told: dict[str, list[Finding]] = {stage: [] for stage in ORDER}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return what was found, by stage."""
        return tuple(finding for stage in ORDER for finding in self._told[stage])

    def look(
        self,
        begin: Callable[[str, int], None],
        progress: Callable[[int], None],
        sample: int | None,
        samples: SampleOptions,
    ) -> None:
        """Run every stage; `begin`, `progress` and `sample` as in VerifyOptions.

        Raise a LorabakeError where one stage alone was asked for, and cannot be run.
        """
        checkpoint = self._structure(begin)
        with ExitStack() as stack:
            sampling = self._prepare(checkpoint, samples, stack)
            for stage in self.stages:
                if stage == "structure" or self._told[stage]:  # what it lacks was told
                    continue
                if checkpoint is None:
                    note = "the file cannot be read"
                    self._told[stage].append(Finding(f"{stage}.skipped", Status.SKIP, self.path.name, "", "", note))
                    continue
                begin(stage, 0 if stage == "samples" else checkpoint.size)
                with self._guarded(stage):
                    if stage in COMPARING:
                        found = COMPARING[stage](self.plan, checkpoint, sample=sample, progress=progress)
                        self.weights = found
                        self._told[stage] += found.findings
                    elif sampling is not None:
                        self.samples, told = sampling()
                        self._told[stage] += told

    def _structure(self, begin: Callable[[str, int], None]) -> Checkpoint | None:
        begin("structure", 0)
        checkpoint = None
        with self._guarded("structure"):
            told, checkpoint = check_structure(self.plan, self.path)
            # A file of another form is never true, whatever else was asked for.
            is_wanted = "structure" in self.stages
            self._told["structure"] += [each for each in told if is_wanted or each.status is Status.FAIL]
        return checkpoint

    def _prepare(
        self, checkpoint: Checkpoint | None, options: SampleOptions, stack: ExitStack
    ) -> Callable[[], tuple[Samples | None, list[Finding]]] | None:
        """Ask each stage for what it lacks, before any of them takes its time; return the samples stage, ready."""
        if checkpoint is None:
            return None
        ready = None
        for stage in self.stages:
            with self._guarded(stage):
                if stage in COMPARING:
                    rehearse(self.plan)
                elif stage == "samples":
                    from lorabake.verification.samples import prepare

                    ready, lacking = prepare(self.plan, self.path, options, stack)
                    self._told[stage] += lacking
            if stage != "structure":
                for finding in self._told[stage]:
                    self.tell(finding)
        return ready

    @contextmanager
    def _guarded(self, stage: str) -> Iterator[None]:
        """Turn what stops a stage into a finding; count its seconds."""
        began = time.perf_counter()
        try:
            with worded():
                yield
        except LorabakeError as error:
            if len(self.stages) == 1:
                raise
            self._broke_off(stage, error, error.exit_code, str(error).replace("\n", "; "))
        except Exception as error:
            note = f"lorabake failed, which says nothing of the file: {type(error).__name__}: {first_line(error)}"
            self._broke_off(stage, error, INTERNAL, f"{note} ({where(error)})")
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began

    def _broke_off(self, stage: str, error: BaseException, code: int, note: str) -> None:
        self._told[stage].append(Finding(f"{stage}.error", Status.ERROR, self.path.name, "", "", note))
        self.failures.append(Failure(stage, code, "".join(traceback.format_exception(error))))
