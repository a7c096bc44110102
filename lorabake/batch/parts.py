"""Cut a pass into parts: about as many bytes of the base each, by the plans alone, so that everyone cuts alike.

Steps that share tensors are never parted. What comes from elsewhere, such as a VAE, follows the base.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lorabake.execution.agenda import Computed, Place, Portion, Share
from lorabake.execution.units import Unit, ranges_of, units_of
from lorabake.planning import Plan
from lorabake.planning.copies import Copy, Given
from lorabake.planning.steps import Step

PART_BYTES: Final = 256 << 20
"""Bytes of the base of one part, about: some seconds of work, and what a kill costs at most."""


@dataclass(frozen=True, slots=True)
class Part:
    """Hold what one part of a pass does of each plan; `number` is its place among all parts of the pass."""

    number: int
    portion: Portion

    @property
    def size(self) -> int:
        """Count the bytes that it writes."""
        return sum(stop - start for share in self.portion for _, start, stop in share.places)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Say what of an output is finished: steps with what became of them, and all ranges, in order."""

    computed: Mapping[int, Computed] = field(default_factory=dict)
    places: tuple[Place, ...] = ()

    @property
    def size(self) -> int:
        """Count the finished bytes."""
        return sum(stop - start for _, start, stop in self.places)


def parts_of(plans: Sequence[Plan], size: int = PART_BYTES) -> tuple[Part, ...]:
    """Cut the plans of a pass into parts, about `size` bytes of their inputs each; every byte is of one part."""
    starts, total = _starts(plans)
    count = max(1, round(total / size))
    width = max(1, -(-total // count))
    steps = [[list[Step]() for _ in plans] for _ in range(count)]
    copies = [[list[Copy]() for _ in plans] for _ in range(count)]
    given: list[list[tuple[Given, ...]]] = [[() for _ in plans] for _ in range(count)]
    for unit in units_of([plan.steps for plan in plans]):
        place = min(_first(unit, starts) // width, count - 1)
        for task in unit.tasks:
            steps[place][task.plan].append(task.step)
    for number, plan in enumerate(plans):
        given[0][number] = plan.given
        for copy in plan.copies:
            for piece, place in _cut(copy, starts[copy.source], width):
                copies[min(place, count - 1)][number].append(piece)
    portions = (
        tuple(
            Share(tuple(steps[place][number]), tuple(copies[place][number]), given[place][number])
            for number in range(len(plans))
        )
        for place in range(count)
    )
    return tuple(Part(number, portion) for number, portion in enumerate(filter(any, portions)))


def left_of(part: Part, covered: Sequence[Coverage]) -> Part | None:
    """Return what of a part is not covered in each output; None where nothing is left."""
    portion = tuple(_left(share, each) for share, each in zip(part.portion, covered, strict=True))
    return Part(part.number, portion) if any(portion) else None


def _starts(plans: Iterable[Plan]) -> tuple[dict[Path, int], int]:
    """Lay the input files one behind the other, in the plans' order; return where each begins, and the end."""
    sizes: dict[Path, int] = {}
    for plan in plans:
        targets = (target for file in plan.files for target in file.targets)
        infos = [part for target in targets for weight in target.weights for part in weight.parts.values()]
        infos += (info for step in plan.steps for info in step.stored)
        for info in infos:
            sizes[info.file] = max(sizes.get(info.file, 0), info.stop)
        for copy in plan.copies:
            sizes[copy.source] = max(sizes.get(copy.source, 0), copy.stop)
    starts, total = dict[Path, int](), 0
    for path, size in sizes.items():
        starts[path] = total
        total += size
    return starts, total


def _first(unit: Unit, starts: Mapping[Path, int]) -> int:
    """Return the place of the first tensor that the first of a unit's tasks is computed from."""
    return next((starts[place.file] + place.start for task in unit.tasks for place in ranges_of(task.step)), 0)


def _cut(copy: Copy, start: int, width: int) -> Iterator[tuple[Copy, int]]:
    """Cut a copy where a part begins; yield each piece with its part."""
    position = copy.start
    while position < copy.stop:
        place = (start + position) // width
        stop = min(copy.stop, (place + 1) * width - start)
        yield Copy(copy.source, position, stop, copy.file, copy.offset + position - copy.start), place
        position = stop


def _left(share: Share, covered: Coverage) -> Share:
    if not covered.places:
        return share
    return Share(
        tuple(step for step in share.steps if step.number not in covered.computed),
        tuple(piece for copy in share.copies for piece in _uncovered(copy, covered.places)),
        tuple(each for each in share.given if not is_covered(place_of(each), covered.places)),
    )


def place_of(given: Given) -> Place:
    """Return the range that given bytes take."""
    return given.file, given.offset, given.offset + len(given.data)


def is_covered(place: Place, places: Sequence[Place]) -> bool:
    """Tell whether a range lies within one of some ranges, which are in order."""
    file, start, stop = place
    at = bisect_right(places, (file, start, 1 << 62)) - 1
    return start == stop or (at >= 0 and places[at][0] == file and places[at][1] <= start and stop <= places[at][2])


def _uncovered(copy: Copy, places: Sequence[Place]) -> Iterator[Copy]:
    """Yield what of a copy lies in no finished range."""
    position, end = copy.offset, copy.offset + copy.stop - copy.start
    at = bisect_left(places, (copy.file, position, position))
    at -= at > 0 and places[at - 1][0] == copy.file and places[at - 1][2] > position
    while position < end:
        file, start, stop = places[at] if at < len(places) else (copy.file, end, end)
        start = min(start, end) if file == copy.file else end
        if position < start:
            begin = copy.start + position - copy.offset
            yield Copy(copy.source, begin, begin + start - position, copy.file, position)
        position, at = max(position, stop) if start < end else end, at + 1
