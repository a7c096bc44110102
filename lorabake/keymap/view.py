"""Views: which rows of which base tensors one module sees, and in what order.

A view is the only thing that knows about fused, split, swapped or transposed storage. Reading a module's
weight through it and writing a result back through it are the same object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from lorabake.codecs import alone
from lorabake.codecs.codec import Showing, Stored
from lorabake.tensors.header import TensorInfo
from lorabake.visible import short_repr

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Region:
    """Name rows `start` to `stop` of the base tensor `key`, as a view of it counts them."""

    key: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Span:
    """Pair rows of the base tensor `key` with the rows of the module that they are, as many of one as of the other.

    A transposed view has columns of the module where this says rows.
    """

    key: str
    stored: slice
    own: slice

    def cut(self, start: int, stop: int) -> Span | None:
        """Return what of it lies in rows `start` to `stop` of the tensor; None where nothing does."""
        first, last = max(start, self.stored.start), min(stop, self.stored.stop)
        if first >= last:
            return None
        offset = self.own.start - self.stored.start
        return Span(self.key, slice(first, last), slice(first + offset, last + offset))


@dataclass(frozen=True, slots=True)
class Picked:
    """Name some values of each stored row, by their places; a row has `width` of them."""

    places: range
    width: int

    @property
    def slice(self) -> slice:
        """Return the places as an index."""
        return slice(self.places.start, self.places.stop, self.places.step)

    def meets(self, other: Picked) -> bool:
        """Tell whether two of them have a place in common."""
        fewer, more = sorted((self.places, other.places), key=len)
        return any(place in more for place in fewer)


@dataclass(frozen=True, slots=True)
class View:
    """Show parts of base tensors as one module sees them.

    `shape` is the module's, (out, in[, kernel…]), or, if it is `stacked`, (experts, out, in): so many matrices below
    each other. A base tensor counts as a matrix, too, whatever its own shape: the rows of a region are `width` values
    long. `picked` are those of them that the module has, where it has not all. With `transpose` the one region stores
    them as (in, out).
    """

    __repr__ = short_repr

    regions: tuple[Region, ...]
    shape: tuple[int, ...]
    transpose: bool = False
    stacked: bool = False
    picked: Picked | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """List the base tensors seen, each once, in the module's order."""
        if len(self.regions) == 1:  # mostly so, and planning asks each view several times
            return (self.regions[0].key,)
        return tuple(dict.fromkeys(region.key for region in self.regions))

    def spans(self, key: str | None = None) -> Iterator[Span]:
        """Yield which rows of which tensor are which rows of the module, in the module's order.

        With `key`, yield those of one tensor alone.
        """
        row = 0
        for region in self.regions:
            stop = row + region.stop - region.start
            if key is None or key == region.key:
                yield Span(region.key, slice(region.start, region.stop), slice(row, stop))
            row = stop

    @property
    def is_reordered(self) -> bool:
        """Tell whether rows of one tensor are seen in another order than they are stored in."""
        return any(one.key == other.key and one.start > other.start for one, other in pairwise(self.regions))

    @property
    def place(self) -> tuple[tuple[Region, ...], Picked | None]:
        """Say which values of the base it shows, in which order."""
        return self.regions, self.picked

    @property
    def rows(self) -> int:
        """Count the module's output rows, of all experts if it is stacked (1 for a scalar)."""
        return prod(self.shape[: 1 + self.stacked])

    @property
    def columns(self) -> int:
        """Count the values of one output row: inputs times kernel."""
        return prod(self.shape[1 + self.stacked :])

    @property
    def chosen(self) -> slice | None:
        """Return what the module has of each stored row, as an index; None where that is all of it."""
        return None if self.picked is None else self.picked.slice

    @property
    def width(self) -> int:
        """Count the values of a stored row."""
        if self.picked is not None:
            return self.picked.width
        return self.rows if self.transpose else self.columns

    def as_stack(self) -> View | None:
        """Show a tensor (experts, out, in) as matrices below each other; None where it is another one."""
        if self.stacked:
            return self
        if len(self.shape) != 3 or self.transpose or self.picked is not None or len(self.regions) != 1:
            return None
        (region,) = self.regions
        high = self.shape[1]
        return View((Region(region.key, region.start * high, region.stop * high),), self.shape, stacked=True)

    def take(self, rows: Iterable[range]) -> View:
        """Show some of the module's rows, in the order of these ranges; raise ValueError for a transposed view."""
        if self.transpose:
            raise ValueError("a transposed view has no rows to take")
        regions: list[Region] = []
        for wanted in rows:
            for span in self.spans():
                first, last = max(span.own.start, wanted.start), min(span.own.stop, wanted.stop)
                if first < last:
                    offset = span.stored.start - span.own.start
                    regions.append(Region(span.key, first + offset, last + offset))
        count = sum(region.stop - region.start for region in regions)
        return View(tuple(regions), (count, *self.shape[1:]))

    def read(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Gather the module's weight, shaped `shape`, from whole base tensors; a copy or an alias."""
        blocks = [self._block(tensors, region) for region in self.regions]
        if self.transpose:
            return blocks[0].T
        if len(blocks) == 1:
            return blocks[0].reshape(self.shape)
        import torch

        return torch.cat(blocks).reshape(self.shape)

    def add(self, tensors: Mapping[str, torch.Tensor], delta: torch.Tensor) -> None:
        """Add `delta`, shaped like the module's weight, into whole base tensors in place."""
        if self.transpose:
            self._block(tensors, self.regions[0]).add_(delta.reshape(self.shape).T)
            return
        flat = delta.reshape(self.rows, self.columns)
        for region, span in zip(self.regions, self.spans(), strict=True):
            self._block(tensors, region).add_(flat[span.own])

    def _block(self, tensors: Mapping[str, torch.Tensor], region: Region) -> torch.Tensor:
        """Return what the module has of a region, an alias (rows, columns); with `transpose`, (in, out)."""
        rows = tensors[region.key].view(-1, self.width)[region.start : region.stop]
        return rows if self.picked is None else rows[:, self.chosen]


@dataclass(frozen=True, slots=True)
class Whole:
    """Show one stored weight whole, otherwise than it is stored.

    Its rows come in another order, which `rows` say; or, with `transpose`, they become columns; or zeros lie behind
    its values along every side that is shorter than in `shape`. What it shows may be shown `within` another such
    view.
    """

    shape: tuple[int, ...]
    rows: tuple[range, ...] = ()
    transpose: bool = False
    within: Showing | None = None

    @property
    def title(self) -> str:
        """Name it in a word or two."""
        own = "reordered" if self.rows else "turned" if self.transpose else "padded"
        return own if self.within is None else f"{own} {self.within.title}"

    def read(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Show the values of the one tensor that is given; a copy or an alias."""
        import torch

        (values,) = tensors.values() if self.within is None else (self.within.read(tensors),)
        if self.rows:
            order = (torch.arange(rows.start, rows.stop, rows.step, device=values.device) for rows in self.rows)
            return values[torch.cat([*order])]
        if self.transpose:
            return values.T
        whole = values.new_zeros(self.shape)
        whole[tuple(slice(size) for size in values.shape)] = values
        return whole


def reordered(weight: Stored, rows: tuple[range, ...]) -> Stored:
    """Show a weight with its rows in another order, `rows` saying which comes when."""
    return replace(weight, view=Whole(weight.shape, rows=rows, within=weight.view))


def turned(weight: Stored) -> Stored:
    """Show a matrix as its transpose."""
    shape = weight.shape[::-1]
    return replace(weight, shape=shape, view=Whole(shape, transpose=True, within=weight.view))


def padded(weight: Stored, shape: tuple[int, ...]) -> Stored:
    """Show a weight with zeros behind its values along every side that is shorter than in `shape`."""
    return replace(weight, shape=shape, view=Whole(shape, within=weight.view))


def seen(info: TensorInfo) -> Stored:
    """Show a tensor that is a weight by itself as it is used: decoded, and turned if it is stored by columns."""
    weight = alone(info)
    return turned(weight) if info.by_columns else weight


def join(views: Sequence[View | None]) -> View | None:
    """Put views with equal columns under each other; None where one is missing or they do not go together."""
    found = [view for view in views if view is not None]
    if len(found) < len(views) or len({view.shape[1:] for view in found}) != 1:
        return None
    if len(found) == 1:
        return found[0]
    if any(view.transpose or view.stacked or view.picked or not view.shape for view in found):
        return None
    regions: list[Region] = []
    for region in (region for view in found for region in view.regions):
        if regions and (regions[-1].key, regions[-1].stop) == (region.key, region.start):
            regions[-1] = Region(region.key, regions[-1].start, region.stop)
        else:
            regions.append(region)
    return View(tuple(regions), (sum(view.rows for view in found), *found[0].shape[1:]))
