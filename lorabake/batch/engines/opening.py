"""Choose what runs a batch, and open it for as long as the batch takes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from lorabake.batch.engines.processes import Processes
from lorabake.batch.engines.sight import Places
from lorabake.batch.engines.spread import Spread
from lorabake.batch.groups import memory_of
from lorabake.batch.work import Engine
from lorabake.planning import Plan
from lorabake.tensors.checkpoint import Checkpoint

if TYPE_CHECKING:
    from lorabake.batch import BatchOptions

DEVICE = "LORABAKE_DEVICE"
"""The variable that names a device where nothing else does."""


@contextmanager
def opened(options: BatchOptions, passes: Sequence[Sequence[Plan]]) -> Iterator[tuple[BatchOptions, Engine | None]]:
    """Open the engine that a batch asks for; yield it with the options that count there.

    Without any, and where there is too little work for two processes, this process does all: then it is None.
    """
    if options.engine == "ray":
        with _on_ray(options, passes) as (own, spread):
            yield own, spread
    elif options.engine is not None and options.engine != "local":
        yield options, options.engine
    elif (jobs := min(options.jobs or 1, pieces_of(passes, options.part_bytes))) > 1:
        spread = Spread()
        with Processes(jobs, spread.telling) as pool:
            yield options, spread.on(pool)
    else:
        yield options, None


def are_whole(passes: Sequence[Sequence[Plan]], options: BatchOptions) -> list[bool]:
    """Tell of each pass whether a worker does it from beginning to end: its base is too small to be parted.

    Whoever completes an output with links changes the time of status of its base's files. A worker may do so only if
    no other pass reads these. Else this process does it, and no worker has work meanwhile.
    """
    small = [_parts(plans, options.part_bytes) <= 1 for plans in passes]
    if not options.run.link:
        return small
    read = [{file for plan in plans for each, _ in plan.sources.inputs for file in _files(each)} for plans in passes]
    readers = Counter(file for files in read for file in files)
    linkable = {file for plans in passes for plan in plans for file in _files(plan.sources.base)}
    alone = [all(readers[file] == 1 for file in files & linkable) for files in read]
    return [is_small and is_alone for is_small, is_alone in zip(small, alone, strict=True)]


def _files(checkpoint: Checkpoint) -> set[tuple[int, ...]]:
    return {header.identity[:2] for header in checkpoint.headers}


def pieces_of(passes: Sequence[Sequence[Plan]], part_bytes: int) -> int:
    """Estimate how many pieces of work can be under way at once: whole passes side by side, or parts of one pass."""
    counts = [_parts(plans, part_bytes) for plans in passes]
    return max([sum(count <= 1 for count in counts), *counts], default=0)


def _parts(plans: Sequence[Plan], part_bytes: int) -> int:
    return round(plans[0].sources.base.size / part_bytes)


@contextmanager
def _on_ray(options: BatchOptions, passes: Sequence[Sequence[Plan]]) -> Iterator[tuple[BatchOptions, Spread]]:
    """Join a Ray cluster, in which every piece of work has its cores, its memory, and a GPU if it computes on one."""
    from lorabake.batch.engines.cluster import Demand, joined
    from lorabake.batch.engines.ray import RayTasks, has_gpus

    workers = options.run.workers
    cpus = options.jobs * workers if options.jobs else None
    with joined(options.address, cpus) as ray:
        device = options.run.device or os.environ.get(DEVICE) or "auto"
        if device == "auto":
            device = "cuda" if has_gpus(ray) else "cpu"
        memory = max((memory_of(plans, workers) for plans in passes), default=0)
        demand = Demand(workers, int(device.startswith("cuda")), memory)
        spread = Spread()
        with RayTasks(ray, demand, places_of(passes), spread.telling, options.jobs) as pool:
            yield replace(options, run=replace(options.run, device=device)), spread.on(pool)


def places_of(passes: Sequence[Sequence[Plan]]) -> Places:
    """Name the folders that outputs go to, and all input files."""
    plans = [plan for together in passes for plan in together]
    folders = dict.fromkeys(plan.path.absolute().parent for plan in plans)
    headers = (header for plan in plans for checkpoint, _ in plan.sources.inputs for header in checkpoint.headers)
    files = dict.fromkeys(header.path.absolute() for header in headers)
    files |= dict.fromkeys(path.absolute() for plan in plans for path in plan.sources.evidence.read)
    return Places((*folders,), (*files,))
