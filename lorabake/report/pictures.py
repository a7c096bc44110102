"""Turn pixel arrays into PNG files and difference pictures, with zlib and NumPy only.

Writing a PNG is so simple that the report needs no imaging library: PNG specification, third edition (W3C 2025).
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lorabake.verification.findings import Pixels, PromptSample

LARGEST_GAIN = 64


def png(pixels: Pixels, description: str = "") -> bytes:
    """Encode pixels (height, width, 3) as PNG; `description` goes into a text chunk, in Latin-1."""
    height, width, _ = pixels.shape
    text = f"Description\0{description}".encode("latin-1", errors="replace")
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        *([(b"tEXt", text)] if description else []),
        (b"IDAT", zlib.compress(_filtered(pixels))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def data_uri(pixels: Pixels) -> str:
    """Write pixels as a data URI, which a page can contain."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")


def distance(one: Pixels, other: Pixels) -> Pixels:
    """Return |one − other| by pixel and channel, 0 to 255."""
    return np.maximum(one, other) - np.minimum(one, other)


def gain(samples: Iterable[PromptSample]) -> int:
    """Choose one factor for all difference pictures: the largest power of two, up to 64, that clips no value."""
    largest = max(
        (int(distance(sample.pictures["baked"], sample.pictures["runtime"]).max()) for sample in samples), default=0
    )
    factor = LARGEST_GAIN
    while factor > 1 and factor * largest > 255:
        factor //= 2
    return factor


def amplified(sample: PromptSample, factor: int) -> Pixels:
    """Return the difference between baked and run time, brightened."""
    wide = distance(sample.pictures["baked"], sample.pictures["runtime"]).astype(np.int64) * factor
    return np.minimum(wide, 255).astype(np.uint8)


def _filtered(pixels: Pixels) -> bytes:
    """Predict each byte by the Paeth filter (section 9.4): photographs become a third smaller.

    Work line by line, so that a large grid needs no second copy in memory.
    """
    lines = []
    up = np.zeros((pixels.shape[1] + 1, 3), np.int16)
    for row in pixels:
        here = np.pad(row.astype(np.int16), ((1, 0), (0, 0)))
        left, corner = here[:-1], up[:-1]
        guess = left + up[1:] - corner
        to_left, to_up, to_corner = abs(guess - left), abs(guess - up[1:]), abs(guess - corner)
        second = np.where(to_up <= to_corner, up[1:], corner)
        nearest = np.where((to_left <= to_up) & (to_left <= to_corner), left, second)
        lines.append(b"\x04" + ((here[1:] - nearest) & 255).astype(np.uint8).tobytes())
        up = here
    return b"".join(lines)
