"""Estimate on a sample, before anything is written, how much of each LoRA's change survives.

With rounding to nearest, a change Δ below half the distance between a dtype's neighbours leaves a value as it was.
Stochastic rounding moves a few values to their neighbour, so that the change survives on average. What survives of Δ
is ⟨W_written − W_exact + Δ, Δ⟩/⟨Δ, Δ⟩: the change that arrives, projected on the change that is due. 1 means all of
it, 0 nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabake.adapters.dora import MAGNITUDES
from lorabake.adapters.programs import SCALE_OF_ALPHA_0
from lorabake.codecs.codec import Stored
from lorabake.matching.patches import Patch
from lorabake.planning import Plan, in_base_layout
from lorabake.planning.cautions import no_scale
from lorabake.planning.steps import Step
from lorabake.planning.tally import Tally
from lorabake.reference.arrays import Files
from lorabake.reference.formulas.products import PRODUCTS
from lorabake.reference.recompute import Recomputation
from lorabake.reference.tiles import rounded_as
from lorabake.tensors.dtypes import DTYPES

TILES = 4
"""Places sampled in each weight, from its first rows to its last."""

SAMPLE = 16
"""Weights sampled for each LoRA."""


def survival(plan: Plan, tensors: int = SAMPLE) -> dict[int, float]:
    """Estimate the surviving share of each LoRA, by its number; a LoRA that changes nothing has no entry."""
    tallies = estimate(plan, tensors, reads=False)
    return {lora: share for lora, tally in tallies.items() if (share := tally.survival) is not None}


def estimate(plan: Plan, tensors: int = SAMPLE, *, reads: bool = True) -> dict[int, Tally]:
    """Tally each LoRA's change, by its number, in a few rows spread over some of its weights.

    `tensors` weights are looked at, or every row of all of them where nothing changes there. With `reads` is told of
    every module what its own tensors tell, such as that they are zeros.
    """
    own: defaultdict[int, dict[int, Step]] = defaultdict(dict)
    for step in in_base_layout(plan).steps:  # the values are the same in every layout
        for patch in step.patches:
            own[patch.lora][step.number] = step
    with closing(Files()) as files:
        sample = _Sample(Recomputation(files), files)
        in_order = sorted((lora, [*steps.values()]) for lora, steps in own.items())
        return {lora: sample.tally(lora, steps, tensors, reads=reads) for lora, steps in in_order}


class _Sample:
    """Sample some rows of some steps of one plan."""

    def __init__(self, recomputation: Recomputation, files: Files) -> None:
        self.recomputation, self.files = recomputation, files

    def tally(self, lora: int, steps: Sequence[Step], tensors: int, *, reads: bool) -> Tally:
        """Sum up one LoRA's changes in its steps."""
        tally = Tally()
        for step, patch in ((each, patch) for each in steps for patch in each.patches) if reads else ():
            if patch.lora == lora:
                self._read(tally, step, patch)
        self._see(tally, lora, steps[:: -(-len(steps) // tensors)], TILES)
        if not tally.due:
            self._see(tally, lora, steps, None)
        return tally

    def _read(self, tally: Tally, step: Step, patch: Patch) -> None:
        """Note what a module's own tensors tell; if they have zeros and are not a product, compute the change."""
        zero = zero_slots(patch, self.files)
        moves = not is_idle(patch, zero, self.recomputation)
        if zero and step.summed and not _is_product(patch):
            tiles = self.recomputation.tiles(step)
            moves = any(
                change.delta.any() for tile in tiles for change in tile.changes if change.patch.number == patch.number
            )
        tally.count(patch.module, moves=moves)
        note_scales(tally, patch, step.loras[patch.lora], self.recomputation)

    @np.errstate(invalid="ignore", over="ignore")
    def _see(self, tally: Tally, lora: int, steps: Iterable[Step], tiles: int | None) -> None:
        """Add one LoRA's changes in `tiles` places of each step."""
        for tile in (tile for step in steps for tile in self.recomputation.tiles(step, tiles)):
            if DTYPES[tile.target.dtype].mantissa is None:
                continue
            lost = rounded_as(tile, tile.exact) - tile.exact
            for change in tile.changes:
                if change.patch.lora == lora:
                    energy = float(np.vdot(change.delta, change.delta))
                    tally.due += energy
                    tally.arrived += energy + float(np.vdot(lost[change.rows], change.delta))
                    if change.patch.kind.adds:
                        base = tile.base[change.rows]
                        tally.energy += energy
                        tally.base += float(np.vdot(base, base))


def zero_slots(patch: Patch, files: Files) -> set[str]:
    """Return the slots of a patch whose float tensors are all zero."""
    return {slot for slot, info in patch.tensors.items() if slot != "alpha" and _is_zero(info, files)}


def is_idle(patch: Patch, zero: set[str], recomputation: Recomputation) -> bool:
    """Tell whether a patch adds a zero product, because its scale or a factor (in the slots `zero`) is zero."""
    return _is_product(patch) and bool(zero & patch.kind.required or not recomputation.patches.scale(patch))


def _is_product(patch: Patch) -> bool:
    return patch.kind.name in PRODUCTS and not patch.has_dora


def _is_zero(weight: Stored, files: Files) -> bool:
    info = weight.tensor
    if info is None:
        return not files.weight(weight).any()
    if not DTYPES[info.dtype].floating or not info.nbytes:
        return False
    width = DTYPES[info.dtype].bits // 8
    first = np.frombuffer(files.raw(info.file, info.start, min(info.nbytes, 64 * width)), np.uint8)
    return not _numbers(first, width).any() and not files.whole(info).any()


def note_scales(tally: Tally, patch: Patch, lora: str, recomputation: Recomputation) -> None:
    """Note whether a patch's scale is negative, and whether its DoRA magnitudes have zeros.

    Raise MatchError for an alpha of 0 that no program knows how to read.
    """
    alpha = patch.kind.alpha_of(patch.tensors)
    if patch.scale is None and alpha is not None:  # a configuration's is told
        scale = recomputation.patches.scale(patch)
        if not scale and patch.semantics not in SCALE_OF_ALPHA_0:
            raise no_scale(lora, alpha.name, scale)
        if scale < 0:
            tally.negative.add(patch.module)
    lengths = (patch.tensors[slot] for slot in MAGNITUDES & patch.tensors.keys())
    if any(not recomputation.files.weight(info).all() for info in lengths):
        tally.erasing.add(patch.module)


def _numbers(raw: NDArray[np.uint8], width: int) -> NDArray[Any]:
    """Remove the signs from values given as bytes; the rest is zero only for zeros."""
    whole = raw.view(f"<u{width}")
    return np.asarray(whole & np.asarray((1 << 8 * width - 1) - 1, whole.dtype))
