"""Multiply the factors of one LoRA, tile by tile, so that outputs at several strengths have the product in common.

Such a product is rounded before its strength. So it is the same for every strength, and a bake of one output has the
bytes that a bake of many has. That takes one more pass over the tile than one call for both, which weighs little at a
high rank. So the rank decides, and never how many outputs there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from lorabake.matching.patches import Patch
from lorabake.planning.cost import APART_RANK

Place = tuple[int, int]
"""A product's number, and the first row of a tensor to which it is added."""

ALONE = (-1, 0)
"""The place of a product that one output needs."""


def is_apart(rank: int, together: int) -> bool:
    """Tell whether a factor's product is made by itself, given how many plain patches change the same rows."""
    return rank >= APART_RANK * together


@dataclass(slots=True)
class _Kept:
    """Hold the product of some rows, from `row` on; `left` counts the outputs that need it.

    `memory` is what it lies in, and what another product may lie in next; None on a device.
    """

    row: int
    memory: torch.Tensor | None
    product: torch.Tensor
    left: int


@dataclass(slots=True)
class Products:
    """Make the products of one worker; keep those of the present tile that another output of a unit adds, too."""

    _shared: list[tuple[Patch, torch.dtype, int]] = field(default_factory=list)
    _kept: dict[Place, _Kept] = field(default_factory=dict)
    _free: list[torch.Tensor] = field(default_factory=list)

    @contextmanager
    def sharing(self, patches: Iterable[tuple[Patch, torch.dtype]]) -> Iterator[None]:
        """Share among these patches, and the dtypes in which they are computed, inside the context."""
        groups: dict[tuple[str, str, torch.dtype], list[tuple[Patch, torch.dtype, int]]] = {}
        for patch, dtype in patches:
            own = groups.setdefault((patch.module, patch.kind.name, dtype), [])
            plain = _without_strength(patch)
            for place, (other, _, count) in enumerate(own):
                if other == plain:
                    own[place] = (other, dtype, count + 1)
                    break
            else:
                own.append((plain, dtype, 1))
        self._shared = [each for own in groups.values() for each in own if each[2] > 1]
        try:
            yield
        finally:
            self._shared = []
            for kept in [*self._kept]:
                self._drop(kept)

    def number(self, patch: Patch, dtype: torch.dtype) -> int | None:
        """Return the number of a patch's product among those that outputs share; None where it is its own."""
        plain = _without_strength(patch) if self._shared else patch
        found = (number for number, (other, own, _) in enumerate(self._shared) if (other, own) == (plain, dtype))
        return next(found, None)

    def add(
        self, weight: torch.Tensor, factors: Sequence[torch.Tensor], row: int, strength: float, place: Place | None
    ) -> None:
        """Add the product of two factors, times a strength, to rows of a weight, from `row` on.

        `place` says which shared product it is; None where it is needed once.
        """
        place = place or ALONE
        kept = self._kept.get(place)
        if kept is None or kept.row != row or place == ALONE:
            self._drop(place)
            left = 1 if place == ALONE else self._shared[place[0]][2]
            kept = self._kept[place] = _Kept(row, *self._made(*factors), left)
        add_scaled(weight, kept.product, strength)
        kept.left -= 1
        if kept.left == 0:
            self._drop(place)

    def _drop(self, place: Place) -> None:
        kept = self._kept.pop(place, None)
        if kept is not None and kept.memory is not None:
            self._free.append(kept.memory)

    def _made(self, up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the product of two factors, and the memory that it lies in."""
        if not up.is_cpu:  # whose memory torch keeps itself
            return None, up @ down
        rows, columns = up.shape[0], down.shape[1]
        size = rows * columns
        for place, memory in enumerate(self._free):
            if memory.numel() >= size and memory.dtype is up.dtype:
                del self._free[place]
                break
        else:
            memory = torch.empty(size, dtype=up.dtype)
        return memory, multiplied(up, down, memory[:size].view(rows, columns))


def multiplied(up: torch.Tensor, down: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Multiply two factors, into `out`."""
    return torch.mm(up, down, out=out)


def add_scaled(weight: torch.Tensor, product: torch.Tensor, strength: float) -> None:
    """Add a product times a strength in place, in one rounding where the processor can."""
    if abs(strength) <= torch.finfo(weight.dtype).max:
        weight.add_(product, alpha=strength)
    else:  # beyond what torch takes there: then values are infinite, and the bake says so
        weight.add_(product * strength)


def _without_strength(patch: Patch) -> Patch:
    return replace(patch, lora=0, number=0, strength=1.0)
