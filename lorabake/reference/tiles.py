"""Hold what a step makes of its tensors, a few rows at a time, and how exact a bake can be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorabake.matching.patches import Patch
from lorabake.planning.steps import Step, Target
from lorabake.reference.formulas.formula import Array
from lorabake.reference.rounding import Numbers, rounded, rounded_by

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Change:
    """Hold what patch `number` of a step adds to `rows` of a tile, strength included.

    `partial` bounds the partial sums behind it, if they may exceed the result.
    """

    number: int
    patch: Patch
    rows: slice
    delta: Array
    partial: float = 0.0


@dataclass(frozen=True, slots=True)
class Reach:
    """Bound the partial sums of a patch's change on some rows."""

    patch: Patch
    rows: slice
    size: float


@dataclass(frozen=True, slots=True)
class Tile:
    """Hold rows of one tensor from `start`, as (rows, columns): the base's, and what the output should hold.

    With `cancels`, values are sums of larger numbers; small values then have the error of large ones.
    """

    target: Target
    start: int
    base: Array
    exact: Array
    changes: tuple[Change, ...]
    cancels: bool = False

    @property
    def reaches(self) -> list[Reach]:
        """Bound the sums of each change; four times the largest result serves as the bound."""
        found = []
        for change in self.changes:
            size = float(np.abs(change.delta).max(initial=0.0))
            if change.patch.kind.may_sum_weight:
                size += float(np.abs(self.base[change.rows]).max(initial=0.0))
            found.append(Reach(change.patch, change.rows, max(4 * size, change.partial)))
        return found


def epsilon(step: Step, target: Target) -> float:
    """Return the rounding error of a bake's arithmetic: half a unit in the last place of 1."""
    double = step.precision == "float64" or target.weight.dtype == "F64"
    return 2.0**-53 if double else 2.0**-24


def slack_of(step: Step, tile: Tile, base: Array, exact: Array, rows: Indices) -> Array:
    """Bound the error that the bake's own precision allows at some places of a tile, in `rows`.

    A sum of n products in a precision ε is off by some n·ε times its largest partial sum.
    """
    sizes = 16 * (np.abs(base) + np.abs(exact))
    if tile.cancels:
        sizes = sizes + 64 * (np.abs(tile.base).max(initial=0.0) + np.abs(tile.exact).max(initial=0.0))
    for reach in tile.reaches:
        inside = (rows >= reach.rows.start) & (rows < reach.rows.stop)
        sizes = sizes + inside * terms(reach.patch) * reach.size
    return np.asarray(epsilon(step, tile.target) * sizes)


def terms(patch: Patch) -> int:
    """Count the terms in the sums of a patch's change, and the operations on top."""
    return 16 + patch.kind.summed_terms(patch.shapes, patch.view.shape) + 64 * patch.has_dora


def rounded_as(tile: Tile, values: Array) -> Array:
    """Round values in a tile's place as the output is rounded: to nearest, or by the recipe's seed."""
    dtype = tile.target.dtype
    if not tile.target.is_drawn:
        return rounded(dtype, values)
    return rounded_by(numbers_of(tile), dtype, values)


def numbers_of(tile: Tile) -> Numbers:
    """Draw again, by SplitMix64, the 62-bit numbers that decide how a tile's values are rounded."""
    seed = tile.target.rounding_seed
    digest = hashlib.blake2b(f"{seed}/{tile.target.key}".encode(), digest_size=8).digest()
    first = tile.start * tile.base.shape[1] + 1
    place = np.arange(first, first + tile.base.size, dtype=np.uint64)
    state = np.frombuffer(digest, "<u8") + place * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return np.asarray((state ^ state >> np.uint64(31)) >> np.uint64(2)).reshape(tile.base.shape)
