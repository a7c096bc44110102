"""Compare one tensor of a checkpoint with what is due, value by value, in units in the last place (ulps)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from lorabake.planning.steps import Step, Target
from lorabake.reference.formulas.formula import Array
from lorabake.reference.recompute import Recomputation
from lorabake.reference.rounding import Numbers, rounded_by, spacing
from lorabake.reference.tiles import Indices, Tile, numbers_of, slack_of
from lorabake.tensors.dtypes import coarser
from lorabake.tensors.header import TensorInfo
from lorabake.verification.weights.limits import DRAWN_ULPS, NEAREST_ULPS


@dataclass(slots=True)
class Share:
    """Sum up one patch's change δ over a tensor: ‖δ‖², and its inner products with what arrived and what was due."""

    energy: float = 0.0
    arrived: float = 0.0
    due: float = 0.0


@dataclass(slots=True)
class Comparison:
    """Tell how one tensor compares with what is due.

    `wrong` counts the values out of their bound and `rows` names their rows; `worst` is the largest distance, in ulps
    of the larger number; `nonfinite` counts values that are no numbers though the due ones are, and gives the first
    one's row and column; `flipped` counts zeros with another sign than the base's that nothing changes.
    """

    target: Target
    found: TensorInfo
    step: Step
    is_copy: bool
    values: int = 0
    inexact: int = 0
    wrong: int = 0
    worst: float = 0.0
    rows: set[int] = field(default_factory=set)
    nonfinite: tuple[int, int, int] | None = None
    flipped: int = 0
    base_energy: float = 0.0
    shares: dict[int, Share] = field(default_factory=dict)
    """By the patch's place in the step."""

    @property
    def dtype(self) -> str:
        """Return the dtype whose resolution counts: the coarser of the one found and the one due."""
        return coarser(self.found.dtype, self.target.dtype)

    @property
    def is_drawn(self) -> bool:
        """Tell whether chance, by the recipe's seed, said where each value goes."""
        return self.target.is_drawn and self.found.dtype == self.target.dtype

    @property
    def is_right(self) -> bool:
        """Tell whether every value is within its bound."""
        return not self.wrong and self.nonfinite is None

    def add(self, tile: Tile, found: Array, recomputation: Recomputation) -> None:
        """Compare the rows of one tile: each value may be half an ulp off, and what the bake's precision allows.

        One that is drawn may be what that precision's least and greatest outcome are rounded to, or lie between.
        """
        numbers = numbers_of(tile) if self.is_drawn else None
        with np.errstate(invalid="ignore", over="ignore"):
            error = found - tile.exact
            self._share(tile, error)
            np.abs(error, out=error)
            ulps = np.divide(error, spacing(self.dtype, found), out=error)
        if self.found.dtype == tile.target.weight.dtype:
            self.count_flipped(found, tile.base, tile.exact)
        self.values += found.size
        worst = float(ulps.max(initial=0.0))
        finite: NDArray[np.bool_] | bool = True
        if not isfinite(worst):
            ulps[np.isnan(ulps)] = np.inf  # a number where none is due
            finite = np.isfinite(found)
            # NaN and infinity that the base has pass where nothing is added to them.
            strange = ~finite & (found != tile.exact) & ~(np.isnan(found) & np.isnan(tile.exact))
            ulps[~finite] = 0
            self._note_nonfinite(np.argwhere(strange), tile.start)
            worst = float(ulps.max(initial=0.0))
        self.worst = max(self.worst, min(worst, NEAREST_ULPS if numbers is None else DRAWN_ULPS))
        if numbers is None:
            suspects = np.flatnonzero(ulps > NEAREST_ULPS) if worst > NEAREST_ULPS else np.empty(0, np.intp)
        else:
            suspects = np.flatnonzero(finite & (found != rounded_by(numbers, self.dtype, tile.exact)))
        if len(suspects):
            rows = suspects // found.shape[1]
            due, base = (np.ascontiguousarray(each).reshape(-1)[suspects] for each in (tile.exact, tile.base))
            is_exact = not tile.changes and tile.target.weight.tensor is not None
            slack = np.zeros(len(rows))
            if not is_exact:
                slack = slack_of(self.step, tile, base, due, rows)
            drawn = None if numbers is None else numbers.reshape(-1)[suspects]
            self.judge(rows + tile.start, found.reshape(-1)[suspects], due, slack, drawn)

    def _share(self, tile: Tile, error: Array) -> None:
        """Sum up what each change has in the tile; `error` is what is there less what is due."""
        self.base_energy += float(np.vdot(tile.base, tile.base))
        for change in tile.changes:
            share = self.shares.setdefault(change.number, Share())
            own, base = change.delta.ravel(), tile.base[change.rows]
            due = float(np.dot((tile.exact[change.rows] - base).ravel(), own))
            more = float(np.dot(error[change.rows].ravel(), own))
            if not isfinite(due + more):
                found = tile.exact[change.rows] + error[change.rows]
                more = float(np.dot(np.nan_to_num(found - base).ravel(), own)) - due
            share.energy += float(np.dot(own, own))
            share.due += due
            share.arrived += due + more

    def judge(self, rows: Indices, found: Array, exact: Array, slack: Array, numbers: Numbers | None = None) -> None:
        """Judge values, in `rows` of the tensor, that are not the nearest ones, or not those drawn by `numbers`."""
        dtype, error = self.dtype, np.abs(found - exact)
        # Where a sum all but cancels, the unit is that of what it should have been, not of what is left.
        away = error / spacing(dtype, np.fmax(np.abs(found), np.abs(exact)))
        self.worst = max(self.worst, float(np.where(np.isnan(away), np.inf, away).max(initial=0.0)))
        if numbers is None:
            wrong = ~(error <= NEAREST_ULPS * spacing(dtype, found) + slack)
        else:
            least, most = (rounded_by(numbers, dtype, exact + off) for off in (-slack, slack))
            wrong = ~((least <= found) & (found <= most))
        self.inexact += len(rows)
        self.wrong += int(wrong.sum())
        self.rows.update(rows[wrong].tolist())

    def count_flipped(self, found: Array, base: Array, exact: Array) -> None:
        """Count zeros that differ from the base's in their sign, though the change is exactly zero."""
        zeros = np.flatnonzero((found == 0) & (base == 0))
        if len(zeros):
            there, before, due = (np.ascontiguousarray(each).reshape(-1)[zeros] for each in (found, base, exact))
            self.flipped += int(np.count_nonzero((np.signbit(there) != np.signbit(before)) & (due == 0)))

    def _note_nonfinite(self, at: Indices, start: int) -> None:
        if len(at):
            count, row, column = self.nonfinite or (0, int(at[0][0]) + start, int(at[0][1]))
            self.nonfinite = (count + len(at), row, column)
