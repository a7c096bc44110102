"""Go on where a batch was stopped: keep what has receipts, do the rest part by part, and land their receipts."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from lorabake.batch import digests
from lorabake.batch.engines import Telling
from lorabake.batch.landed import Landed
from lorabake.batch.parts import Coverage, is_covered, left_of, parts_of, place_of
from lorabake.batch.receipts import are_all_of, ground_of
from lorabake.batch.work import Engine, Job, land_all
from lorabake.execution.agenda import Agenda, Computed
from lorabake.options import RunOptions
from lorabake.planning import Plan
from lorabake.visible import counted_as
from lorabake.writing.inputs import Inputs
from lorabake.writing.output import Output
from lorabake.writing.partial import Partial


class Restart:
    """Run one pass so that it can be stopped at any time; `engine` does the parts, or else this process.

    With `recheck`, what is kept is read, and compared with its receipts. `kept` is told each output of which
    something is kept, and how many bytes. With `is_shared` other processes have done parts, too. What is `known` of
    receipts is not read again.
    """

    def __init__(
        self,
        options: RunOptions,
        part_bytes: int,
        *,
        recheck: bool,
        engine: Engine | None,
        kept: Callable[[Path, int], None],
        is_shared: bool = False,
        known: Iterable[Landed] = (),
    ) -> None:
        self.is_shared = is_shared
        self._options, self._part_bytes, self._recheck, self._engine = options, part_bytes, recheck, engine
        self._told = kept
        self._kept: dict[Path, Coverage] = {}
        self._known = {each.plan.path: each for each in known}

    def _landed(self, plan: Plan) -> Landed:
        """Return what is known of an output's receipts; that digests its headers, so it is made once."""
        if plan.path not in self._known:
            self._known[plan.path] = Landed(plan, ground_of(plan, self._options.device))
        return self._known[plan.path]

    def complete(self, plan: Plan, made: Callable[[], None]) -> None:
        """Complete an output that was there but for its name; `made` is called if its receipts are of this plan."""
        ground = self._landed(plan).ground

        def told(folder: Path) -> None:
            if are_all_of(folder, ground):
                made()

        Partial.complete_killed(plan.path, told, shared=self.is_shared)

    def keep(self, output: Output) -> bool:
        """Read an output's receipts, and remove those that do not count; tell whether any does."""
        covered, refused = self._landed(output.plan).look(output, recheck=self._recheck)
        if self._recheck:
            digests.forget(output)
        for path in refused:
            path.unlink(missing_ok=True)
        for why in dict.fromkeys(refused.values()):
            count = counted_as(sum(each == why for each in refused.values()), "receipt")
            self._options.warn(f"{output.path}: what a stopped batch left of it is done again: {why} ({count})")
        if covered.places:
            self._kept[output.path] = covered
            self._told(output.path, covered.size)
        return bool(covered.places)

    def agenda(self, inputs: Inputs, outputs: Sequence[Output], progress: Callable[[int], None]) -> Agenda:
        """Let the engine do its parts, if there is one; say what is left to do here."""
        plans = [output.plan for output in outputs]
        parts = parts_of(plans, self._part_bytes)
        covered = [self._kept.get(plan.path, Coverage()) for plan in plans]
        for plan, each in zip(plans, covered, strict=True):
            places = map(place_of, plan.given)
            progress(each.size - sum(stop - start for _, start, stop in filter(partial(_is_in, each), places)))
        left = [part for each in parts if (part := left_of(each, covered)) is not None]
        landed = [*map(self._landed, plans)]
        grounds = [each.ground for each in landed]
        if self._engine is not None:
            job, telling = Job.of(plans, self._options, self._part_bytes), Telling(progress, self._options.warn)
            if left:
                self._engine.run(job, [part.number for part in left], telling)
                covered = [each.look(output)[0] for each, output in zip(landed, outputs, strict=True)]
                left = [part for each in parts if (part := left_of(each, covered)) is not None]
            due = [digests.due(*each) for each in zip(outputs, grounds, covered, strict=True)]
            if files := [(number, file) for number, own in enumerate(due) for file in own]:
                self._engine.hash(job, files, telling)
        for output, ground, each in zip(outputs, grounds, covered, strict=True):
            for place in each.places:
                output.weights.finish(*place)
            for file, sha256 in digests.taken(output, ground, each).items():
                output.weights.know(file, sha256)
        for number, output in enumerate(outputs):
            ends = defaultdict[int, set[int]](set)
            for file, _, stop in (place for part in left for place in part.portion[number].places):
                ends[file].add(stop)
            for file, stops in ends.items():
                output.weights.mark(file, stops)

        def ended(number: int, computed: Sequence[Mapping[int, Computed]], stop: threading.Event) -> None:
            land_all(left[number], inputs, outputs, grounds, computed, stop, followed=True)

        is_parted = len(parts) > 1 or any(each.places for each in covered)
        portions, before = tuple(part.portion for part in left), tuple(each.computed for each in covered)
        return Agenda(portions, before, ended if is_parted else None)


def _is_in(covered: Coverage, place: tuple[int, int, int]) -> bool:
    return is_covered(place, covered.places)
