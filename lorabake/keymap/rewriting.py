"""Write a component in another layout of its table: every tensor's name there, with the view of the file's bytes.

The table is read in the direction in which it is written: a tensor of the file has a row, and the row has a name for
each layout. No name is parsed backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lorabake.errors import LorabakeError
from lorabake.keymap.listing import part_sizes
from lorabake.keymap.reading import Match, Reader
from lorabake.keymap.table import Component
from lorabake.keymap.view import Region, View
from lorabake.tensors.header import Described


class NoPlaceError(LorabakeError):
    """Say why a tensor cannot be written in another layout; whoever catches it knows the file."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """Name a tensor in another layout, below its component, and show it in tensors of the file."""

    name: str
    view: View


def rewritten(component: Component, here: str, there: str, tensors: Mapping[str, Described]) -> Iterator[Rewritten]:
    """Yield a component's tensors in the layout `there`; `tensors` are by their names below it in the layout `here`.

    They come in the file's order, what is fused in the place of its first part. Raise NoPlaceError for a tensor that
    has no place there.
    """
    names = [layout.name for layout in component.layouts]
    writer = _Writer(tensors, here, there, names.index(there))
    reader = Reader(component.rows, names.index(here), len(names)) if component.rows and here != there else None
    waiting: dict[str, _Fused] = {}
    made: dict[str, View | _Fused] = {}
    for name, info in tensors.items():
        if reader is None:
            _enter(made, name, as_is(info))
            continue
        match = next(reader.matches(name), None)
        if match is None:
            raise NoPlaceError(f"{info.key} has no name in the layout {there}: it is part of what {here} keeps whole")
        if (place := match.fused(writer.column)) is not None:
            path, part, parts = place
            key = match.key(writer.column, path)
            if key not in waiting:
                waiting[key] = _Fused(key, [None] * parts)
                _enter(made, key, waiting[key])
            waiting[key].pieces[part] = info
            continue
        for key, view in writer.written(name, info, match):
            _enter(made, key, view)
    yield from (
        Rewritten(key, shown if isinstance(shown, View) else shown.view(there)) for key, shown in made.items()
    )


def as_is(info: Described) -> View:
    """Show a tensor as the file has it."""
    return View((Region(info.key, 0, info.shape[0] if info.shape else 1),), info.shape)


def _enter(made: dict[str, View | _Fused], key: str, shown: View | _Fused) -> None:
    if key in made:
        other = made[key]
        first = other.regions[0].key if isinstance(other, View) else other.first.key
        raise NoPlaceError(f"{first} and another tensor would both become {key}")
    made[key] = shown


@dataclass(slots=True)
class _Fused:
    """Gather the parts of a tensor that the other layout keeps whole."""

    key: str
    pieces: list[Described | None]

    @property
    def first(self) -> Described:
        return next(piece for piece in self.pieces if piece is not None)

    def view(self, there: str) -> View:
        """Show the parts below each other; raise NoPlaceError where one is missing, or they do not go together."""
        pieces = [piece for piece in self.pieces if piece is not None]
        if len(pieces) < len(self.pieces):
            count = len(self.pieces)
            raise NoPlaceError(f"{self.first.key} is one of {count} parts of {self.key} in {there}, and others lack")
        if len({piece.shape[1:] for piece in pieces}) > 1:
            raise NoPlaceError(f"{self.first.key} has other columns than the parts beside it in {self.key}")
        regions = tuple(Region(piece.key, 0, piece.shape[0]) for piece in pieces)
        return View(regions, (sum(region.stop for region in regions), *pieces[0].shape[1:]))


@dataclass(frozen=True, slots=True)
class _Writer:
    """Write tensors of the layout `here` in the layout `there`, the column of that number in the table."""

    tensors: Mapping[str, Described]
    here: str
    there: str
    column: int

    def written(self, name: str, info: Described, match: Match) -> Iterator[tuple[str, View]]:
        """Yield the key and the view of each tensor that one tensor becomes."""
        leaf = match.row.names[self.column]
        count = len(leaf) if isinstance(leaf, tuple) and match.part is None else 1
        spelled = list(match.spell(self.column))[:count]
        weight = self.tensors.get(match.sibling(name))
        columns = weight.shape[1] if weight is not None and len(weight.shape) > 1 else 0
        if count == 1:
            yield match.key(self.column, spelled[0][0]), self._whole(info, match, columns)
            return
        rows = info.shape[0] if info.shape else 1
        sizes = part_sizes(match.row.sizes or ("rest",) * count, rows, columns)
        if sizes is None:
            raise NoPlaceError(f"{info.key} has {rows} rows, which cannot be cut into {count} parts")
        start = 0
        for (path, _, _), size in zip(spelled, sizes, strict=True):
            view = View((Region(info.key, start, start + size),), (size, *info.shape[1:]))
            yield match.key(self.column, path), view
            start += size

    def _whole(self, info: Described, match: Match, columns: int) -> View:
        """Show a tensor that stays one: turned, with its halves swapped, or with another count of sides."""
        row, shape = match.row, info.shape
        if self._differs(row.transposed) and len(shape) == 2:
            return View((Region(info.key, 0, shape[0]),), shape[::-1], transpose=True)
        rows = shape[0] if shape else 1
        if self._differs(row.swapped) and row.swapped_ratio in (None, rows / columns if columns else None):
            half = rows // 2
            return View((Region(info.key, half, rows), Region(info.key, 0, half)), shape)
        if self._differs(row.kernels):
            if self.there in row.kernels and len(shape) == 2:
                shape = (*shape, 1, 1)
            elif self.here in row.kernels and shape[2:] == (1, 1):
                shape = shape[:2]
        return View((Region(info.key, 0, rows),), shape)

    def _differs(self, layouts: tuple[str, ...]) -> bool:
        return (self.here in layouts) != (self.there in layouts)
