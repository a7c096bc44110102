"""All pictures in one PNG, for places that show a picture and no page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lorabake.report.pictures import amplified, gain, png

if TYPE_CHECKING:
    from lorabake.verification.findings import Pixels, PromptSample

FILE = "grid.png"
COLUMNS = ("base", "runtime", "baked", "difference")

GAP = 8
SHADE = 128
LEAST_SIDE = 192
"""Smaller pictures are enlarged by a whole factor, so that their pixels stay square."""


def render(samples: tuple[PromptSample, ...]) -> bytes:
    """Draw one row for each prompt: base, run time, baked, and the brightened difference of the last two.

    The PNG's description states the factor by which differences are brightened.
    """
    factor = gain(samples)
    rows = [_row([*(sample.pictures[name] for name in COLUMNS[:3]), amplified(sample, factor)]) for sample in samples]
    width = max(row.shape[1] for row in rows)
    bands: list[Pixels] = []
    for row in rows:
        bands += [_gap(GAP, width), np.concatenate([row, _gap(len(row), width - row.shape[1])], axis=1)]
    return png(
        np.concatenate([*bands, _gap(GAP, width)]),
        f"Columns: {', '.join(COLUMNS)}. The difference is baked - runtime, absolute, x{factor}.",
    )


def _row(pictures: list[Pixels]) -> Pixels:
    height = max(picture.shape[0] for picture in pictures)
    times = max(1, LEAST_SIDE // height)
    parts = [_gap(height * times, GAP)]
    for picture in pictures:
        large = picture.repeat(times, axis=0).repeat(times, axis=1)
        below = _gap(height * times - len(large), large.shape[1])
        parts += [np.concatenate([large, below]), _gap(height * times, GAP)]
    return np.concatenate(parts, axis=1)


def _gap(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), SHADE, np.uint8)
