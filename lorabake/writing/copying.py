"""Copy a range of an input into an output as cheaply as the file system can: shared blocks, the kernel, or by hand.

Blocks can be shared where a range lies at the same place within them in both files. The planned headers see to that.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorabake.errors import FileError
from lorabake.planning.metadata import BLOCK
from lorabake.writing.inputs import Inputs
from lorabake.writing.system import copy_range, share_range, write_all

CHUNK = 4 << 20
"""Bytes that are copied at a time."""

PIECE = 1 << 20
"""Bytes that are copied at a time if the kernel cannot copy."""

SHARED = 64 << 20
"""Bytes that are shared at a time: each time takes about as long, however many they are."""

LEAST_SHARED = 64 << 10
"""Fewest bytes that are shared; a file in very many stretches is slow to read."""


@dataclass(frozen=True, slots=True)
class Range:
    """Name bytes `start` to `stop` of an input, and the place `to` of an output file to which they go."""

    source: Path
    start: int
    stop: int
    to: int


def copied(whole: Range, inputs: Inputs, target: int, turn: threading.Lock) -> Iterator[int]:
    """Copy a range into an open file, in order; yield the bytes that each piece had.

    Where the kernel writes to the file, that takes its `turn`. Raise FileError for an input that has become shorter.
    """
    for blocks in blocks_of(whole):
        done, size = 0, blocks.stop - blocks.start
        shares = size >= LEAST_SHARED and not (blocks.start | blocks.to | size) % BLOCK
        in_kernel = True
        while done < size:
            start, to = blocks.start + done, blocks.to + done
            length = min(SHARED if shares else CHUNK, size - done)
            count: int | None = None
            if shares or in_kernel:
                with turn, inputs.open(blocks.source) as source:
                    if shares:
                        count = length if share_range(source, target, length, start, to) else None
                        shares = count is not None
                    if count is None and in_kernel:
                        count = copy_range(source, target, min(CHUNK, length), start, to)
            if count is None:
                in_kernel = False
                piece = memoryview(bytearray(min(length, PIECE)))
                inputs.read(blocks.source, start, piece)
                write_all(target, piece, to)
                count = len(piece)
            if count == 0:
                raise FileError(f"{blocks.source}: became shorter while it was read")
            done += count
            yield count


def blocks_of(whole: Range) -> Iterator[Range]:
    """Cut a range where whole blocks begin and end, if these are whole in both files; else yield it as it is."""
    first, last = -(-whole.start // BLOCK) * BLOCK, whole.stop // BLOCK * BLOCK
    cuts = [whole.start, whole.stop]
    if (whole.start - whole.to) % BLOCK == 0 and last - first >= LEAST_SHARED:
        cuts = sorted({whole.start, first, last, whole.stop})
    for start, stop in itertools.pairwise(cuts):
        yield Range(whole.source, start, stop, whole.to + start - whole.start)
