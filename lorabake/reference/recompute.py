"""Work out what a baked tensor ought to hold: float64, plain formulas, nothing of the executor.

The plan says which patches meet which rows; everything after that is done here a second time. Tensors come a few
rows at a time, so that memory stays that of a bake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lorabake.adapters.shapes import matrix
from lorabake.planning.steps import Step, Target
from lorabake.reference.arrays import Files
from lorabake.reference.codecs import as_stored, largest, next_power, scales, turned, worth
from lorabake.reference.formulas.formula import Array
from lorabake.reference.methods import combined, masks_of
from lorabake.reference.patches import PatchReader, delta_of, partial_sums, picked, place_of, widened
from lorabake.reference.rounding import rounded
from lorabake.reference.tiles import Change, Tile
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import TensorInfo

TILE_VALUES = 1 << 17
EDGE = 2.0**-18
"""Share of a block's largest value by which float32 may be off, far more than it is."""


class Recomputation:
    """Recompute steps; `found` are the tensors of the checkpoint that is judged, if there is one."""

    def __init__(self, files: Files, found: Mapping[str, TensorInfo] | None = None) -> None:
        self.files, self.patches, self.found = files, PatchReader(files), found or {}

    def tiles(self, step: Step, some: int | None = None) -> Iterator[Tile]:
        """Yield a step's tensors in tiles of rows; `step` may have no patches, then the base is what is due.

        With `some`, yield that many smaller tiles, spread over the rows, of a tensor whose rows stand alone.
        """
        if step.by_rows:
            yield from self._by_rows(step, some)
        else:
            yield from self._whole(step)

    # -- the two ways ----------------------------------------------------------------------------------

    def _by_rows(self, step: Step, some: int | None) -> Iterator[Tile]:
        target, patches = step.targets[0], step.patches
        rows, columns = step.matrix(target)
        size = max(1, TILE_VALUES // max(1, columns) // (some or 1))
        starts: Sequence[int] = range(0, rows, size)
        if some and some < len(starts):
            starts = [at * (rows - size) // (some - 1) for at in range(some)]
        loaded = []
        for number, patch in enumerate(patches):
            tensors, scale = self.patches.tensors(patch), self.patches.scale(patch)
            loaded.append((number, patch, tensors, scale, partial_sums(patch, tensors, scale)))
        flipped: dict[int, Array] = {}
        for start in starts:
            stop = min(start + size, rows)
            base = self.files.rows(target.source, start, stop, columns)
            exact, changes = base.copy() if patches else base, []
            for number, patch, tensors, scale, partial in loaded:
                for here in (piece for span in patch.view.spans(target.key) if (piece := span.cut(start, stop))):
                    inner = slice(here.stored.start - start, here.stored.stop - start)
                    seen = exact if step.is_sequential else base
                    if patch.view.transpose:  # a product: it does not read the weight
                        if number not in flipped:
                            zeros = np.zeros((patch.view.rows, patch.view.columns))
                            whole = place_of(patch, slice(0, patch.view.rows))
                            flipped[number] = delta_of(patch, tensors, zeros, whole, scale).T
                        delta = flipped[number][here.own]
                    else:
                        delta = delta_of(patch, tensors, picked(patch, seen[inner]), place_of(patch, here.own), scale)
                    delta = widened(patch, delta)
                    exact[inner] += delta
                    changes.append(Change(number, patch, inner, delta, partial))
                if stop >= patch.view.regions[-1].stop:
                    flipped.pop(number, None)
            yield Tile(target, start, base, exact, tuple(changes))

    def _whole(self, step: Step) -> Iterator[Tile]:
        base = {each.key: self.files.whole(each.source).reshape(step.matrix(each)) for each in step.targets}
        shapes = {target.key: target.shape for target in step.targets}
        for target in step.targets:
            if target.encoding is not None:
                stored = base[target.scale_key].reshape(shapes[target.scale_key])
                base[target.key] = worth(target.encoding, base[target.key].reshape(matrix(target.shape)), stored)
                base[target.key] = base[target.key].reshape(step.matrix(target))
        exact = {key: array.copy() for key, array in base.items()}
        parts: dict[str, list[Change]] = {key: [] for key in base}
        own: dict[int, Array] = {}
        for number, patch in enumerate(step.patches):
            view, seen = patch.view, exact if step.is_sequential else base
            blocks = [picked(patch, seen[region.key][region.start : region.stop]) for region in view.regions]
            weight = np.ascontiguousarray(blocks[0].T) if view.transpose else np.concatenate(blocks)
            tensors, scale = self.patches.tensors(patch), self.patches.scale(patch)
            changed = delta_of(patch, tensors, weight, place_of(patch, slice(0, view.rows)), scale)
            partial = partial_sums(patch, tensors, scale)
            if view.transpose:
                changed = changed.T
            if not step.summed and patch.kind.adds:
                own[patch.number] = np.ascontiguousarray(changed) / patch.strength
                continue
            for span in view.spans():
                delta = widened(patch, changed[span.own])
                exact[span.key][span.stored] += delta
                parts[span.key].append(Change(number, patch, span.stored, delta, partial))
        for key, start, stop, there in () if step.summed else step.pieces():
            deltas = [own[piece.patch.number][piece.rows] for piece in there]
            loras = [piece.patch.lora for piece in there]
            masks = masks_of(step.method, key, start, loras, deltas[0].size)
            total = combined(step.method, deltas, [piece.patch.strength for piece in there], masks)
            rows = slice(start, stop)
            exact[key][rows] += total
            parts[key].append(Change(step.patches.index(there[0].patch), there[0].patch, rows, total))
        dtypes = {target.key: target.dtype for target in step.targets}
        for target in step.targets:
            if self._stays(target, base, exact):
                base[target.key] = self.files.whole(target.source).reshape(step.matrix(target))
                exact[target.key] = base[target.key]
                parts[target.key] = [replace(each, delta=np.zeros_like(each.delta)) for each in parts[target.key]]
            elif (encoding := target.encoding) is not None:  # all as it is stored, in units of the scale that is due
                old, shape = base[target.scale_key], shapes[target.scale_key]
                base[target.key], exact[target.key] = (turned(encoding, each[target.key]) for each in (base, exact))
                flat = exact[target.key].reshape(matrix(target.shape))
                fresh = self._fresh(flat, old.reshape(shape), target, dtypes[target.scale_key])
                due = fresh.reshape(old.shape)
                units = _by_row(scales(encoding, fresh), exact[target.key])
                exact[target.scale_key] = due
                first = parts[target.key][0]  # what changes a weight changes its scale
                parts[target.scale_key] = [Change(first.number, first.patch, slice(0, len(due)), due - old)]
                base[target.key] /= units
                exact[target.key] /= units
                parts[target.key] = [
                    replace(
                        each,
                        delta=turned(encoding, each.delta) / (units if len(units) == 1 else units[each.rows]),
                        partial=each.partial / float(units.min()),
                    )
                    for each in parts[target.key]
                ]
        for target in step.targets:
            yield Tile(target, 0, base[target.key], exact[target.key], tuple(parts[target.key]))

    def _stays(self, target: Target, base: Mapping[str, Array], exact: Mapping[str, Array]) -> bool:
        """Tell whether nothing changes a scaled weight, so that it stays as it is stored.

        What is lost beside the weight in float32 may count as nothing: the checkpoint's scale tells whether it did.
        """
        if target.encoding is None:
            return False
        change = np.abs(exact[target.key] - base[target.key]).max(initial=0.0)
        if not change <= EDGE * np.abs(base[target.key]).max(initial=0.0):
            return False
        found, scale = self.found.get(target.scale_key), target.encoding.parts["scale"]
        kept = found is not None and found.dtype == scale.dtype and self.files.equal(found, scale)
        return not change or kept

    def _fresh(self, weight: Array, scale: Array, target: Target, scale_dtype: str) -> Array:
        """Return the scales, in their shape, by which the largest value of each block becomes the dtype's largest.

        Where they are powers of two, the next one up is due. A largest value at the very edge of one may lie on
        either side of it in the bake's precision: there, the checkpoint's own scale decides, if it is one of the two.
        """
        sizes = largest(weight, scale) / DTYPES[target.dtype].largest
        sizes *= 127.0 if target.scale_key.endswith("SCB") else 1.0
        sizes = np.where(sizes > 0, sizes, 1.0)
        if target.encoding is None or not target.encoding.facts.get("powers_of_two"):
            return rounded(scale_dtype, sizes)
        due, low, high = (as_stored(scale_dtype, next_power(sizes * (1 + off))) for off in (0, -EDGE, EDGE))
        found = self.found.get(target.scale_key)
        if found is None or found.shape != scale.shape or found.dtype != scale_dtype:
            return due
        there = self.files.whole(found)
        return np.asarray(np.where((there == low) | (there == high), there, due))


def _by_row(scale: Array, weight: Array) -> Array:
    """Repeat scales of a tensor's own rows for the rows that patches count, of which it may have more."""
    return scale if len(scale) == 1 else np.repeat(scale, len(weight) // len(scale), axis=0)
