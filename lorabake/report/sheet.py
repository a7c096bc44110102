"""All pictures of several outputs in one PNG, along the axes, with labels: for places that show no page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorabake.report.axes import Grid, groups, label
from lorabake.verification.findings import Verdict
from lorabake.verification.many import KeptSample, SmallPicture, VerifiedBatch, VerifiedOutput

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST = 128
"""Smaller pictures are enlarged by a whole factor, so that their pixels stay square."""

MOST_PICTURES = 240
"""How many pictures are drawn; the page has the rest."""

GAP, LINE, LETTERS = 8, 20, 15
PAPER, INK, QUIET, WRONG = (252, 252, 251), (29, 31, 34), (99, 103, 110), (179, 38, 30)

Cell = tuple[SmallPicture | None, str, bool]
"""A picture, what is written below it, and whether that is a warning."""


def render(batch: VerifiedBatch) -> bytes:
    """Draw a table for each recipe, prompt and section: the base at its left, then the outputs by their axes."""
    bands: list[Image] = []
    left, shown = MOST_PICTURES, set[int]()
    for group in groups(batch.outputs):
        outputs = group.outputs
        for number in range(max((len(output.samples) for output in outputs), default=0)):
            for grid in group.grids:
                if left > 0:
                    places = {place: None for output in grid.outputs for place in output.bases[number : number + 1]}
                    bases = [batch.bases[place] for place in places if place not in shown]
                    shown.update(places)
                    bands.append(_band(grid, outputs, number, bases))
                    left -= len(grid.outputs)
    return _encoded(_stacked(bands))


def _band(grid: Grid, outputs: Sequence[VerifiedOutput], number: int, bases: Sequence[KeptSample]) -> Image:
    """Draw one grid for one prompt."""
    sampled = [output for output in grid.outputs if number < len(output.samples)]
    prompts = [*dict.fromkeys(output.samples[number].prompt for output in sampled)]
    title = prompts[0] if len(prompts) == 1 else f"prompt {number + 1}"
    title += f" ({grid.section})" if grid.section else ""
    own: list[Cell] = [(base.picture, "base", False) for base in bases]
    if not grid.across:
        cells: list[Cell] = [_cell(output, number, label(output, outputs)) for output in grid.outputs]
        return _table(title, [("", [*own, *cells])], [""] * (len(own) + len(cells)))
    rows = [(row, [_first(grid.at(row, column), number) for column in grid.columns]) for row in grid.rows]
    blank: Cell = (None, "", False)
    start = [own if at == 0 else [blank] * len(own) for at in range(len(rows))]
    heads = [""] * len(own) + [
        f"{grid.across} {column}" if at == 0 else column for at, column in enumerate(grid.columns)
    ]
    return _table(
        title, [(value, [*first, *cells]) for first, (value, cells) in zip(start, rows, strict=True)], heads
    )


def _first(outputs: Sequence[VerifiedOutput], number: int) -> Cell:
    return _cell(outputs[0], number, "") if outputs else (None, "", False)


def _cell(output: VerifiedOutput, number: int, name: str) -> Cell:
    picture = output.samples[number].picture if number < len(output.samples) else None
    is_wrong = output.verdict is not Verdict.VERIFIED
    return picture, " ".join(filter(None, (name, output.word * is_wrong))), is_wrong


# -- drawing -------------------------------------------------------------------------------------------


def _table(title: str, rows: Sequence[tuple[str, Sequence[Cell]]], heads: Sequence[str]) -> Image:
    """Draw cells in columns of one width, with the rows' names at the left and the columns' above."""
    from PIL import Image, ImageDraw

    pictures = [[_opened(picture) if picture else None for picture, *_ in cells] for _, cells in rows]
    drawn = [picture for row in pictures for picture in row if picture]
    width = max((picture.width for picture in drawn), default=LEAST)
    height = max((picture.height for picture in drawn), default=LEAST)
    font = _font()
    side = max((round(font.getlength(name)) + 2 * GAP for name, _ in rows if name), default=0)
    foot = LINE if any(words for _, cells in rows for _, words, _ in cells) else 0
    top = GAP + LINE + (LINE if any(heads) else 0)
    size = side + GAP + len(heads) * (width + GAP), top + len(rows) * (height + foot + GAP)
    sheet = Image.new("RGB", (max(size[0], round(font.getlength(title)) + 2 * GAP), size[1]), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), title, INK, font)
    for at, head in enumerate(heads):
        pen.text((side + GAP + at * (width + GAP), GAP + LINE), head, QUIET, font)
    for line, (name, cells) in enumerate(rows):
        y = top + line * (height + foot + GAP)
        pen.text((GAP, y + height // 2 - LINE // 2), name, QUIET, font)
        for at, (_, words, is_wrong) in enumerate(cells):
            x = side + GAP + at * (width + GAP)
            picture = pictures[line][at]
            if picture:
                sheet.paste(picture, (x, y))
            if is_wrong:
                pen.rectangle((x - 4, y - 4, x + width + 3, y + height + 3), outline=WRONG, width=3)
            pen.text((x, y + height + 2), words, WRONG if is_wrong else QUIET, font)
    return sheet


def _opened(picture: SmallPicture) -> Image:
    from PIL import Image

    image = Image.open(io.BytesIO(picture.data)).convert("RGB")
    times = max(1, LEAST // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(LETTERS)


def _stacked(bands: Sequence[Image]) -> Image:
    from PIL import Image

    sheet = Image.new("RGB", (max(band.width for band in bands), sum(band.height for band in bands)), PAPER)
    y = 0
    for band in bands:
        sheet.paste(band, (0, y))
        y += band.height
    return sheet


def _encoded(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
