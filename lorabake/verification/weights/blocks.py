"""Read rows of a tensor and of its base side by side as float32, in pieces that fit a core's cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabake.adapters.shapes import matrix
from lorabake.planning.steps import Target
from lorabake.reference.arrays import Bytes, Files, Singles, widen
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import TensorInfo

VALUES = 1 << 17
"""Values in a block."""

TALL, WIDEST = 128, 1 << 22
"""How many rows make a product run at full speed, and from how many values on a piece has fewer rows."""

EXPONENTS = np.uint32(0x7F800000)
"""Mask of a float32's exponent bits."""


@dataclass(frozen=True, slots=True)
class Block:
    """Hold some columns of some rows of a tensor, as base and checkpoint store them.

    `both` has both in one array if they have the same dtype.
    """

    rows: slice
    columns: slice
    base: NDArray[Any]
    held: NDArray[Any]
    both: NDArray[Any] | None


class Blocks(threading.local):
    """Read blocks. Each thread has its own buffers, which its next block overwrites."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._buffers: dict[object, Bytes] = {}

    def of(self, target: Target, found: TensorInfo) -> Iterator[Block]:
        """Read rows, and cut wide ones into blocks of columns."""
        rows, columns = matrix(target.shape)
        high = max(1, min(max(TALL, VALUES // max(columns, 1)), WIDEST // max(columns, 1)))
        for start in range(0, rows, high):
            stop = min(start + high, rows)
            base, held, both = self._read(target.weight.first, found, start, stop, columns)
            wide = max(1, VALUES // (stop - start))
            for left in range(0, columns, wide):
                piece = slice(left, min(left + wide, columns))
                together = None if both is None else both[:, :, piece]
                yield Block(slice(start, stop), piece, base[:, piece], held[:, piece], together)

    def pair(self, target: Target, found: TensorInfo, block: Block) -> Singles:
        """Widen base and checkpoint to (2, rows, columns), at once if they have the same dtype."""
        both = self.floats("both", (2, *block.held.shape))
        if block.both is not None:
            widen(found.dtype, block.both, both)
        else:
            widen(target.weight.dtype, block.base, both[0])
            widen(found.dtype, block.held, both[1])
        return both

    def floats(self, name: object, shape: tuple[int, ...]) -> Singles:
        """Return the buffer of this name, with arbitrary content."""
        return self._buffer(name, 4 * prod(shape)).view(np.float32).reshape(shape)

    def _read(
        self, base: TensorInfo, held: TensorInfo, start: int, stop: int, columns: int
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
        """Read rows of both as stored, with one integer for each value."""
        count, shape, found = (stop - start) * columns, (stop - start, columns), []
        widths = [DTYPES[info.dtype].bits // 8 for info in (base, held)]
        raw = self._buffer("stored", count * sum(widths))
        pieces = raw[: count * widths[0]], raw[count * widths[0] :]
        for info, width, piece in zip((base, held), widths, pieces, strict=True):
            self.files.fill(info.file, info.start + start * columns * width, piece)
            found.append(piece.view(f"<u{width}").reshape(shape))
        both = raw.view(f"<u{widths[0]}").reshape(2, *shape) if base.dtype == held.dtype else None
        return found[0], found[1], both

    def _buffer(self, name: object, count: int) -> Bytes:
        kept = self._buffers.get(name)
        if kept is None or len(kept) < count:
            kept = self._buffers[name] = np.empty(count, np.uint8)
        return kept[:count]


def powers_of(values: Singles, into: Singles) -> Singles:
    """Return the largest powers of two not above the magnitudes of values; zero for zero."""
    np.bitwise_and(values.view(np.uint32), EXPONENTS, out=into.view(np.uint32))
    return into


def squares(values: Singles) -> Singles:
    """Sum the squares of each row, along the last axis."""
    if hasattr(np, "vecdot"):  # since NumPy 2: four times as fast
        return np.asarray(np.vecdot(values, values))
    return np.asarray(np.einsum("...j,...j->...", values, values))


def dot(one: Singles, other: Singles) -> float:
    """Return an inner product, summed in float32, with about six exact digits."""
    return float(np.dot(one.ravel(), other.ravel()))
