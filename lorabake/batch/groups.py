"""Part plans into passes: those on one base together, as many at a time as memory, files and the disk allow."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorabake.machine import folder_above, open_files_allowed
from lorabake.planning import Plan

MOST = 64
"""Most outputs of one pass."""

TENSOR_BYTES = 16 << 10
"""Memory that one more output of a pass takes for each of its tensors, as measured: header, steps and ledger."""

FILES_BESIDE = 64
"""Open files that a process needs for itself."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Say how much a pass may take: bytes of memory, or None, and how many workers compute."""

    memory: int | None = None
    workers: int = 2


def passes(plans: Sequence[Plan], limits: Limits) -> Iterator[tuple[Plan, ...]]:
    """Yield the plans of each pass: those on one base follow one another, in the order of their first."""
    for group in _on_one_base(plans):
        yield from _parted(group, lambda together: _fit(together, limits) and _have_room(together))


def agreed_passes(
    plans: Sequence[Plan], limits: Limits, shards: int, parts_of: Callable[[Sequence[Plan]], int]
) -> Iterator[tuple[Plan, ...]]:
    """Yield passes on which any number of machines agree, for so many shards: nothing counts but the arguments.

    `parts_of` counts the parts of a pass. Outputs that are baked together read a part once, and are one shard's.
    So a pass has as many as make the busiest shard's bytes the fewest.
    """
    total = sum(plan.size for plan in plans)
    for group in _on_one_base(plans):
        own = max(1, -(-shards * sum(plan.size for plan in group) // max(total, 1)))
        most = _most_together(len(group), parts_of(group), own)
        yield from _parted(group, partial(_in_memory, limits=limits, most=most))


def _most_together(outputs: int, parts: int, shards: int) -> int:
    """Return how many outputs on one base are baked together, so that the busiest shard moves the fewest bytes.

    In s passes it has ceil(parts · s / shards) parts, each read once and written ceil(outputs / s) times.
    """
    fewest = -(-outputs // MOST)

    def busiest(count: int) -> int:
        return -(-parts * count // shards) * (1 + -(-outputs // count))

    return -(-outputs // min(range(fewest, outputs + 1), key=busiest))


def _on_one_base(plans: Sequence[Plan]) -> Iterable[list[Plan]]:
    groups: dict[tuple[Path, str | None], list[Plan]] = {}
    for plan in plans:
        base = plan.sources.base.path
        groups.setdefault((Path(os.path.realpath(base)), plan.sources.recipe.base.variant), []).append(plan)
    return groups.values()


def memory_of(plans: Sequence[Plan], workers: int) -> int:
    """Estimate the bytes of anonymous memory that baking plans in one pass needs."""
    tensors = sorted(sum(len(file.targets) for file in plan.files) for plan in plans)
    return max(plan.peak_memory(workers) for plan in plans) + TENSOR_BYTES * sum(tensors[:-1])


def _parted(group: Sequence[Plan], fit: Callable[[Sequence[Plan]], bool]) -> Iterator[tuple[Plan, ...]]:
    """Yield the longest runs of plans that fit together; one plan alone is always tried."""
    together: list[Plan] = []
    for plan in group:
        if together and not fit([*together, plan]):
            yield tuple(together)
            together = []
        together.append(plan)
    yield tuple(together)


def _in_memory(plans: Sequence[Plan], limits: Limits, most: int = MOST) -> bool:
    return len(plans) <= most and (limits.memory is None or memory_of(plans, limits.workers) <= limits.memory)


def _fit(plans: Sequence[Plan], limits: Limits) -> bool:
    """Tell whether this machine can bake plans in one pass."""
    files = sum(2 * len(plan.files) + len(plan.sources.loras) for plan in plans)
    files += FILES_BESIDE + len([*plans[0].sources.base.headers])
    return _in_memory(plans, limits) and files <= open_files_allowed()


def _have_room(plans: Sequence[Plan]) -> bool:
    """Tell whether each disk has room for all outputs that go there; an old one stays until the new one is whole."""
    needed: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for plan in plans:
        folder = folder_above(plan.path)
        device = folder.stat().st_dev
        needed[device] = needed.get(device, 0) + plan.size
        folders[device] = folder
    return all(needed[device] <= shutil.disk_usage(folder).free for device, folder in folders.items())
