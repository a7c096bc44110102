"""Views: which rows of which base tensors one module sees, and in what order.

A view is the only thing that knows about fused, split, swapped or transposed storage. Reading a module's
weight through it and writing a result back through it are the same object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Region:
    """Name rows `start` to `stop` of the base tensor `key`."""

    key: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class View:
    """Show rows of base tensors as one module sees them.

    `shape` is the module's, (out, in[, kernel…]); with `transpose` the one 2-D tensor stores (in, out).
    """

    regions: tuple[Region, ...]
    shape: tuple[int, ...]
    transpose: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """List the base tensors seen, each once, in the module's order."""
        return tuple(dict.fromkeys(region.key for region in self.regions))

    @property
    def is_reordered(self) -> bool:
        """Tell whether rows of one tensor are seen in another order than they are stored in."""
        return any(one.key == other.key and one.start > other.start for one, other in pairwise(self.regions))

    @property
    def rows(self) -> int:
        """Count the module's output rows (1 for a scalar)."""
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        """Count the values of one output row: inputs times kernel."""
        count = 1
        for size in self.shape[1:]:
            count *= size
        return count

    def take(self, rows: Iterable[range]) -> View:
        """Show some of the module's rows, in the order of these ranges; a transposed view has none to take."""
        assert not self.transpose
        regions: list[Region] = []
        for wanted in rows:
            start = 0
            for region in self.regions:
                stop = start + region.stop - region.start
                first, last = max(start, wanted.start), min(stop, wanted.stop)
                if first < last:
                    offset = region.start - start
                    regions.append(Region(region.key, first + offset, last + offset))
                start = stop
        count = sum(region.stop - region.start for region in regions)
        return View(tuple(regions), (count, *self.shape[1:]))

    def read(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Gather the module's weight, shaped `shape`, from whole base tensors; a copy or an alias."""
        if self.transpose:
            return tensors[self.regions[0].key].T
        pieces = [tensors[region.key][region.start : region.stop] for region in self.regions]
        if len(pieces) == 1:
            return pieces[0].reshape(self.shape)
        import torch

        return torch.cat(pieces).reshape(self.shape)

    def add(self, tensors: Mapping[str, torch.Tensor], delta: torch.Tensor) -> None:
        """Add `delta`, shaped like the module's weight, into whole base tensors in place."""
        if self.transpose:
            tensors[self.regions[0].key].add_(delta.reshape(self.shape).T)
            return
        row = 0
        for region in self.regions:
            target = tensors[region.key][region.start : region.stop]
            piece = delta.reshape(self.rows, -1)[row : row + region.stop - region.start]
            target.add_(piece.reshape(target.shape))
            row += region.stop - region.start


def join(views: Sequence[View | None]) -> View | None:
    """Put views with equal columns under each other; None where one is missing or they do not go together."""
    found = [view for view in views if view is not None]
    if len(found) < len(views) or len({view.shape[1:] for view in found}) != 1:
        return None
    if len(found) == 1:
        return found[0]
    if any(view.transpose or not view.shape for view in found):
        return None
    regions: list[Region] = []
    for region in (region for view in found for region in view.regions):
        if regions and (regions[-1].key, regions[-1].stop) == (region.key, region.start):
            regions[-1] = Region(region.key, regions[-1].start, region.stop)
        else:
            regions.append(region)
    return View(tuple(regions), (sum(view.rows for view in found), *found[0].shape[1:]))
