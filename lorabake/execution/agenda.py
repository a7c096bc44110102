"""What is to be done of plans: all at once, or portion by portion, without what has been done before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from lorabake.planning import Plan
from lorabake.planning.copies import Copy, Given
from lorabake.planning.steps import Step
from lorabake.planning.tally import Tally

Place = tuple[int, int, int]
"""A planned file's number, and the first and last byte of a range of its data."""


@dataclass(frozen=True, slots=True)
class Share:
    """Hold what a portion does of one plan."""

    steps: tuple[Step, ...] = ()
    copies: tuple[Copy, ...] = ()
    given: tuple[Given, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps or self.copies or self.given)

    @property
    def places(self) -> tuple[Place, ...]:
        """List the ranges that it writes, in order; what follows each other is one range."""
        return joined(self._places())

    def _places(self) -> Iterator[Place]:
        for target in (target for step in self.steps for target in step.targets):
            yield target.file, target.offset, target.offset + target.nbytes
        for copy in self.copies:
            yield copy.file, copy.offset, copy.offset + copy.stop - copy.start
        for given in self.given:
            yield given.file, given.offset, given.offset + len(given.data)


Portion = tuple[Share, ...]
"""What is done of each plan before its end is told."""


@dataclass(frozen=True, slots=True)
class Computed:
    """Tell of a step: the class of device that computed it, the device that was asked for, and what was observed.

    `tallies` are by the LoRA's number.
    """

    kind: str
    asked: str
    tallies: Mapping[int, Tally]

    @property
    def is_left(self) -> bool:
        """Tell whether an accelerator was asked for, and left the step to the CPU."""
        return self.kind == "cpu" and self.asked.partition(":")[0] != "cpu"


Ended = Callable[[int, Sequence[Mapping[int, Computed]], threading.Event], None]
"""Takes the number of a portion that has ended, and for each plan what became of its steps, by their numbers.

It gives up once the event is set.
"""


@dataclass(frozen=True, slots=True)
class Agenda:
    """Say what is to be done, in which portions; `before` tells of the steps of each plan that were done before.

    `ended` is called from one thread once a portion's last byte is written. It may take its time, and an error stops
    all.
    """

    portions: tuple[Portion, ...]
    before: tuple[Mapping[int, Computed], ...]
    ended: Ended | None = None

    @classmethod
    def of(cls, plans: Iterable[Plan]) -> Self:
        """Say that all of plans is to be done, at once."""
        portion = tuple(Share(plan.steps, plan.copies, plan.given) for plan in plans)
        return cls((portion,), ({},) * len(portion))


def joined(places: Iterable[Place]) -> tuple[Place, ...]:
    """Sort ranges, leave out empty ones, and join those that follow each other."""
    ranges: list[Place] = []
    for file, start, stop in sorted(place for place in places if place[1] < place[2]):
        if ranges and ranges[-1][0] == file and ranges[-1][2] == start:
            ranges[-1] = (file, ranges[-1][1], stop)
        else:
            ranges.append((file, start, stop))
    return tuple(ranges)
