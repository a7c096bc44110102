"""Group steps of several plans that read the same tensors of a base into units, so that each tensor is read once.

With one plan, each step is a unit by itself, and nothing is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorabake.execution.ends import Reader
from lorabake.planning.steps import Step


@dataclass(frozen=True, slots=True)
class Range:
    """Name bytes `start` to `stop` of an input file."""

    file: Path
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Task:
    """Name a step, and the number of its plan."""

    plan: int
    step: Step


@dataclass(frozen=True, slots=True)
class Unit:
    """Hold tasks that read some of the same tensors; `shared` are the tensors that more than one task reads.

    `portion` is the number of the portion of an agenda that they are of.
    """

    tasks: tuple[Task, ...]
    shared: tuple[Range, ...] = ()
    portion: int = 0

    @property
    def in_tiles(self) -> bool:
        """Tell whether the tasks can go through one tensor together, by the same independent rows."""
        cuts = {(ranges_of(task.step), *_matrices(task.step)) for task in self.tasks}
        is_alone = all(len(task.step.results) == 1 for task in self.tasks)
        return len(cuts) == 1 and is_alone and all(task.step.by_rows for task in self.tasks)


def _matrices(step: Step) -> Iterator[tuple[int, int]]:
    return (step.matrix(result.key) for result in step.results)


def ranges_of(step: Step) -> tuple[Range, ...]:
    """List the bytes of the base that a step computes from."""
    return tuple(Range(info.file, info.start, info.stop) for info in step.stored)


def units_of(plans: Sequence[Sequence[Step]], portion: int = 0) -> list[Unit]:
    """Group the steps of all plans by the tensors that they read, in the order of their first ones."""
    if len(plans) == 1:
        return [Unit((Task(0, step),), portion=portion) for step in plans[0]]
    units: dict[int, list[Task]] = {}
    home: dict[Range, int] = {}
    for task in (Task(number, step) for number, steps in enumerate(plans) for step in steps):
        ranges = ranges_of(task.step)
        own, *others = sorted({home[place] for place in ranges if place in home}) or [len(units)]
        for number in others:  # this task joins units that were separate
            moved, units[number] = units[number], []
            units[own] += moved
            home |= {place: own for member in moved for place in ranges_of(member.step)}
        units.setdefault(own, []).append(task)
        home |= dict.fromkeys(ranges, own)
    return [_unit(tasks, portion) for tasks in units.values() if tasks]


def _unit(tasks: Iterable[Task], portion: int) -> Unit:
    tasks = tuple(sorted(tasks, key=lambda task: (task.plan, task.step.number)))
    counts = Counter(place for task in tasks for place in ranges_of(task.step))
    return Unit(tasks, tuple(place for place, count in counts.items() if count > 1), portion)


class SharedReader:
    """Read inputs for one worker; read each byte that the unit's tasks share only once.

    In tiles, the tasks ask for the same rows one after the other, and the last rows are kept. Otherwise a tensor is
    kept whole until the unit ends.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._shared: tuple[Range, ...] = ()
        self._in_tiles = False
        self._kept: dict[Range, bytearray] = {}

    @contextmanager
    def sharing(self, unit: Unit, *, in_tiles: bool) -> Iterator[None]:
        """Keep what the tasks of a unit share, inside the context."""
        self._shared, self._in_tiles = unit.shared, in_tiles
        try:
            yield
        finally:
            self._shared = ()
            self._kept.clear()

    def read(self, path: Path, start: int, into: memoryview) -> None:
        """Fill a buffer with the bytes from `start`."""
        stop = start + len(into)
        for place in self._shared:
            if place.file == path and place.start <= start and stop <= place.stop:
                asked = Range(path, start, stop)
                self._read_tile(asked, into) if self._in_tiles else self._read_whole(place, asked, into)
                return
        self._reader.read(path, start, into)

    def _read_tile(self, asked: Range, into: memoryview) -> None:
        if asked in self._kept:
            into[:] = self._kept[asked]
        else:
            self._reader.read(asked.file, asked.start, into)
            self._kept = {asked: bytearray(into)}

    def _read_whole(self, place: Range, asked: Range, into: memoryview) -> None:
        if place not in self._kept:
            whole = bytearray(place.stop - place.start)
            self._reader.read(place.file, place.start, memoryview(whole))
            self._kept[place] = whole
        into[:] = memoryview(self._kept[place])[asked.start - place.start : asked.stop - place.start]
