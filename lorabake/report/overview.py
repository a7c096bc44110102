"""The report on several outputs for people: one page with a table of verdicts and grids of pictures along the axes.

Small pictures lie in the page itself. Each output's own page is a link, told from the report's folder.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorabake.report.axes import Grid, Group, groups, label
from lorabake.report.html import filled
from lorabake.report.wording import by_status, meaning_of_all, sentence, tally
from lorabake.verification import ORDER
from lorabake.verification.findings import Finding, Status, Verdict
from lorabake.verification.many import KeptSample, SmallPicture, VerifiedBatch, VerifiedOutput
from lorabake.visible import counted_as

MARKS = {
    Verdict.VERIFIED: ("verified", "✓"),
    Verdict.MISMATCH: ("mismatch", "✗"),
    Verdict.NOT_FINISHED: ("not_finished", "!"),
    Verdict.NOT_CHECKED: ("not_checked", "?"),
    None: ("failed", "!"),
}
"""The class of each verdict in the style sheet, and its sign, so that no verdict is told by colour alone."""

LEAST, MOST = 128, 192
"""Sides of a picture on the page, in CSS pixels: smaller ones are enlarged by a whole factor, larger ones reduced."""

MOST_LOUD = 12
"""How many outputs are listed above all others, because something is the matter with them."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Hold a picture as the page shows it; `size` is in CSS pixels."""

    source: str
    alt: str
    size: tuple[int, int]
    is_enlarged: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """Hold one output in a grid: what it made of a prompt, its name there, and a link to its page."""

    output: VerifiedOutput
    label: str
    picture: Shown | None
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """Hold the cells of one value of the axis that goes down; each is empty, or has one output or more."""

    value: str
    cells: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Hold one grid for one prompt: rows, or where there are no two axes, cells that follow one another."""

    grid: Grid
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Hold what all outputs of a group made of one prompt, and what their bases made of it."""

    prompt: str
    seed: str
    bases: tuple[tuple[KeptSample, Shown | None, str], ...]
    parts: tuple[Part, ...]


def render(batch: VerifiedBatch) -> bytes:
    """Fill the page."""
    told: set[int] = set()
    arranged = [(group, list(_blocks(group, batch, told))) for group in groups(batch.outputs)]
    found = {row.stage for output in batch.outputs for row in output.findings}
    loud = [output for output in batch.outputs if output.verdict is not Verdict.VERIFIED]
    return filled(
        "overview.html.j2",
        ("style.css", "overview.css"),
        batch=batch,
        meaning=meaning_of_all(batch),
        marks=MARKS,
        groups=arranged,
        has_pictures=any(sample.picture for output in batch.outputs for sample in output.samples),
        loud=sorted(loud, key=lambda output: output.verdict is not Verdict.MISMATCH),
        MOST_LOUD=MOST_LOUD,
        stages=[stage for stage in ORDER if stage in found],
        warned=warned(batch),
        counted_as=counted_as,
        by_status=by_status,
        sentence=sentence,
        tally_of=lambda output, stage: tally(row for row in output.findings if row.stage == stage),
    )


def warned(batch: VerifiedBatch) -> list[tuple[Finding, int]]:
    """List each warning once, with how many outputs have it; those of the most come first."""
    found: dict[tuple[str, ...], tuple[Finding, int]] = {}
    for row in (row for output in batch.outputs for row in output.findings if row.status is Status.WARN):
        key = row.check, row.subject, row.note, row.measured
        found[key] = row, found[key][1] + 1 if key in found else 1
    return sorted(found.values(), key=lambda each: -each[1])


def _blocks(group: Group, batch: VerifiedBatch, told: set[int]) -> Iterator[Block]:
    """Yield a block for each prompt; one without pictures where nothing was sampled and there is a grid to show.

    What a base made is shown where it comes first; `told` are the samples of bases that were shown.
    """
    outputs = group.outputs
    count = max((len(output.samples) for output in outputs), default=0)
    if not count and any(grid.across for grid in group.grids):
        yield Block("", "", (), tuple(_part(grid, outputs, None) for grid in group.grids))
    for number in range(count):
        samples = [output.samples[number] for output in outputs if number < len(output.samples)]
        prompts = [*dict.fromkeys(sample.prompt for sample in samples)]
        seeds = {sample.seed for sample in samples}
        seed = f"seed {samples[0].seed}" if len(seeds) == 1 and samples[0].seed is not None else ""
        used = dict.fromkeys(output.bases[number] for output in outputs if number < len(output.bases))
        places = [place for place in used if place not in told]
        told.update(places)
        yield Block(
            prompts[0] if len(prompts) == 1 else f"prompt {number + 1}",
            seed,
            tuple(_base(batch.bases[place], [batch.bases[other] for other in places]) for place in places),
            tuple(_part(grid, outputs, number) for grid in group.grids),
        )


def _base(sample: KeptSample, others: Sequence[KeptSample]) -> tuple[KeptSample, Shown | None, str]:
    """Return a base's sample, its picture, and what tells it from the others that are shown beside it."""
    told = {other.prompt for other in others}, {other.settings for other in others}
    facts = [sample.prompt] * (len(told[0]) > 1) + [sample.settings] * (len(told[1]) > 1)
    alt = f"the base, {sample.model}: {sample.prompt}"
    return sample, shown(sample.picture, alt) if sample.picture else None, "; ".join(facts)


def _part(grid: Grid, outputs: Sequence[VerifiedOutput], number: int | None) -> Part:
    if not grid.across:
        return Part(grid, (), tuple(_cell(output, label(output, outputs), number) for output in grid.outputs))
    rows = tuple(
        Row(
            row,
            tuple(tuple(_cell(output, "", number) for output in grid.at(row, column)) for column in grid.columns),
        )
        for row in grid.rows
    )
    return Part(grid, rows, ())


def _cell(output: VerifiedOutput, name: str, number: int | None) -> Cell:
    has_sample = number is not None and number < len(output.samples)
    sample = output.samples[number] if has_sample and number is not None else None
    picture = shown(sample.picture, f"{output.name}: {sample.prompt}") if sample and sample.picture else None
    return Cell(output, name, picture, sample.text if sample else "")


def shown(picture: SmallPicture, alt: str) -> Shown:
    """Choose how large a picture is on the page."""
    side = max(picture.width, picture.height)
    factor: float = max(1, LEAST // side) if side <= MOST else MOST / side
    source = f"data:image/{picture.form};base64,{base64.b64encode(picture.data).decode('ascii')}"
    size = round(picture.width * factor), round(picture.height * factor)
    return Shown(source, alt, size, factor > 1)
