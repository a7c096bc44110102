"""Read a patch's tensors, and compute what it makes of rows of a weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np

from lorabake.adapters.dora import MAGNITUDES
from lorabake.adapters.shapes import matrix
from lorabake.errors import MatchError, SurroundingsError, first_line
from lorabake.matching.patches import Patch
from lorabake.planning.steps import Step
from lorabake.reference.arrays import Files
from lorabake.reference.formulas import FORMULAS, changed
from lorabake.reference.formulas.formula import Array, Place, PlaceOf, Tensors
from lorabake.reference.formulas.laws import scale_of, scale_of_alpha_0, share
from lorabake.reference.formulas.products import PRODUCTS
from lorabake.tensors.dtypes import decode_scalar


@dataclass(frozen=True, slots=True)
class Product:
    """Hold what patch `number` of a step adds to `rows` of a tensor: `factor`, strength included, times a product.

    The factors are (rows, r) and (r, columns), in float64, or in float32 if that is exact.
    """

    number: int
    patch: Patch
    rows: slice
    factor: float
    left: Array
    right: Array


class PatchReader:
    """Read the tensors of patches from open files."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def tensors(self, patch: Patch) -> Tensors:
        """Read a patch's tensors; alpha only if it is not the scale."""
        return {slot: self.files.weight(info) for slot, info in patch.kind.operands(patch.tensors).items()}

    def scale(self, patch: Patch) -> float:
        """Return alpha/rank, or its substitute."""
        if patch.scale is not None:
            return patch.scale
        info = patch.kind.alpha_of(patch.tensors)
        if info is None:
            return 1.0
        alpha = decode_scalar(info.dtype, self.files.raw(info.file, info.first.start, info.nbytes))
        rank = patch.kind.rank(patch.shapes)
        if not alpha and (scale := scale_of_alpha_0(patch.semantics)) is not None:
            return scale_of(patch.kind.name, scale * rank, rank, patch.tensors)
        return scale_of(patch.kind.name, alpha, rank, patch.tensors) * patch.parts

    def products(self, step: Step, *, single: bool = False) -> list[Product] | None:
        """Read the factors of a step's patches on its tensor; None if a patch is not a product, or needs all rows.

        With `single`, factors that are stored without loss in float32 come in float32.
        """
        if not step.by_rows or any(patch.has_dora or patch.kind.name not in PRODUCTS for patch in step.patches):
            return None
        target = step.targets[0]
        if step.matrix(target.key) != matrix(target.shape) or any(
            patch.view.picked is not None for patch in step.patches
        ):
            return None  # of one expert in a stack, or of some values of each row
        found = []
        for number, patch in enumerate(step.patches):
            view = patch.view
            factor, left, right = self._stored(patch) if single else self._sides(patch, self.tensors(patch))
            if view.transpose:
                (region,) = view.regions
                rows = slice(region.start, region.stop)
                found.append(Product(number, patch, rows, factor, right.T, left.T))
                continue
            for span in view.spans(target.key):
                found.append(Product(number, patch, span.stored, factor, left[span.own], right))
        return found

    def _sides(self, patch: Patch, tensors: Tensors) -> tuple[float, Array, Array]:
        place = place_of(patch, slice(0, patch.view.rows))
        with refused(patch):
            factor, left, right = PRODUCTS[patch.kind.name](tensors, place, self.scale(patch))
        return share(patch.kind.name, tensors, place) * factor, left, right

    def _stored(self, patch: Patch) -> tuple[float, Array, Array]:
        """Return a product's factors in float32 if they are the LoRA's own numbers, or else in float64."""
        singles = {slot: self.files.single(info) for slot, info in patch.kind.operands(patch.tensors).items()}
        if all(values is not None for values in singles.values()):
            factor, left, right = self._sides(patch, cast(Tensors, singles))
            if all(any(np.may_share_memory(side, each) for each in singles.values()) for side in (left, right)):
                return factor, left, right
        return self._sides(patch, self.tensors(patch))


def place_of(patch: Patch, rows: slice) -> Place:
    """Say for which rows of its module a formula is asked."""
    return PlaceOf(rows, patch.view.shape, patch.settings, patch.semantics, patch.strength)


@contextmanager
def refused(patch: Patch) -> Iterator[None]:
    """Turn a formula's complaint about a patch's values into an error that names the module."""
    try:
        yield
    except ValueError as error:
        raise MatchError(f"{patch.module}: {first_line(error, None)}") from None


def delta_of(patch: Patch, tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Return what a patch adds to rows of its module's weight, strength included."""
    if patch.kind.name not in FORMULAS:
        raise SurroundingsError(
            f"verification has no formula for {patch.kind.title}", "Add one to lorabake/reference/formulas/."
        )
    with refused(patch):
        updated = changed(patch.kind.name, tensors, weight, place, scale)
    if updated.shape != weight.shape:
        found, wanted = (" × ".join(map(str, each)) for each in (updated.shape, weight.shape))
        raise MatchError(f"{patch.module}: its formula gives {found}, and the weight's rows are {wanted}")
    delta = updated - weight
    delta *= share(patch.kind.name, tensors, place)
    return delta


def picked(patch: Patch, rows: Array) -> Array:
    """Return the values of stored rows that belong to a patch's module."""
    return rows if patch.view.picked is None else rows[:, patch.view.chosen]


def widened(patch: Patch, delta: Array) -> Array:
    """Put the values that belong to a patch's module back among the unchanged rest of the stored rows."""
    if patch.view.picked is None:
        return delta
    wide = np.zeros((len(delta), patch.view.width))
    wide[:, patch.view.chosen] = delta
    return wide


def partial_sums(patch: Patch, tensors: Tensors, scale: float) -> float:
    """Bound the partial sums of a product by the lengths of its factors' rows and columns (Cauchy and Schwarz)."""
    if patch.kind.name not in PRODUCTS:
        return 0.0
    own = {slot: values for slot, values in tensors.items() if slot not in MAGNITUDES}
    place = place_of(patch, slice(0, patch.view.rows))
    factor, left, right = PRODUCTS[patch.kind.name](own, place, scale)
    return abs(share(patch.kind.name, own, place) * factor) * longest(left) * longest(right.T)


def longest(rows: Array) -> float:
    """Return the length of the longest row."""
    return float(np.sqrt(np.einsum("ij,ij->i", rows, rows).max(initial=0.0)))
