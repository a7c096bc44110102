"""Spread a batch over a pool: whole passes where a base is small, parts of one pass where it is large."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorabake.batch.engines import Ended, Pool, Retries, Telling
from lorabake.batch.engines.dealing import deal
from lorabake.batch.engines.link import Packed, packed
from lorabake.batch.work import Job, do, hash_file
from lorabake.errors import LorabakeError
from lorabake.planning import Plan
from lorabake.planning import plan as plan_of
from lorabake.progress import unseen
from lorabake.recipe import Recipe
from lorabake.results import BakeResult
from lorabake.sources import resolve
from lorabake.tensors.once import shared
from lorabake.visible import short_repr

if TYPE_CHECKING:
    from lorabake.batch import BatchOptions, Outcome, Status


class Spread:
    """Run a batch on a pool whose context is open. What is told comes to whoever waits at that time, warnings once.

    The pool has to be made with this one's `telling`.
    """

    def __init__(self, retries: Retries | None = None) -> None:
        self._retries = retries
        self._pool: Pool | None = None
        self._listener = Telling()
        self._warned: set[str] = set()
        self.telling = Telling(lambda count: self._listener.progress(count), self._warn)

    def on(self, pool: Pool) -> Spread:
        """Take the pool that runs what is spread."""
        self._pool = pool
        return self

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._listener.warn(text)

    def run(self, job: Job, numbers: Sequence[int], telling: Telling) -> None:
        """Do parts of a pass. After a failure none is begun; the error is raised once all that run have ended."""
        self._do([PartOfPass(job, number) for number in numbers], telling)

    def hash(self, job: Job, files: Sequence[tuple[int, int]], telling: Telling) -> None:
        """Hash files of a pass, each on one core; a failure is told as in `run`."""
        self._do([FileOfPass(job, *each) for each in files], telling)

    def _do(self, works: Iterable[OfPass], telling: Telling) -> None:
        waiting = deque(works)
        failures: list[LorabakeError] = []

        def draw() -> OfPass | None:
            return waiting.popleft() if waiting and not failures else None

        for ended in self._dealt(draw, telling):
            if ended.error is not None:
                failures.append(ended.error)
        if failures:
            raise failures[0]

    def bake(
        self, passes: Sequence[Sequence[Plan]], options: BatchOptions, is_over: Callable[[], bool]
    ) -> Iterator[tuple[Sequence[Plan], Sequence[Outcome]]]:
        """Bake whole passes, several at a time; yield each with what became of its outputs.

        Nothing is begun once `is_over` says so.
        """
        from lorabake.batch import Outcome  # which imports this

        numbers = iter(range(len(passes)))

        def draw() -> WholePass | None:
            number = None if is_over() else next(numbers, None)
            return None if number is None else WholePass.of(number, passes[number], options)

        for ended in self._dealt(draw, Telling(options.run.progress, options.run.warn)):
            assert isinstance(ended.work, WholePass)
            plans = passes[ended.work.number]
            if ended.error is not None:
                yield plans, [Outcome.of(plan.sources.recipe, "failed", error=ended.error) for plan in plans]
                continue
            assert isinstance(ended.result, Ends)
            for path, size in ended.result.kept:
                options.kept(path, size)
            yield plans, [end.outcome(plan) for end, plan in zip(ended.result.ends, plans, strict=True)]

    def _dealt(self, draw: Callable[[], OfPass | WholePass | None], telling: Telling) -> Iterator[Ended]:
        """Deal out work to the pool, and end what is under way if anything interrupts that."""
        assert self._pool is not None
        self._listener = telling
        try:
            with closing(deal(self._pool, draw, self._retries)) as ends:  # type: ignore[type-var]
                yield from ends
        except BaseException:
            self._pool.abandon()
            raise


@dataclass(frozen=True, slots=True)
class PartOfPass:
    """Name one part of a pass. Its outputs' folders are made already; what is finished has receipts there."""

    job: Job
    number: int

    @property
    def name(self) -> str:
        """Name the part in messages."""
        return f"part {self.number + 1} of {_named(self.job.paths)}"

    def run(self, telling: Telling) -> None:
        """Do the part."""
        do(self.job, self.number, telling.progress, telling.warn)


@dataclass(frozen=True, slots=True)
class FileOfPass:
    """Name a file of an output of a pass, of which all is finished: by the output's number, and the file's."""

    job: Job
    number: int
    file: int

    @property
    def name(self) -> str:
        """Name the file in messages."""
        return f"the SHA-256 of file {self.file + 1} of {self.job.paths[self.number]}"

    def run(self, telling: Telling) -> None:
        """Hash the file."""
        hash_file(self.job, self.number, self.file)


OfPass = PartOfPass | FileOfPass


@dataclass(frozen=True, slots=True)
class WholePass:
    """Name a pass that one process does from its beginning to the end, and how."""

    __repr__ = short_repr

    number: int
    recipes: tuple[Recipe, ...]
    paths: tuple[Path, ...]
    options: BatchOptions

    @classmethod
    def of(cls, number: int, plans: Sequence[Plan], options: BatchOptions) -> WholePass:
        """Describe a pass. What is called back stays here: it can't travel."""
        run = replace(options.run, progress=unseen, warn=unseen, done=unseen, bar=False)
        options = replace(options, run=run, begun=unseen, ended=unseen, kept=unseen, engine=None, jobs=None)
        paths = tuple(plan.path.absolute() for plan in plans)
        return cls(number, tuple(plan.sources.recipe for plan in plans), paths, options)

    @property
    def name(self) -> str:
        """Name the pass in messages."""
        return _named(self.paths)

    def run(self, telling: Telling) -> Ends:
        """Bake the outputs, and tell what became of each, in their order."""
        from lorabake.batch import baked

        kept: list[tuple[Path, int]] = []
        run = replace(self.options.run, progress=telling.progress, warn=telling.warn)
        options = replace(self.options, run=run, kept=lambda path, size: kept.append((path, size)))
        with shared():
            plans = [plan_of(resolve(recipe), path) for recipe, path in zip(self.recipes, self.paths, strict=True)]
        return Ends(tuple(map(End.of, baked(plans, options))), tuple(kept))


@dataclass(frozen=True, slots=True)
class End:
    """Tell what became of one output, without its plan, which stays on the machine that made it.

    `is_plain` says that one device class computed all tensors: then `result` does not list them.
    """

    status: Status
    result: BakeResult | None = None
    is_plain: bool = False
    error: Packed | None = None

    @classmethod
    def of(cls, outcome: Outcome) -> End:
        """Take from an outcome what is small."""
        error, result = outcome.error, outcome.result
        if result is None:
            return cls(outcome.status, error=packed(error) if error is not None else None)
        is_plain = [*result.computed.values()] == [_keys(result.plan)]
        computed = dict.fromkeys(result.computed, ()) if is_plain else result.computed
        return cls(outcome.status, replace(result, plan=None, computed=computed), is_plain)  # type: ignore[arg-type]

    def outcome(self, plan: Plan) -> Outcome:
        """Put it together again with its plan."""
        from lorabake.batch import Outcome

        result = self.result
        if result is not None:
            computed = dict.fromkeys(result.computed, _keys(plan)) if self.is_plain else result.computed
            result = replace(result, plan=plan, path=plan.path, computed=computed)
        error = self.error.error() if self.error is not None else None
        return Outcome.of(plan.sources.recipe, self.status, result, error)


@dataclass(frozen=True, slots=True)
class Ends:
    """Tell what became of the outputs of a pass, and of which something was kept of a batch that was stopped."""

    ends: tuple[End, ...]
    kept: tuple[tuple[Path, int], ...]


def _keys(plan: Plan) -> tuple[str, ...]:
    return tuple(target.key for step in plan.steps for target in step.targets)


def _named(paths: Sequence[Path]) -> str:
    return f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
