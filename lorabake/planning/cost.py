"""Estimate the memory that the steps of a bake take at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from lorabake.adapters.shapes import matrix
from lorabake.planning.steps import Step, precision_of

TILE_VALUES = 1 << 18
"""Values of a tensor that the CPU computes at a time; a float32 tile of 1 MiB stays in a core's cache."""

DEVICE_TILE_VALUES = 1 << 24
"""Values that an accelerator computes at a time: 64 MiB of float32.

The tile size decides the order of sums, and so the last bits. It is fixed here for each device class, and never
depends on free memory.
"""

APART_RANK = 256
"""Rank from which on a LoRA's product is made by itself, and then added times its strength; below, in one call.

By itself it is the same at every strength, so that outputs of a pass have it in common. It takes another pass over
the tile: the lower the rank, the more that weighs in a bake of one output (at rank 128, 7 % of its time). Where n
LoRAs change the same rows, it is n times this rank: below, their factors are one product. Like the tile size, this
decides the last bits.
"""

RUNTIME_BYTES = 190 << 20
"""Anonymous memory of a process that has imported torch and runs two workers, as measured on Linux."""


def peak_memory(steps: Sequence[Step], workers: int) -> int:
    """Estimate the bytes of anonymous memory that a bake of these steps needs."""
    width = 8 if precision_of(steps) == "float64" else 4
    return RUNTIME_BYTES + workers * width * max(map(working_values, steps), default=0)


def working_values(step: Step) -> int:
    """Count the values that one worker holds while it computes a step: factors, random draws and weights."""
    factors = sum(patch.kind.working_values(patch.shapes, patch.settings) for patch in step.patches)
    largest = max(step.matrix(key)[1] for result in step.results for key in result.keys.values())
    if any(target.is_drawn for target in step.targets):
        factors += 8 * max(TILE_VALUES, largest)
    if step.by_rows:
        gathered = {key for target in step.targets if not step.is_in_rows(target) for key in target.source.keys}
        tiles = 3 + any((patch.kind.rank(patch.shapes) or 0) >= APART_RANK for patch in step.patches)
        return factors + tiles * max(TILE_VALUES, largest) + sum(prod(step.matrix(key)) for key in gathered)
    whole = sum(rows * columns for rows, columns in (matrix(target.shape) for target in step.targets))
    decoded = any(result.codec.is_plain and result.source.tensor is None for result in step.results)
    mixed = any(result.codec.mixes for result in step.results)
    return factors + (10 if decoded else 8 if mixed else 4) * whole
