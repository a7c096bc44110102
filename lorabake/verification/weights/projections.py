"""Test that a tensor's change is a given sum of products, by random sums along its rows (after Freivalds 1979).

W is the base's weight, W' the one found, Δ = Σ L·R what is due, and F = W' − W − Δ what is left over. For a vector x
of random signs, (W' − W)·x costs one pass over the values, and L·(R·x) next to nothing; they differ by F·x. The signs
are drawn by the tensor's name, so that every run says the same; no value of a checkpoint knows of them.

**No false alarm.** In a right bake a value is off by half a unit in the last place of its dtype at most (by one where
rounding is drawn), and by what the bake's float32 loses. So for each row f of F there is a bound ρ on its length,
whatever its values are. By Hoeffding (1963), |f·x| > λ·ρ has a probability of 2·exp(−λ²/2) at most, over the signs.
λ is such that in a whole checkpoint, over all rows and vectors, this happens with a probability of `FALSE_ALARM` at
most.

**What is found.** Let t = λ·ρ. If any value of f is larger than t, a change of its sign in x moves f·x by more than
2t, so that at most one of the two is within ±t: one vector misses such a row with a probability of 1/2 at most, all
of them with 2^−VECTORS. If a row is off all over, f·x is close to normal with the deviation ‖f‖, and one vector
misses it with P(|N| ≤ t/‖f‖). In any case P(|f·x| ≥ ‖f‖/2) ≥ 3/16 (Paley and Zygmund 1932, as E(f·x)⁴ ≤ 3·‖f‖⁴). A
fault in many rows is missed only where each of them is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabake.adapters.shapes import matrix
from lorabake.planning.steps import Step, Target
from lorabake.reference.arrays import Files, Singles
from lorabake.reference.formulas.formula import Array
from lorabake.reference.patches import Product
from lorabake.reference.recompute import Recomputation
from lorabake.reference.tiles import Indices, epsilon
from lorabake.tensors.dtypes import DTYPES, coarser, mantissa_of
from lorabake.tensors.header import TensorInfo
from lorabake.verification.weights.blocks import Blocks, powers_of, squares
from lorabake.verification.weights.limits import DRAWN_ULPS, FALSE_ALARM, NEAREST_ULPS

VECTORS = 8
TOGETHER = 4
"""Vectors in one product; with more, BLAS takes a slower path."""

BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1
BYTES = np.ascontiguousarray(BYTES.reshape(256, -1, TOGETHER).swapaxes(0, 1))
"""The signs that each byte stands for, one for each vector, in groups: (groups, 256, TOGETHER)."""

PIECE = 64
"""Columns of a product that are summed in float32 before float64 takes over."""

UNIT = 2.0**-24
LARGE = 2.0**32
"""A sum of squares from which on values may be NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Hold the random sums of one tensor: (rows, vectors) each, of what was found less the base, and of each product.

    `bounds` limits, by row, what the two may be apart; `units` has the squares of the units in the last place, summed
    up along the rows.
    """

    step: Step
    found: TensorInfo
    arrived: Array
    products: tuple[Product, ...]
    parts: tuple[Array, ...]
    bounds: Array
    units: Array

    @property
    def target(self) -> Target:
        """Return the tensor's target in the plan."""
        return self.step.targets[0]

    @property
    def due(self) -> Array:
        """Return the sum of the products."""
        total = np.zeros_like(self.arrived)
        for product, part in zip(self.products, self.parts, strict=True):
            total[product.rows] += part
        return total

    @property
    def noise(self) -> float:
        """Estimate the energy of rounding in the sums: a twelfth of a unit's square a value, a fourth where drawn."""
        return VECTORS * float(self.units.sum()) / (4 if self.target.is_drawn else 12)

    @property
    def ratios(self) -> Array:
        """Return the largest distance between the sums of each row, in units of its bound."""
        apart = np.abs(self.arrived - self.due).max(axis=1)
        return np.where(np.isnan(apart), np.inf, apart / self.bounds)

    @property
    def wrong(self) -> Indices:
        """Return the rows that rounding cannot explain."""
        return np.flatnonzero(self.ratios > 1)


class Projector:
    """Compute random sums of tensors of one plan, from any thread; `tests` is how many are made in all."""

    def __init__(self, recomputation: Recomputation, files: Files, tests: int) -> None:
        self.recomputation, self.blocks = recomputation, Blocks(files)
        self.width = sqrt(2 * log(2 * max(tests, 1) / FALSE_ALARM))

    def sums(self, step: Step, found: TensorInfo) -> Sums | None:
        """Return a tensor's sums; None if its change is not a sum of products, or it is not stored plainly."""
        if not _fits(step, found) or (products := self.recomputation.patches.products(step, single=True)) is None:
            return None
        target, (rows, columns) = step.targets[0], matrix(step.targets[0].shape)
        vectors = signs(target.key, columns)
        groups, powers, widest = np.zeros((len(vectors), rows, TOGETHER)), np.zeros(rows), 1
        with np.errstate(all="ignore"):
            for block in self.blocks.of(target, found):
                both = self.blocks.pair(target, found, block)
                np.subtract(both[1], both[0], out=both[0])
                groups[:, block.rows] += both[0] @ vectors[:, block.columns]
                powers[block.rows] += squares(powers_of(both[1], both[1]))
                widest = max(widest, block.columns.stop - block.columns.start)
        if not (powers < LARGE).all():
            return None
        parts = tuple(_sums(product, _joined(vectors)) for product in products)
        bounds, units = self._bounds(step, target, found, products, powers, widest)
        return Sums(step, found, _joined(groups), tuple(products), parts, bounds, units)

    def _bounds(
        self, step: Step, target: Target, found: TensorInfo, products: Sequence[Product], powers: Array, widest: int
    ) -> tuple[Array, Array]:
        """Bound each row's sums; `powers` are the squares of its values' powers of two, summed up.

        Float32 has summed up `widest` values at a time. It loses less than its worst case by far, as its errors are
        independent (Higham and Mary 2019, theorem 2.4): λ·√n·u times the sum of magnitudes, not n·u times.
        """
        columns = matrix(target.shape)[1]
        dtype = coarser(found.dtype, target.dtype)
        units = 4.0 ** -mantissa_of(dtype) * (powers + columns * DTYPES[dtype].least ** 2)
        changes, terms, own = np.zeros(len(powers)), 16, np.zeros(len(powers))
        loss = self.width * UNIT * sqrt(columns)
        for product in products:
            lengths = np.sqrt(np.einsum("ij,ij->i", product.left, product.left)) * np.linalg.norm(product.right)
            changes[product.rows] += abs(product.factor) * lengths
            terms += product.right.shape[0]
            own[product.rows] += loss * sqrt(PIECE + product.right.shape[0]) * abs(product.factor) * lengths
        rounding = (DRAWN_ULPS if target.is_drawn and found.dtype == target.dtype else NEAREST_ULPS) * np.sqrt(units)
        lost = epsilon(step, target) * (terms * changes + 32 * np.sqrt(powers))
        own += loss * sqrt(widest) * (changes + rounding + lost)
        return self.width * (rounding + lost) + own, units


def _sums(product: Product, vectors: Singles) -> Array:
    """Multiply a product with vectors of signs, (columns, VECTORS): in float64, or in float32 piece by piece."""
    left, right = product.left, product.right
    if right.dtype == np.float64:
        return np.asarray(product.factor * (left @ (right @ vectors.astype(np.float64))))
    rank, columns = right.shape
    count = columns // PIECE
    pieces = right[:, : count * PIECE].reshape(rank, count, PIECE).transpose(1, 0, 2)
    inner = (pieces @ vectors[: count * PIECE].reshape(count, PIECE, VECTORS)).sum(axis=0, dtype=np.float64)
    inner += right[:, count * PIECE :] @ vectors[count * PIECE :]
    return np.asarray(product.factor * (left @ inner.astype(np.float32)).astype(np.float64))


def _fits(step: Step, found: TensorInfo) -> bool:
    """Tell whether a step has one tensor, stored plainly before and after."""
    target = step.targets[0]
    if len(step.targets) > 1 or not step.patches or not prod(target.shape) or target.weight.tensor is None:
        return False
    dtypes = [DTYPES[name] for name in (target.weight.dtype, found.dtype)]
    return all(dtype.fits_single for dtype in dtypes) and DTYPES[target.dtype].mantissa is not None


def signs(key: str, columns: int) -> Singles:
    """Draw vectors of signs by a tensor's name: groups of them, (groups, columns, TOGETHER)."""
    seed = int.from_bytes(hashlib.blake2b(f"lorabake quick/{key}".encode(), digest_size=16).digest(), "little")
    drawn = np.frombuffer(np.random.Generator(np.random.Philox(key=seed)).bytes(columns), np.uint8)
    return np.ascontiguousarray(BYTES[:, drawn])


def _joined(groups: NDArray[Any]) -> NDArray[Any]:
    """Put groups, (groups, n, TOGETHER), side by side: (n, VECTORS)."""
    return np.concatenate(groups, axis=1)
