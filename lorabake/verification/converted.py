"""See a checkpoint in another layout as if it had the base's: the same bytes, under the base's names, row for row.

So every stage that compares values compares what the recipe makes in the base's own layout, whatever the checkpoint's
is. Shared with the bake are the views by which the plan says which rows of the base a tensor of the output is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from lorabake.codecs.codec import Stored
from lorabake.planning import Plan, in_base_layout
from lorabake.planning.steps import Target, whole
from lorabake.reference.arrays import Bytes, Files, Woven
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import TensorInfo

WOVEN = Path("/the checkpoint, in the base's layout")
"""Path of the file that does not exist, in which tensors lie that are gathered from several."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Hold a plan and a checkpoint, both in the base's layout, and the files that the checkpoint is gathered in.

    `left_out` are the base's tensors that the checkpoint is not to have, and `itself` is the checkpoint as it is.
    """

    plan: Plan
    checkpoint: Checkpoint
    woven: Mapping[Path, Woven] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    itself: Checkpoint | None = None


def in_layout_of_base(plan: Plan, baked: Checkpoint) -> Seen:
    """See a checkpoint as if it had the base's layout; what it lacks of a tensor, it lacks as a whole."""
    if not plan.layout.is_converted:
        return Seen(plan, baked)
    own = in_base_layout(plan)
    of_base = {target.key for file in own.files for target in file.targets}
    added: dict[str, Target] = {}
    pieces: dict[str, list[Piece]] = {}
    for target in (target for file in plan.files for target in file.targets):
        names = {key: key for key in target.source.keys}
        if of_base.isdisjoint(names):  # of a part that the recipe adds
            names = {key: f"{PurePosixPath(target.key).parts[0]}: {key}" for key in names}
            added |= {names[weight.key]: _added(target, weight, names[weight.key]) for weight in target.weights}
        info = baked.tensors.get(target.key)
        if info is not None and info.shape == target.shape:
            for piece in _pieces(target, info):
                pieces.setdefault(names[piece.key], []).append(piece)
    first, *files = own.files
    own = replace(own, files=(replace(first, targets=(*first.targets, *added.values())), *files))
    wanted = {target.key: target for file in own.files for target in file.targets}
    weaving = Weaving()
    tensors: dict[str, TensorInfo] = {}
    for key, target in wanted.items():
        info = weaving.tensor(target, sorted(pieces.get(key, ()), key=lambda piece: piece.start))
        if info is not None:
            tensors[key] = info
    known = {target.key for file in plan.files for target in file.targets}
    strange = {key: info for key, info in baked.tensors.items() if key not in known and key not in tensors}
    left_out = frozenset(plan.sources.base.tensors.keys() - wanted.keys())
    return Seen(own, replace(baked, tensors={**tensors, **strange}), {WOVEN: weaving}, left_out, baked)


def _added(target: Target, weight: Stored, key: str) -> Target:
    """Say that a tensor of an added part is to be there as it is, under a key that no other part has."""
    named = replace(weight, key=key)
    return replace(target, key=key, source=whole(key, weight.shape), weights=(named,), shape=weight.shape)


@dataclass(frozen=True, slots=True)
class Piece:
    """Say that rows from `start` to `stop` of the base's tensor `key` lie in a tensor of the checkpoint.

    They begin at the byte `at` of its file. With `columns`, they are columns there, of so many rows.
    """

    key: str
    start: int
    stop: int
    info: TensorInfo
    at: int
    columns: int = 0


def _pieces(target: Target, info: TensorInfo) -> Iterator[Piece]:
    """Yield which rows of the base a tensor of the checkpoint holds."""
    view = target.source
    width = info.nbytes // max(view.rows, 1)
    for span in view.spans():
        stored = span.stored
        if view.transpose:
            yield Piece(span.key, stored.start, stored.stop, info, info.start, columns=view.rows)
        else:
            yield Piece(span.key, stored.start, stored.stop, info, info.start + span.own.start * width)


@dataclass(frozen=True, slots=True)
class Strand:
    """Say where bytes of a file lie that is gathered from others."""

    start: int
    stop: int
    file: Path
    at: int

    def fill(self, files: Files, start: int, into: Bytes) -> None:
        """Fill an array with the bytes from `start`, which are all in it."""
        files.fill(self.file, self.at + start - self.start, into)


@dataclass(frozen=True, slots=True)
class Turned:
    """Say where a matrix lies whose transpose is a part of a file that is gathered from others."""

    start: int
    stop: int
    info: TensorInfo
    shape: tuple[int, int]

    def fill(self, files: Files, start: int, into: Bytes) -> None:
        """Fill an array with bytes of the transpose from `start`."""
        raw = np.empty(self.info.nbytes, np.uint8)
        files.fill(self.info.file, self.info.start, raw)
        whole = raw.reshape(*self.shape, -1).swapaxes(0, 1).reshape(-1)
        into[:] = whole[start - self.start :][: len(into)]


class Weaving:
    """Gather tensors into one file that does not exist, and read it."""

    def __init__(self) -> None:
        self._strands: list[Strand | Turned] = []
        self._starts: list[int] = []
        self._size = 0

    def tensor(self, target: Target, pieces: list[Piece]) -> TensorInfo | None:
        """Return a tensor of the base's layout as it is gathered; None where some of it is not there."""
        rows = target.source.rows
        dtypes = {piece.info.dtype for piece in pieces}
        if len(dtypes) != 1 or _covered(pieces) != rows:
            return None
        (dtype,) = dtypes
        size = target.source.rows * target.source.columns * DTYPES[dtype].bits // 8
        first = pieces[0]
        if len(pieces) == 1 and not first.columns:
            return TensorInfo(
                target.key, target.name, dtype, target.shape, first.info.file, first.at, first.at + size
            )
        start = self._size
        for piece in pieces:
            self._add(piece, (piece.stop - piece.start) * (size // rows))
        return TensorInfo(target.key, target.name, dtype, target.shape, WOVEN, start, self._size)

    def _add(self, piece: Piece, size: int) -> None:
        start, stop = self._size, self._size + size
        if piece.columns:
            shape = (piece.columns, piece.stop - piece.start)
            self._strands.append(Turned(start, stop, piece.info, shape))
        else:
            self._strands.append(Strand(start, stop, piece.info.file, piece.at))
        self._starts.append(start)
        self._size = stop

    def fill(self, files: Files, start: int, into: Bytes) -> None:
        """Fill an array with the bytes from `start`."""
        done = 0
        while done < len(into):
            strand = self._strands[bisect_right(self._starts, start + done) - 1]
            count = min(len(into) - done, strand.stop - start - done)
            strand.fill(files, start + done, into[done : done + count])
            done += count


def _covered(pieces: list[Piece]) -> int:
    """Count the rows from the first one on that pieces, in order, hold without a gap and once each; -1 if not so."""
    row = 0
    for piece in pieces:
        if piece.start != row:
            return -1
        row = piece.stop
    return row
