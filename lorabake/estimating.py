"""Estimate from a sample of the tensors, before a bake, what will be left of each LoRA, and what may be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Unpack

from lorabake.baking import plan as make_plan
from lorabake.errors import ArgumentError
from lorabake.planning import Plan
from lorabake.planning.cautions import Caution, cautions_of, cautions_of_recipe
from lorabake.recipe.given import WHOLE, Given, OutputGiven, RecipeKeys, takes_a_recipe
from lorabake.reference.survival import estimate as sampled
from lorabake.visible import short_repr


@dataclass(frozen=True, slots=True)
class Estimate:
    """Tell what a bake would leave of each LoRA.

    `survival` is the share of each LoRA's change, between 0 and 1, that the output's resolution keeps, by the LoRA's
    number. A LoRA of which nothing could be estimated has no entry. `cautions` tell whose change is none, gets lost,
    or is absurd.
    """

    __repr__ = short_repr

    plan: Plan
    survival: Mapping[int, float]
    cautions: tuple[Caution, ...]


@takes_a_recipe
def estimate(
    recipe: Given | Plan | None = None, *, output: OutputGiven | None = None, **keys: Unpack[RecipeKeys]
) -> Estimate:
    """Estimate how much of each LoRA a bake would keep, as `lorabake plan --estimate` does; write nothing.

    `recipe`, `output` and the other keywords are those of `bake`. Raise what `plan` raises.

    Examples:
        >>> estimate = lorabake.estimate("recipe.yaml")
        >>> round(estimate.survival[0], 2)
        1.0
        >>> estimate.cautions
        ()
    """
    if isinstance(recipe, Plan):
        if output is not None or keys:
            raise ArgumentError(WHOLE, "Make another plan: plan(recipe, output).")
        planned = recipe
    else:
        planned = make_plan(recipe, output, **keys)
    tallies = sampled(planned)
    shares = {lora: share for lora, tally in tallies.items() if (share := tally.survival) is not None}
    return Estimate(planned, shares, (*cautions_of_recipe(planned), *cautions_of(planned, tallies)))
