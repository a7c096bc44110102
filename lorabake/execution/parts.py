"""Change rows of a tensor, part by part, and look at a few rows to see what becomes of each change."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lorabake.adapters.effect import Effect
from lorabake.errors import MatchError
from lorabake.execution.products import Products
from lorabake.matching.patches import Patch
from lorabake.planning.steps import Result, Step

PLACES, VALUES, FEW = 8, 2048, 8
"""How many places of a tensor, and values in each, a bake looks at to see what becomes of a LoRA's change.

For most changes, a few rows are enough to see that they are not zero.
"""


Place = tuple[int, int]
"""The first row to look at, and the one after the last."""

Where = slice | tuple[slice, slice]
"""Rows, or some values of each of them, as an index."""


@dataclass(frozen=True, slots=True)
class Product:
    """Add `up @ down` to rows `start` to `stop`: the stacked factors of all plain patches on those rows.

    `ranks` says which of the stacked ranks belong to which patch. `picked` are the values of each row that change;
    None means all.
    """

    start: int
    stop: int
    up: torch.Tensor
    down: torch.Tensor
    ranks: tuple[tuple[Patch, slice], ...]
    picked: slice | None = None

    adds = True
    reads_weight = False

    @property
    def patches(self) -> list[Patch]:
        """List the patches in it."""
        return [patch for patch, _ in self.ranks]

    def apply(self, weight: torch.Tensor, base: torch.Tensor, inner: slice) -> None:
        """Add the product to the part's rows `inner`."""
        weight.addmm_(self.up[inner], self.down)

    def change(self, patch: Patch, base: torch.Tensor, inner: slice) -> torch.Tensor:
        """Return what a patch adds to the part's rows `inner`, which hold `base`."""
        own = next(ranks for each, ranks in self.ranks if each.number == patch.number)
        return self.up[inner, own] @ self.down[own]

    def moves(self, patch: Patch, base: torch.Tensor, inner: slice) -> bool:
        """Tell whether a patch changes any of the part's rows `inner`, which hold `base`."""
        own = next(ranks for each, ranks in self.ranks if each.number == patch.number)
        if (self.up[inner.start, own] @ self.down[own, :1]).any():  # the usual case
            return True
        up, down = self.up[inner, own], self.down[own]
        return bool(up.any() and down.any() and (up @ down).any())


@dataclass(frozen=True, slots=True)
class Scaled:
    """Add `up @ down` times the patch's strength to rows `start` to `stop`: one plain patch of a high rank.

    `products` makes the product, or has it from another output of the pass, which has the same `number` for it.
    """

    start: int
    stop: int
    up: torch.Tensor
    down: torch.Tensor
    patch: Patch
    products: Products
    number: int | None
    picked: slice | None = None

    adds = True
    reads_weight = False

    @property
    def patches(self) -> list[Patch]:
        """List the patches in it."""
        return [self.patch]

    def apply(self, weight: torch.Tensor, base: torch.Tensor, inner: slice) -> None:
        """Add the product to the part's rows `inner`."""
        place = None if self.number is None else (self.number, self.start)
        self.products.add(weight, (self.up[inner], self.down), inner.start, self.patch.strength, place)

    def change(self, patch: Patch, base: torch.Tensor, inner: slice) -> torch.Tensor:
        """Return what the patch adds to the part's rows `inner`, which hold `base`."""
        return self.up[inner] @ self.down * patch.strength

    def moves(self, patch: Patch, base: torch.Tensor, inner: slice) -> bool:
        """Tell whether the patch changes any of the part's rows `inner`, which hold `base`."""
        few = self.up[inner.start] @ self.down[:, :1] * patch.strength
        return bool(few.any() or self.change(patch, base, inner).any())


@dataclass(frozen=True, slots=True)
class Update:
    """Change rows `start` to `stop` by one patch; row `start` is the module's row `row`."""

    start: int
    stop: int
    row: int
    patch: Patch
    effect: Effect
    picked: slice | None = None

    @property
    def patches(self) -> list[Patch]:
        """List the patches in it."""
        return [self.patch]

    @property
    def adds(self) -> bool:
        """Tell whether it adds to the rows; parts that replace them come first."""
        return self.patch.kind.adds

    @property
    def reads_weight(self) -> bool:
        """Tell whether it needs the rows as they were before any part."""
        return self.effect.reads_weight

    def apply(self, weight: torch.Tensor, base: torch.Tensor, inner: slice) -> None:
        """Change the part's rows `inner` in place; `base` are their original values."""
        self.effect.apply(weight, base, self._rows(inner), self.patch.share)

    def change(self, patch: Patch, base: torch.Tensor, inner: slice) -> torch.Tensor:
        """Return what the patch adds to the part's rows `inner`, which hold `base`."""
        return self.effect.difference(base, self._rows(inner)) * patch.share

    def moves(self, patch: Patch, base: torch.Tensor, inner: slice) -> bool:
        """Tell whether the patch changes any of the part's rows `inner`, which hold `base`."""
        few = slice(inner.start, min(inner.start + FEW, inner.stop))
        ways = ((base[:FEW], few), (base, inner))
        return any(bool(self.change(patch, some, rows).any()) for some, rows in ways)

    def _rows(self, inner: slice) -> slice:
        """Return the module's rows for some of the part's rows."""
        return slice(self.row + inner.start, self.row + inner.stop)


Part = Product | Scaled | Update
"""A change of rows of a tensor."""


@dataclass(frozen=True, slots=True)
class Look:
    """Hold a few original rows of a tensor, from `start` on, and what each patch adds to some of them."""

    key: str
    start: int
    base: torch.Tensor
    changes: list[tuple[Patch, Where, torch.Tensor]] = field(default_factory=list)

    def add(self, patch: Patch, change: torch.Tensor) -> None:
        """Add the part of a module's whole change at strength 1, (out, columns), that falls on these rows."""
        turned = change.T if patch.view.transpose else change
        for span in patch.view.spans(self.key):
            if (here := span.cut(self.start, self.start + len(self.base))) is not None:
                rows = slice(here.stored.start - self.start, here.stored.stop - self.start)
                self.changes.append((patch, _where(rows, patch.view.chosen), turned[here.own] * patch.share))


def places_of(spans: Iterable[tuple[int, int]], columns: int) -> list[Place]:
    """Choose a few rows in the middle of each range that the same patches change."""
    spans = list(spans)
    rows = max(1, VALUES // max(1, columns))
    found = []
    for start, stop in itertools.pairwise(sorted({at for span in spans for at in span})):
        if any(first <= start and stop <= last for first, last in spans):
            middle = start + max(0, stop - start - rows) // 2
            found.append((middle, min(middle + rows, stop)))
    return found[:: -(-len(found) // PLACES)] if found else []


def looks_at(step: Step, base: Mapping[str, torch.Tensor]) -> Iterator[tuple[Result, Look]]:
    """Return a few rows of a step's weights, given whole in `base`."""
    for result in step.results:
        weight = base[result.key].reshape(step.matrix(result.key))
        rows = [span.stored for patch in step.patches for span in patch.view.spans(result.key)]
        for start, stop in places_of(((each.start, each.stop) for each in rows), weight.shape[1]):
            yield result, Look(result.key, start, weight[start:stop])


def overlaps(parts: Iterable[Part], first: int, last: int) -> Iterator[tuple[Part, slice, Where]]:
    """Yield the parts that change rows `first` to `last`, with their own rows and the rows counted from `first`."""
    for part in parts:
        start, stop = max(part.start, first), min(part.stop, last)
        if start < stop:
            outer = _where(slice(start - first, stop - first), part.picked)
            yield part, slice(start - part.start, stop - part.start), outer


def _where(rows: slice, picked: slice | None) -> Where:
    return rows if picked is None else (rows, picked)


def stacked(
    start: int, stop: int, picked: slice | None, factors: Sequence[tuple[Patch, torch.Tensor, torch.Tensor]]
) -> Product:
    """Stack the factors of several patches on the same rows."""
    left = torch.cat([left for _, left, _ in factors], dim=1) if len(factors) > 1 else factors[0][1]
    right = torch.cat([right for _, _, right in factors]) if len(factors) > 1 else factors[0][2]
    ends = itertools.accumulate((len(right) for _, _, right in factors), initial=0)
    ranks = zip((patch for patch, _, _ in factors), itertools.starmap(slice, itertools.pairwise(ends)), strict=True)
    return Product(start, stop, left.contiguous(), right.contiguous(), tuple(ranks), picked)


def shaped(patch: Patch, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of exactly this shape, without broadcasting; raise MatchError for another shape."""
    if tensor.shape != shape:
        found, wanted = (" × ".join(map(str, each)) for each in (tensor.shape, shape))
        raise MatchError(
            f"{patch.module}: {patch.kind.title} made {found} of its tensors, and the weight takes {wanted}",
            "The plan should have refused them: please report this.",
        )
    return tensor
