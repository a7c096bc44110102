"""Say what a wrong tensor holds instead: a LoRA left out, at another strength, exchanged, of another module …

Let E be what a checkpoint's tensor differs by from the base, and D_k the change that patch k makes at strength 1.
Least squares over the D_k give the strengths that are there. Since a coarse dtype swallows small changes, they are
compared with the strengths that least squares finds in the rightly rounded result, not with the recipe's. What that
leaves unexplained is held against everything that is known to go wrong in merges.
"""

from __future__ import annotations

from math import isinf

from lorabake.planning import Plan
from lorabake.reference.recompute import Recomputation
from lorabake.verification.weights.causes import Cause, Diagnosis
from lorabake.verification.weights.comparison import Comparison
from lorabake.verification.weights.guesses import Guesses
from lorabake.verification.weights.limits import NUDGED_ULPS, ONE_ULP
from lorabake.verification.weights.projections import Sums
from lorabake.verification.weights.scene import scene_of, scene_of_sums, where
from lorabake.verification.weights.strengths import by_strengths


class Diagnostician:
    """Explain wrong tensors of one checkpoint."""

    def __init__(self, plan: Plan, recomputation: Recomputation) -> None:
        self.recomputation, self.guesses = recomputation, Guesses(plan, recomputation)

    def explain(self, result: Comparison) -> list[Diagnosis]:
        """Return one diagnosis for each patch that is at fault, or one of the tensor as a whole."""
        key = result.target.key
        if result.nonfinite is not None:
            count, row, column = result.nonfinite
            return [Diagnosis(key, Cause.NONFINITE, detail=f"{count} values, the first at [{row}, {column}]")]
        if not result.rows:
            return [Diagnosis(key, Cause.VALUES, detail="other bytes")]
        if isinf(result.worst):
            return [Diagnosis(key, Cause.VALUES, detail="numbers where none are due")]
        nudge = f"{result.wrong} of {result.values} values, by up to {result.worst:.3g} ulp"
        few = result.wrong <= max(4, result.values // 1000)
        if few and result.worst <= NUDGED_ULPS:
            return [Diagnosis(key, Cause.NUDGED if result.is_copy else Cause.ROUNDING, detail=nudge)]
        scene = scene_of(self.recomputation, result)
        found = by_strengths(self.recomputation, key, scene)
        if result.is_drawn and result.worst <= ONE_ULP and (found == [] or not scene.own):
            return [Diagnosis(key, Cause.DRAWS)]
        if found is not None:
            return found or [Diagnosis(key, Cause.ROUNDING, detail=nudge)]
        return [self.guesses.explain(key, scene, result.base_energy)]

    def explain_sums(self, sums: Sums) -> list[Diagnosis]:
        """Return the same of a tensor whose random sums are off."""
        scene, key = scene_of_sums(sums), sums.target.key
        told = by_strengths(self.recomputation, key, scene)
        if told is not None:
            return told or [
                Diagnosis(key, Cause.ROUNDING, detail=f"{len(sums.wrong)} of {scene.total_rows} rows{where(scene)}")
            ]
        return [self.guesses.explain(key, scene, 0.0)]
