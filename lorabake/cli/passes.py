"""Show what baking the outputs of a matrix would take: a table of them, and of the passes that read the base."""

from __future__ import annotations

from collections.abc import Iterator

from lorabake.batch.prospect import Prospect
from lorabake.cli.show import LABEL, link_lines, shown, unlinkable
from lorabake.planning import Plan
from lorabake.planning.cautions import cautions_of_recipe
from lorabake.planning.record import record_of, warnings_of
from lorabake.planning.summary import strength_of
from lorabake.visible import and_more, counted_as, size_of
from lorabake.writing.linking import room_of

HEADINGS = ("output", "state", "baked", "copied", "size", "LoRAs")

SHOWN = 6
"""How many shared inputs a line names."""


def pass_lines(prospect: Prospect) -> Iterator[str]:
    """Yield a row for each output, and below them what is read, written and needed for those that are due."""
    rows = [HEADINGS, *(_row(plan, is_current=prospect.is_current(plan)) for plan in prospect.plans)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for name, state, *figures, loras in rows:
        cells = [f"{figure:>{width}}" for figure, width in zip(figures, widths[2:], strict=False)]
        yield f"{name:<{widths[0]}}  {state:<{widths[1]}}  {'  '.join(cells)}  {loras}"
    if shared := _shared(prospect):
        yield f"{'shared':<{LABEL}}{shared}"
    if there := len(prospect.plans) - len(prospect.due):
        verb = "is" if there == 1 else "are"
        yield f"{'current':<{LABEL}}{counted_as(there, 'output')} {verb} there already, and not baked again"
    if prospect.due:
        yield from _due(prospect)


def _due(prospect: Prospect) -> Iterator[str]:
    """Say what is read, written and needed for the outputs that are due."""
    ending = "" if len(prospect.passes) == 1 else "es"
    others = f" and {size_of(prospect.lora_bytes)} of LoRAs" if prospect.lora_bytes else ""
    yield f"{'read':<{LABEL}}{size_of(prospect.base_bytes)} of bases{others}, in {len(prospect.passes)} pass{ending}"
    rooms = prospect.rooms
    places = [f" in {shown(room.folder)}" if len(rooms) > 1 else "" for room in rooms]
    free = ", ".join(f"{size_of(room.free)} free{place}" for room, place in zip(rooms, places, strict=True))
    yield f"{'write':<{LABEL}}{size_of(prospect.written_bytes)} in {counted_as(len(prospect.due), 'output')}; {free}"
    workers = counted_as(prospect.workers, "worker")
    yield f"{'memory':<{LABEL}}about {prospect.memory / 2**20:.0f} MiB a job, with {workers}"
    yield from link_lines(prospect.due)
    if why := unlinkable(prospect.due):
        yield f"{'warning':<{LABEL}}{why}"
    for room in rooms:
        if room.missing:
            what = f"{size_of(room.missing)} are missing in {shown(room.folder)}"
            yield f"{'warning':<{LABEL}}the disk has not enough room for all of them: {what}"


def _row(plan: Plan, *, is_current: bool) -> tuple[str, ...]:
    loras = ", ".join(f"{lora.path} at {strength_of(lora)}" for lora in plan.sources.recipe.loras)
    sizes = size_of(plan.baked_bytes), size_of(plan.copied_bytes), size_of(plan.size)
    return shown(plan.path), "current" if is_current else "to bake", *sizes, loras


def _shared(prospect: Prospect) -> str:
    """Name the inputs that several outputs have: the base by 10 outputs; neon.safetensors by 10, blorp by 5."""
    bases = {plan.sources.recipe.base.path for plan in prospect.plans}
    if len(bases) == 1:
        of_bases = [f"the base by {counted_as(len(prospect.plans), 'output')}"]
    else:
        of_bases = [f"{path} by {count}" for path, count in prospect.shared.items() if path in bases]
    others = [f"{path} by {count}" for path, count in prospect.shared.items() if path not in bases]
    return "; ".join(and_more(names[:SHOWN], len(names)) for names in (of_bases, others) if names)


def told_of_all(prospect: Prospect) -> dict[str, object]:
    """Return the document of many plans."""
    from lorabake.documents import document
    from lorabake.documents.batch import Chosen
    from lorabake.documents.plan_batch import Disk, PlanBatchDocument, PlannedOutput, SharedInput

    def output(plan: Plan) -> PlannedOutput:
        recipe, is_current = plan.sources.recipe, prospect.is_current(plan)
        return PlannedOutput(
            name=recipe.name,
            recipe=shown(recipe.file) if recipe.file else None,
            path=recipe.output.path,
            choices=tuple(Chosen(*choice) for choice in recipe.choices.items()),
            status="current" if is_current else "due",
            needed_disk_bytes=0 if is_current else room_of(plan),
            warnings=warnings_of(cautions_of_recipe(plan)),
            plan=record_of(plan),
        )

    record = PlanBatchDocument(
        outputs=tuple(map(output, prospect.plans)),
        shared=tuple(SharedInput(path, count) for path, count in prospect.shared.items()),
        passes=len(prospect.passes),
        base_bytes=prospect.base_bytes,
        lora_bytes=prospect.lora_bytes,
        written_bytes=prospect.written_bytes,
        peak_memory_bytes=prospect.memory,
        disks=tuple(
            Disk(str(each.folder.resolve()), each.needed, each.free, each.missing) for each in prospect.rooms
        ),
    )
    return document("plan_batch", record)
