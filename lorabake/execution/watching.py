"""Observe what becomes of each LoRA's change while a step is computed."""

from __future__ import annotations

from math import isfinite, nan

import numpy as np
import torch
from numpy.typing import NDArray

from lorabake.adapters.effect import Effect
from lorabake.execution.parts import FEW, Look, Part, Place, overlaps
from lorabake.matching.patches import Patch
from lorabake.planning.steps import Step
from lorabake.planning.tally import Tally


class Watch:
    """Sum up each LoRA's changes in one step, in `tallies` by the LoRA's number."""

    def __init__(self, step: Step, tallies: dict[int, Tally]) -> None:
        self.step, self.tallies = step, tallies

    def tally(self, patch: Patch) -> Tally:
        """Return the tally of a LoRA."""
        return self.tallies.setdefault(patch.lora, Tally())

    def note_patch(self, patch: Patch, effect: Effect, scale: float) -> None:
        """Note what a patch's own tensors tell."""
        tally = self.tally(patch)
        tally.count(patch.module, moves=False)
        if patch.scale is None and scale < 0:  # a scale in a configuration is reported elsewhere
            tally.negative.add(patch.module)
        if effect.erases:
            tally.erasing.add(patch.module)

    def note_delta(self, patch: Patch, delta: torch.Tensor) -> None:
        """Note whether a patch's whole change is nonzero anywhere."""
        self.tally(patch).count(patch.module, moves=bool(delta[:FEW].any() or delta.any()))

    def note_moves(self, parts: list[Part], weight: torch.Tensor, first: int) -> None:
        """Note whose change of these rows is nonzero; skip modules that are known to change something."""
        if all(all(tally.moves.values()) for tally in self.tallies.values()):
            return
        for part, inner, outer in overlaps(parts, first, first + len(weight)):
            for patch in part.patches:
                tally = self.tally(patch)
                if not tally.moves[patch.module]:
                    tally.count(patch.module, moves=part.moves(patch, weight[outer], inner))

    def look(self, key: str, parts: list[Part], weight: torch.Tensor, first: int, place: Place) -> Look:
        """Take a few rows as they are, and what each patch adds to them; `weight` holds the rows from `first`."""
        start, stop = place[0], min(place[1], first + len(weight))
        base = weight[start - first : stop - first].clone()
        look = Look(key, start, base)
        for part, inner, outer in overlaps(parts, start, stop):
            for patch in part.patches:
                change = part.change(patch, base[outer], inner)
                look.changes.append((patch, outer, change))
                self.tally(patch).count(patch.module, moves=bool(change.any()))
        return look

    @np.errstate(invalid="ignore", over="ignore")  # what is no number stops the bake, or is the base's
    def see(self, look: Look, after: torch.Tensor, written: torch.Tensor | None, *, is_sum: bool) -> None:
        """Sum up how much of each change arrives: ⟨W_written − W_due + δ, δ⟩; W_due is W + Σδ, or else `after`.

        `written` is `after` as the output has it; None where that is not known.
        """
        base = _doubles(look.base)
        changes = [(patch, rows, _doubles(change)) for patch, rows, change in look.changes]
        due = base.copy() if is_sum else _doubles(after)
        for _, rows, change in changes if is_sum else ():
            due[rows] += change
        lost = _doubles(written).reshape(base.shape) - due if written is not None else None
        for patch, rows, change in changes:
            tally, energy = self.tally(patch), float(np.vdot(change, change))
            met = float(np.vdot(base[rows], base[rows]))
            if patch.kind.adds and isfinite(energy + met):
                tally.energy += energy
                tally.base += met
            missing = float(np.vdot(lost[rows], change)) if lost is not None else nan
            if isfinite(energy + missing):
                tally.due += energy
                tally.arrived += energy + missing


def _doubles(tensor: torch.Tensor) -> NDArray[np.float64]:
    """Copy values to the host as float64."""
    values: NDArray[np.float64] = tensor.cpu().double().numpy()
    return values
