"""Show what baking the outputs of a matrix would take: a table of them, and of the passes that read the base."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from lorabake.batch.groups import Limits, memory_of, passes
from lorabake.cli.show import LABEL, link_lines, shown, unlinkable
from lorabake.machine import default_workers, folder_above
from lorabake.planning import Plan
from lorabake.planning.summary import strength_of
from lorabake.visible import counted_as, size_of
from lorabake.writing.linking import room_of

HEADINGS = ("output", "baked", "copied", "size", "LoRAs")


def pass_lines(plans: Sequence[Plan]) -> Iterator[str]:
    """Yield a row for each output, and below them what is read, written and needed."""
    rows = [HEADINGS, *map(_row, plans)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for name, *figures, loras in rows:
        cells = [f"{figure:>{width}}" for figure, width in zip(figures, widths[1:], strict=False)]
        yield f"{name:<{widths[0]}}  {'  '.join(cells)}  {loras}"
    workers = default_workers()
    together = [*passes(plans, Limits(None, workers))]
    read = sum(each[0].sources.base.size for each in together)
    ending = "" if len(together) == 1 else "es"
    yield f"{'read':<{LABEL}}{size_of(read)} of bases, in {len(together)} pass{ending}"
    written = sum(map(room_of, plans))
    folder = folder_above(plans[0].path)
    free = shutil.disk_usage(folder).free
    yield f"{'write':<{LABEL}}{size_of(written)} in {counted_as(len(plans), 'output')}; {size_of(free)} free"
    memory = max(memory_of(each, workers) for each in together)
    yield f"{'memory':<{LABEL}}about {memory / 2**20:.0f} MiB a job, with {counted_as(workers, 'worker')}"
    yield from link_lines(plans)
    if why := unlinkable(plans):
        yield f"{'warning':<{LABEL}}{why}"
    if free < written:
        yield f"{'warning':<{LABEL}}the disk has not enough room for all of them"


def _row(plan: Plan) -> tuple[str, ...]:
    loras = ", ".join(f"{lora.path} at {strength_of(lora)}" for lora in plan.sources.recipe.loras)
    return shown(plan.path), size_of(plan.baked_bytes), size_of(plan.copied_bytes), size_of(plan.size), loras
