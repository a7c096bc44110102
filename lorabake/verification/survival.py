"""How much of each LoRA's change the output's dtype can hold, worked out on a sample before anything is written.

A change Δ smaller than half the distance between neighbours of a dtype leaves a value as it was, rounded to nearest;
rounded by chance it moves few values all the way, and on average survives. What survives of Δ is
⟨W_written − W_exact + Δ, Δ⟩/⟨Δ, Δ⟩: what arrives, projected on what is due. 1 is all of it, 0 nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from lorabake.errors import ValueTooLargeError
from lorabake.planning import Bake, Plan
from lorabake.verification.arrays import MANTISSA, Files
from lorabake.verification.recompute import Recomputation

WARN, STOP = 0.9, 0.5
"""Below the first a bake warns, below the second it stops unless the recipe allows the loss."""

TILES = 4
"""Places looked at in each weight, from its first rows to its last."""


def survival(plan: Plan, tensors: int = 16) -> dict[int, float]:
    """Estimate what survives of each LoRA, by its number, from a few rows all over some of its weights.

    `tensors` weights are looked at, or every row of all of them where nothing changes there. A LoRA that changes
    nothing at all has no entry.
    """
    own: defaultdict[int, dict[int, Bake]] = defaultdict(dict)
    for step in plan.bakes:
        for patch in step.patches:
            own[patch.lora][id(step)] = step
    files = Files()
    shares: dict[int, float] = {}
    try:
        recomputation = Recomputation(plan, files)
        for lora, steps in sorted(own.items()):
            few = list(steps.values())[:: -(-len(steps) // tensors)]
            share = _share(recomputation, lora, few, TILES)
            share = _share(recomputation, lora, steps.values(), None) if share is None else share
            shares |= {} if share is None else {lora: share}
    finally:
        files.close()
    return shares


def _share(recomputation: Recomputation, lora: int, steps: Iterable[Bake], tiles: int | None) -> float | None:
    """Return the share of one LoRA's change that arrives in `tiles` places of each step; None without a change."""
    due = arrived = 0.0
    for tile in (tile for step in steps for tile in recomputation.tiles(step, tiles)):
        if tile.target.dtype not in MANTISSA:
            continue
        lost = recomputation.rounded(tile, tile.exact) - tile.exact
        for change in tile.changes:
            if change.patch.lora == lora:
                energy = float(np.vdot(change.delta, change.delta))
                due += energy
                arrived += energy + float(np.vdot(lost[change.rows], change.delta))
    return arrived / due if due else None


def check(plan: Plan, found: dict[int, float]) -> list[str]:
    """Word warnings about LoRAs that fade; raise ValueTooLargeError where most of one would be lost unasked."""
    names = [lora.name for lora in plan.sources.loras]
    lost = [lora for lora, share in found.items() if share < STOP]
    if lost and not plan.sources.recipe.output.allow_loss:
        raise ValueTooLargeError(
            f"LoRA {names[lost[0]]!r}: only {found[lost[0]]:.0%} of its change would survive the output's dtype\n"
            "Choose a finer output.dtype, or set output.allow_loss: true. Nothing was written."
        )
    return [
        f"LoRA {names[lora]!r}: about {share:.0%} of its change survives the output's dtype"
        for lora, share in found.items()
        if share < WARN
    ]
