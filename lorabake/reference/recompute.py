"""Compute what a baked tensor should hold: in float64, by plain formulas, without the executor.

The plan says which patches change which rows; everything after that is done here a second time. Tensors come a few
rows at a time, so that memory stays as low as in a bake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lorabake.adapters.shapes import matrix
from lorabake.codecs.codec import WEIGHT
from lorabake.errors import InternalError
from lorabake.planning.steps import Result, Step, Target
from lorabake.reference.arrays import Files
from lorabake.reference.codecs import EDGE, may_cancel, recoded
from lorabake.reference.formulas.formula import Array
from lorabake.reference.methods import combined, masks_of
from lorabake.reference.patches import PatchReader, delta_of, partial_sums, picked, place_of, widened
from lorabake.reference.tiles import Change, Tile
from lorabake.tensors.header import TensorInfo

TILE_VALUES = 1 << 17


class Recomputation:
    """Recompute steps; `found` are the tensors of the checkpoint under test, if there is one."""

    def __init__(self, files: Files, found: Mapping[str, TensorInfo] | None = None) -> None:
        self.files, self.patches, self.found = files, PatchReader(files), found or {}

    def tiles(self, step: Step, some: int | None = None) -> Iterator[Tile]:
        """Yield the due values of a step's tensors in tiles of rows; without patches these are the base's own.

        With `some`, yield that many smaller tiles, spread over a tensor whose rows are independent.
        """
        if not all(target.is_direct for target in step.targets):
            raise InternalError(f"{step.targets[0].key} is in another layout, and is recomputed in the base's")
        if step.by_rows:
            yield from self._by_rows(step, some)
        else:
            yield from self._whole(step)

    # -- the two ways ----------------------------------------------------------------------------------

    def _by_rows(self, step: Step, some: int | None) -> Iterator[Tile]:
        target, patches = step.targets[0], step.patches
        rows, columns = step.matrix(target.key)
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
            base = self.files.weight_rows(target.weight, start, stop, columns)
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
        base = {
            result.key: self.files.weight(result.source).reshape(step.matrix(result.key)) for result in step.results
        }
        exact = {key: array.copy() for key, array in base.items()}
        changes: dict[str, list[Change]] = {key: [] for key in base}
        own: dict[int, Array] = {}
        for number, patch in enumerate(step.patches):
            view, seen = patch.view, exact if step.is_sequential else base
            blocks = [picked(patch, seen[span.key][span.stored]) for span in view.spans()]
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
                changes[span.key].append(Change(number, patch, span.stored, delta, partial))
        for key, start, stop, there in () if step.summed else step.pieces():
            deltas = [own[piece.patch.number][piece.rows] for piece in there]
            loras = [piece.patch.lora for piece in there]
            masks = masks_of(step.method, key, start, loras, deltas[0].size)
            total = combined(step.method, deltas, [piece.patch.strength for piece in there], masks)
            rows = slice(start, stop)
            exact[key][rows] += total
            changes[key].append(Change(step.patches.index(there[0].patch), there[0].patch, rows, total))
        for result in step.results:  # let go of what is done, since a weight in float64 is large
            key = result.key
            yield from self._tiles_of(step, result, base.pop(key), exact.pop(key), changes.pop(key))

    def _tiles_of(
        self, step: Step, result: Result, base: Array, exact: Array, changes: list[Change]
    ) -> Iterator[Tile]:
        """Yield what the targets of one weight should hold, given its decoded values, whose memory is used again."""
        weight, cancels = result.source, may_cancel(result.source)
        targets, own = step.targets_of(result), step.target_of(result.key)
        if result.codec.is_plain:
            yield Tile(own, 0, base, exact, tuple(changes), cancels)
            return
        if self._stays(result, base, exact):
            idle = tuple(replace(change, delta=np.zeros_like(change.delta)) for change in changes)
            for role, target in targets.items():
                whole = self._stored(step, weight.parts[role], target)
                yield Tile(target, 0, whole, whole, idle if target.key == own.key else (), cancels)
            return
        anew = recoded(weight, exact.reshape(matrix(weight.shape)), lambda role: self._found(weight.parts[role]))
        units = _by_row(anew.units, exact)
        in_units = tuple(
            replace(
                change,
                delta=anew.turn(change.delta) / (units if len(units) == 1 else units[change.rows]),
                partial=change.partial / float(units.min()),
            )
            for change in changes
        )
        base, exact = anew.turn(base), anew.turn(exact)
        base /= units
        exact /= units
        yield Tile(own, 0, base, exact, in_units, cancels)
        first = changes[0]  # a change of a weight also changes its other parts
        for role, due in anew.parts.items():
            before = self._stored(step, weight.parts[role], targets[role])
            due = due.reshape(before.shape)
            moved = Change(first.number, first.patch, slice(0, len(due)), due - before)
            yield Tile(targets[role], 0, before, due, (moved,))

    def _stored(self, step: Step, part: TensorInfo, target: Target) -> Array:
        """Read a part of a weight as it is stored, as (rows, columns)."""
        return self.files.whole(part).reshape(step.matrix(target.key))

    def _stays(self, result: Result, base: Array, exact: Array) -> bool:
        """Tell whether nothing changes an encoded weight, so that it stays as it is stored.

        A change too small for float32 may count as none; the weight's other parts in the checkpoint show whether it
        did.
        """
        change = np.abs(exact - base).max(initial=0.0)
        if not change <= EDGE * np.abs(base).max(initial=0.0):
            return False
        others = (part for role, part in result.source.parts.items() if role in result.keys and role != WEIGHT)
        return not change or all(self._is_kept(part) for part in others)

    def _is_kept(self, part: TensorInfo) -> bool:
        """Tell whether the checkpoint under test has a tensor exactly as the base has it."""
        found = self.found.get(part.key)
        return found is not None and found.dtype == part.dtype and self.files.equal(found, part)

    def _found(self, part: TensorInfo) -> Array | None:
        """Read the checkpoint's tensor of the same key; None if it has another form."""
        found = self.found.get(part.key)
        if found is None or found.shape != part.shape or found.dtype != part.dtype:
            return None
        return self.files.whole(found)


def _by_row(scale: Array, weight: Array) -> Array:
    """Repeat the scales of a tensor's own rows for the rows that patches count, which may be more."""
    return scale if len(scale) == 1 else np.repeat(scale, len(weight) // len(scale), axis=0)
