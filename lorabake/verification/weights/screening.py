"""Confirm tensors in float32, except for a few values: if LoRAs add products and the result has at most 16 bits.

Half a unit of float16 is some thousand times what float32 loses in such a sum. So a float32 sum tells of all values
but those next to the border between two neighbours, some 0.2 %, what they are, and those are worked out in float64.
With u = 2⁻²⁴, ‖b‖ the length of a row of B and ‖a‖ that of the longest column of A, strength and scale included, a
float32 sum of r products is off by u·(r + 2)·‖b‖·‖a‖ at most, in whatever order it is taken (Higham 2002, section
3.1). The comparison allows a bake to be off by more than that, so that no value passes which float64 would not let
pass. Whatever is not right is left to float64 altogether, which says what is there.

Usually such a sum is off by u/√6·‖b‖·‖a‖: each step rounds by up to half a unit of a sum that grows as √k. Values are
worked out within ten times that, so that the count of those that are not the nearest ones is float64's, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from lorabake.adapters.shapes import matrix
from lorabake.planning.steps import Step, Target
from lorabake.reference.arrays import Files, Singles, decode
from lorabake.reference.formulas.formula import Array
from lorabake.reference.patches import Product, longest
from lorabake.reference.recompute import Recomputation
from lorabake.reference.rounding import spacing
from lorabake.reference.tiles import Indices, epsilon, terms
from lorabake.tensors.dtypes import DTYPES, mantissa_of
from lorabake.tensors.header import TensorInfo
from lorabake.verification.weights.blocks import VALUES, Block, Blocks, dot, powers_of
from lorabake.verification.weights.comparison import Comparison, Share
from lorabake.verification.weights.limits import NEAREST_ULPS

WORTH = 1 << 15
"""Values of a tensor from which on screening saves time."""

UNIT = 2.0**-24
USUAL = 4.0
"""Distance from the border, in units of u·‖b‖·‖a‖, within which values are recomputed: ten times the usual error."""

LARGE = 2.0**32
"""A sum of squares from which on values may be NaN or infinite."""

SEVERAL = 16
"""At most one value in so many may be near the border; if there are more, the tensor is wrong."""

MOST = 12
"""Most products on one tensor whose sum the comparison's tolerance covers."""


@dataclass(frozen=True, slots=True)
class Factor:
    """Hold a product in both precisions; `columns` are those of the right side, as rows.

    `margins` say by row how far from the border between neighbours a value has to be worked out in float64, `allowed`
    how far a bake may be off at the least.
    """

    product: Product
    left: Singles
    right: Singles
    columns: Array
    margins: Array
    allowed: float

    @classmethod
    def of(cls, product: Product) -> Factor:
        """Round to float32, and compute the margins."""
        left = (product.factor * product.left).astype(np.float32)
        right = np.ascontiguousarray(product.right, np.float32)
        columns = np.ascontiguousarray(product.right.T)
        lengths = np.sqrt(np.einsum("ij,ij->i", product.left, product.left)) * abs(product.factor) * longest(columns)
        allowed = UNIT * terms(product.patch) * float(lengths.max(initial=0.0))
        return cls(product, left, right, columns, USUAL * UNIT * lengths, allowed)


@dataclass(frozen=True, slots=True)
class Delta:
    """Hold what a product adds to `rows` of a block."""

    factor: Factor
    rows: slice
    values: Singles

    def dot(self, other: Delta) -> float:
        """Return the inner product with another delta, over the rows that both change."""
        first, last = max(self.rows.start, other.rows.start), min(self.rows.stop, other.rows.stop)
        one, two = (each.values[first - each.rows.start : last - each.rows.start] for each in (self, other))
        return dot(one, two) if first < last else 0.0


@dataclass(frozen=True, slots=True)
class Suspects:
    """Hold values that need float64: their places, the checkpoint's values and the base's."""

    rows: Indices
    columns: Indices
    found: Array
    base: Array


class Screen:
    """Compare tensors of one plan, from any thread."""

    def __init__(self, recomputation: Recomputation, files: Files) -> None:
        self.recomputation, self.blocks = recomputation, Blocks(files)

    def compare(self, step: Step, found: TensorInfo) -> Comparison | None:
        """Compare a step's tensor with the due values; return a comparison if it is right, or None."""
        target = step.targets[0]
        if not self._fits(step, target, found) or (products := self.recomputation.patches.products(step)) is None:
            return None
        if len(products) > MOST:
            return None
        result = Comparison(target, found, step, is_copy=False)
        suspects: list[Suspects] = []
        with np.errstate(all="ignore"):
            factors = [Factor.of(product) for product in products]
            margins, allowed = (np.zeros(matrix(target.shape)[0]) for _ in range(2))
            for factor in factors:
                margins[factor.product.rows] += factor.margins
                allowed[factor.product.rows] += factor.allowed
            narrowed = margins.astype(np.float32)[:, None]
            for block in self.blocks.of(target, found):
                near = self._screened(result, factors, narrowed[block.rows], block)
                if near is None:
                    return None
                suspects.append(near)
            _settle(result, factors, suspects, allowed)
        return result if result.is_right else None

    def _fits(self, step: Step, target: Target, found: TensorInfo) -> bool:
        """Tell whether float32 can tell neighbours apart and the values are stored plainly."""
        if len(step.targets) > 1 or not step.patches or target.is_drawn or target.weight.tensor is None:
            return False
        if prod(target.shape) < WORTH or epsilon(step, target) != UNIT:
            return False
        dtypes = [DTYPES[name] for name in (target.weight.dtype, found.dtype)]
        if any(dtype.is_fine or not dtype.fits_single for dtype in dtypes):
            return False
        return DTYPES[target.dtype].mantissa is not None

    def _screened(
        self, result: Comparison, factors: Sequence[Factor], margin: Singles, block: Block
    ) -> Suspects | None:
        """Compare a block and return the values that need float64; None if they are too many, or NaN or infinite."""
        total, found = self.blocks.pair(result.target, result.found, block)
        energy = dot(total, total)
        deltas = list(self._deltas(factors, block))
        for each in deltas:
            total[each.rows] += each.values
        border = powers_of(found, self.blocks.floats("border", found.shape))
        error = np.subtract(found, total, out=found)
        sums = {(i, j): one.dot(deltas[j]) for i, one in enumerate(deltas) for j in range(i + 1)}
        extra = [dot(error[each.rows], each.values) for each in deltas]
        if not (energy < LARGE and np.isfinite([*sums.values(), *extra]).all()):
            return None
        np.maximum(border, np.float32(DTYPES[result.dtype].least), out=border)
        border *= np.float32(2.0 ** -(mantissa_of(result.dtype) + 1) - 2 * UNIT * (len(deltas) + 1))
        border -= margin
        np.abs(error, out=error)
        near = np.flatnonzero(error > border)
        if len(near) > error.size // SEVERAL + SEVERAL:
            return None
        if not len(near):
            units = spacing(result.dtype, decode(result.found.dtype, block.held.tobytes()))
            result.worst = max(result.worst, float((error.ravel() / units).max(initial=0.0)))
        result.values += error.size
        result.base_energy += energy
        for i, each in enumerate(deltas):
            share = result.shares.setdefault(each.factor.product.number, Share())
            due = sum(sums[max(i, j), min(i, j)] for j in range(len(deltas)))
            share.energy += sums[i, i]
            share.due += due
            share.arrived += due + extra[i]
        rows, columns = np.divmod(np.union1d(near, _flipped(result, block)), error.shape[1])
        there, before = (
            decode(dtype, stored[rows, columns].tobytes())
            for dtype, stored in ((result.found.dtype, block.held), (result.target.weight.dtype, block.base))
        )
        if not np.isfinite(there).all():
            return None
        return Suspects(rows + block.rows.start, columns + block.columns.start, there, before)

    def _deltas(self, factors: Sequence[Factor], block: Block) -> Iterator[Delta]:
        """Compute the deltas of the rows of a block."""
        for number, factor in enumerate(factors):
            own, start = factor.product.rows, block.rows.start
            first, last = max(own.start, start), min(own.stop, block.rows.stop)
            if first < last:
                values = self.blocks.floats(number, (last - first, block.held.shape[1]))
                left = factor.left[first - own.start : last - own.start]
                np.matmul(left, factor.right[:, block.columns], out=values)
                yield Delta(factor, slice(first - start, last - start), values)


def _flipped(result: Comparison, block: Block) -> Indices:
    """Return the zeros of a block whose sign differs from the base's zeros."""
    if result.found.dtype != result.target.weight.dtype:
        return np.empty(0, np.intp)
    sign = block.held.dtype.type(1 << 8 * block.held.itemsize - 1)
    differ = np.flatnonzero((block.held ^ block.base) == sign)
    return np.extract((block.base.ravel()[differ] & ~sign) == 0, differ)


def _settle(result: Comparison, factors: Sequence[Factor], suspects: Sequence[Suspects], allowed: Array) -> None:
    """Compute in float64 the due values that float32 could not decide, and judge the checkpoint's."""
    rows, columns, found, base = (
        np.concatenate([getattr(suspect, name) for suspect in suspects]) for name in Suspects.__slots__
    )
    exact = base.copy()
    for factor in factors:
        own = factor.product.rows
        at = np.flatnonzero((rows >= own.start) & (rows < own.stop))
        for few in np.array_split(at, 1 + at.size * factor.columns.shape[1] // VALUES):
            left, right = factor.product.left[rows[few] - own.start], factor.columns[columns[few]]
            exact[few] += factor.product.factor * np.einsum("ij,ij->i", left, right)
    ulps = np.abs(found - exact) / spacing(result.dtype, found)
    inexact = ~(ulps <= NEAREST_ULPS)
    result.worst = max(result.worst, float(ulps[~inexact].max(initial=0.0)))
    slack = allowed[rows] + 16 * UNIT * (np.abs(base) + np.abs(exact))
    result.judge(rows[inexact], found[inexact], exact[inexact], slack[inexact])
    if result.found.dtype == result.target.weight.dtype:
        result.count_flipped(found, base, exact)
