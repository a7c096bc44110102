"""Part plans into passes: those on one base together, as many at a time as memory, files and the disk allow."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    groups: dict[tuple[Path, str | None], list[Plan]] = {}
    for plan in plans:
        base = plan.sources.base.path
        groups.setdefault((Path(os.path.realpath(base)), plan.sources.recipe.base.variant), []).append(plan)
    for group in groups.values():
        yield from _parted(group, limits)


def memory_of(plans: Sequence[Plan], workers: int) -> int:
    """Estimate the bytes of anonymous memory that baking plans in one pass needs."""
    tensors = sorted(sum(len(file.targets) for file in plan.files) for plan in plans)
    return max(plan.peak_memory(workers) for plan in plans) + TENSOR_BYTES * sum(tensors[:-1])


def _parted(group: Sequence[Plan], limits: Limits) -> Iterator[tuple[Plan, ...]]:
    together: list[Plan] = []
    for plan in group:
        if together and not _fit([*together, plan], limits):
            yield tuple(together)
            together = []
        together.append(plan)
    yield tuple(together)


def _fit(plans: Sequence[Plan], limits: Limits) -> bool:
    """Tell whether plans can be baked in one pass; one plan alone is always tried."""
    if len(plans) > MOST:
        return False
    if limits.memory is not None and memory_of(plans, limits.workers) > limits.memory:
        return False
    files = sum(2 * len(plan.files) + len(plan.sources.loras) for plan in plans)
    files += FILES_BESIDE + len([*plans[0].sources.base.headers])
    return files <= open_files_allowed() and _have_room(plans)


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
