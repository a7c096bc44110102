"""Part plans into passes: those on one base together, as many at a time as memory, files and the disk allow."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Self

from lorabake.machine import folder_above, open_files_allowed
from lorabake.planning import Plan
from lorabake.writing.linking import room_of

MOST = 64
"""Most outputs of one pass."""

TENSOR_BYTES = 16 << 10
"""Memory that one more output of a pass takes for each of its tensors, as measured: header, steps and ledger."""

FILES_BESIDE = 64
"""Open files that a process needs for itself."""

WRITTEN, HASHED = 4, 1
"""What an output takes of a part of the base, in times of reading that part: to be made, and to be hashed last."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Say how much a pass may take: bytes of memory, or None, and how many workers compute."""

    memory: int | None = None
    workers: int = 2


def passes(plans: Sequence[Plan], limits: Limits) -> Iterator[tuple[Plan, ...]]:
    """Yield the plans of each pass: those on one base follow one another, in the order of their first."""
    for group in _on_one_base(plans):
        yield from _parted(group, limits, partial(_fit, limits=limits))


def agreed_passes(
    plans: Sequence[Plan], limits: Limits, shards: int, parts_of: Callable[[Sequence[Plan]], int]
) -> Iterator[tuple[tuple[Plan, ...], bool]]:
    """Yield passes on which any number of machines agree, for so many shards, and whether one shard does it whole.

    Nothing counts but the arguments; `parts_of` counts the parts of a pass. Outputs that are baked together read a
    part once, and are one shard's.
    """
    total = sum(plan.size for plan in plans)
    for group in _on_one_base(plans):
        own = max(1, -(-shards * sum(plan.size for plan in group) // max(total, 1)))
        most, is_whole = _best_cut(len(group), parts_of(group), own)
        for together in _parted(group, limits, partial(_in_memory, limits=limits, most=most)):
            yield together, is_whole


def _best_cut(outputs: int, parts: int, shards: int) -> tuple[int, bool]:
    """Return how many outputs on one base are baked together, and whether a shard does a pass whole.

    The busiest shard shall have the least to do. In s whole passes it has ceil(s / shards) of them. Of passes that
    shards do together it has ceil(parts · s / shards) parts, and hashes all outputs of a pass at the end.
    """
    fewest = -(-outputs // MOST)

    def whole(count: int) -> int:
        return -(-count // shards) * parts * (1 + (WRITTEN + HASHED) * -(-outputs // count))

    def shared(count: int) -> int:
        together = -(-outputs // count)
        hashed = -(-count // shards) * parts * HASHED * together
        return -(-parts * count // shards) * (1 + WRITTEN * together) + hashed

    cuts = [(cost(count), cost is shared, count) for count in range(fewest, outputs + 1) for cost in (whole, shared)]
    _, is_shared, count = min(cuts)
    return -(-outputs // count), not is_shared


def _on_one_base(plans: Sequence[Plan]) -> Iterable[list[Plan]]:
    groups: dict[tuple[Path, str | None], list[Plan]] = {}
    for plan in plans:
        base = plan.sources.base.path
        groups.setdefault((Path(os.path.realpath(base)), plan.sources.recipe.base.variant), []).append(plan)
    return groups.values()


def memory_of(plans: Sequence[Plan], workers: int) -> int:
    """Estimate the bytes of anonymous memory that baking plans in one pass needs."""
    return reduce(add, (_Needs.of(plan, workers) for plan in plans)).memory


def _parted(group: Sequence[Plan], limits: Limits, fit: Callable[[_Needs], bool]) -> Iterator[tuple[Plan, ...]]:
    """Yield the longest runs of plans that fit together; one plan alone is always tried."""
    together: list[Plan] = []
    needs: _Needs | None = None
    for plan in group:
        own = _Needs.of(plan, limits.workers)
        more = own if needs is None else needs + own
        if together and not fit(more):
            yield tuple(together)
            together, more = [], own
        together.append(plan)
        needs = more
    yield tuple(together)


def _in_memory(needs: _Needs, limits: Limits, most: int = MOST) -> bool:
    return needs.outputs <= most and (limits.memory is None or needs.memory <= limits.memory)


def _fit(needs: _Needs, limits: Limits) -> bool:
    """Tell whether this machine can bake plans in one pass."""
    files = needs.files + FILES_BESIDE + needs.files_of_base
    return _in_memory(needs, limits) and files <= open_files_allowed() and needs.have_room


@dataclass(frozen=True, slots=True)
class _Needs:
    """Hold what plans on one base take; what they take together is the sum, so that no plan is looked at twice.

    `peak` is the memory of one plan's steps, in bytes, `tensors` the tensors of all, and `largest` of the plan with
    the most. `files` are open besides those of the base. `places` maps each disk to a folder there and the bytes
    that are due.
    """

    outputs: int
    files_of_base: int
    peak: int
    tensors: int
    largest: int
    files: int
    places: Mapping[int, tuple[Path, int]]

    @classmethod
    def of(cls, plan: Plan, workers: int) -> Self:
        """Say what one plan takes."""
        tensors = sum(len(file.targets) for file in plan.files)
        files = 2 * len(plan.files) + len(plan.sources.loras)
        folder = folder_above(plan.path)
        places = {folder.stat().st_dev: (folder, room_of(plan))}
        of_base = len([*plan.sources.base.headers])
        return cls(1, of_base, plan.peak_memory(workers), tensors, tensors, files, places)

    def __add__(self, other: Self) -> Self:
        places = dict(self.places)
        for disk, (folder, size) in other.places.items():
            places[disk] = (folder, size + places.get(disk, (folder, 0))[1])
        return replace(
            self,
            outputs=self.outputs + other.outputs,
            peak=max(self.peak, other.peak),
            tensors=self.tensors + other.tensors,
            largest=max(self.largest, other.largest),
            files=self.files + other.files,
            places=places,
        )

    @property
    def memory(self) -> int:
        """Estimate the bytes of anonymous memory; the output with the most tensors is part of the peak."""
        return self.peak + TENSOR_BYTES * (self.tensors - self.largest)

    @property
    def have_room(self) -> bool:
        """Tell whether each disk has room for all outputs that go there; an old one stays until the new is whole."""
        return all(size <= shutil.disk_usage(folder).free for folder, size in self.places.values())
