"""How much of each LoRA's change the output's dtype can hold, worked out on a sample before anything is written.

A change Δ smaller than half the distance between neighbours of a dtype leaves a value as it was. What survives of Δ
is ⟨W_written − W_exact + Δ, Δ⟩/⟨Δ, Δ⟩: what arrives, projected on what is due. 1 is all of it, 0 nothing.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from lorabake.errors import ValueTooLargeError
from lorabake.planning import Bake, Plan
from lorabake.verification.arrays import MANTISSA, Files
from lorabake.verification.recompute import Recomputation, rounded

WARN, STOP = 0.9, 0.5
"""Below the first a bake warns, below the second it stops unless the recipe allows the loss."""


def survival(plan: Plan, tensors: int = 16) -> dict[int, float]:
    """Estimate what survives of each LoRA, by its number, from the first rows of `tensors` of its weights."""
    own: defaultdict[int, list[Bake]] = defaultdict(list)
    for step in plan.bakes:
        for lora in {patch.lora for patch in step.patches}:
            own[lora].append(step)
    chosen = {id(step): step for steps in own.values() for step in steps[:: -(-len(steps) // tensors)]}
    due: defaultdict[int, float] = defaultdict(float)
    arrived: defaultdict[int, float] = defaultdict(float)
    files = Files()
    try:
        recomputation = Recomputation(plan, files)
        for step in chosen.values():
            tile = next(recomputation.tiles(step))
            if tile.target.dtype not in MANTISSA:
                continue
            lost = rounded(tile.target.dtype, tile.exact) - tile.exact
            for change in tile.changes:
                energy = float(np.vdot(change.delta, change.delta))
                due[change.patch.lora] += energy
                arrived[change.patch.lora] += energy + float(np.vdot(lost[change.rows], change.delta))
    finally:
        files.close()
    return {lora: arrived[lora] / energy for lora, energy in sorted(due.items()) if energy}


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
