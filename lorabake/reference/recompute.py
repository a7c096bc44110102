"""Work out what a baked tensor ought to hold: float64, plain formulas, nothing of the executor.

The plan says which patches meet which rows; everything after that is done here a second time. Tensors come a few
rows at a time, so that memory stays that of a bake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lorabake.adapters.dora import MAGNITUDES
from lorabake.adapters.shapes import matrix
from lorabake.errors import MatchError, SurroundingsError
from lorabake.matching.patches import Patch
from lorabake.planning import Plan
from lorabake.planning.steps import Step, Target
from lorabake.reference.arrays import Files, spacing
from lorabake.reference.codecs import as_stored, largest, may_cancel, next_power, scales, turned, worth
from lorabake.reference.formulas import FORMULAS, changed
from lorabake.reference.formulas.formula import Array, Place, PlaceOf, Tensors
from lorabake.reference.formulas.laws import scale_of, scale_of_alpha_0, share
from lorabake.reference.formulas.products import PRODUCTS
from lorabake.reference.methods import combined, masks_of
from lorabake.tensors.dtypes import DTYPES, decode_scalar
from lorabake.tensors.header import TensorInfo

Indices = NDArray[np.intp]
Numbers = NDArray[np.uint64]
TILE_VALUES = 1 << 17
EDGE = 2.0**-18
"""Share of a block's largest value by which float32 may be off, far more than it is."""


@dataclass(frozen=True, slots=True)
class Change:
    """Hold what one patch, the step's `number`th, adds to rows `rows` of a tile, its strength included.

    The sums that make it are `partial` at the most on the way, where they may be more than what comes out.
    """

    number: int
    patch: Patch
    rows: slice
    delta: Array
    partial: float = 0.0


@dataclass(frozen=True, slots=True)
class Product:
    """Hold what the step's `number`th patch adds to `rows` of a tensor: `factor`, strength and all, times a product.

    Its sides are (rows, r) and (r, columns), in float64 or in a float32 that holds them.
    """

    number: int
    patch: Patch
    rows: slice
    factor: float
    left: Array
    right: Array


@dataclass(frozen=True, slots=True)
class Reach:
    """Say how large the sums that make a patch's change may become on some rows."""

    patch: Patch
    rows: slice
    size: float


@dataclass(frozen=True, slots=True)
class Tile:
    """Hold rows of one tensor from `start`, as (rows, columns): the base's, and what the output ought to hold."""

    target: Target
    start: int
    base: Array
    exact: Array
    changes: tuple[Change, ...]

    @property
    def reaches(self) -> list[Reach]:
        """Say how large the sums of each change may become: four times the largest result stands for that."""
        found = []
        for change in self.changes:
            size = float(np.abs(change.delta).max(initial=0.0))
            if change.patch.kind.may_sum_weight:
                size += float(np.abs(self.base[change.rows]).max(initial=0.0))
            found.append(Reach(change.patch, change.rows, max(4 * size, change.partial)))
        return found


class Recomputation:
    """Recompute the steps of one plan; `found` are the tensors of the checkpoint that is judged, if there is one."""

    def __init__(self, plan: Plan, files: Files, found: Mapping[str, TensorInfo] | None = None) -> None:
        self.plan, self.files, self.found = plan, files, found or {}
        self.sequential = plan.sources.recipe.is_sequential

    def tiles(self, step: Step, some: int | None = None) -> Iterator[Tile]:
        """Yield a step's tensors in tiles of rows; `step` may have no patches, then the base is what is due.

        With `some`, yield that many smaller tiles, spread over the rows, of a tensor whose rows stand alone.
        """
        if step.by_rows:
            yield from self._by_rows(step, some)
        else:
            yield from self._whole(step)

    def tensors(self, patch: Patch) -> Tensors:
        """Read a patch's tensors, alpha only where it is no scale."""
        return {slot: self.files.whole(info) for slot, info in patch.kind.operands(patch.tensors).items()}

    def scale(self, patch: Patch) -> float:
        """Return alpha/rank, or what takes its place."""
        if patch.scale is not None:
            return patch.scale
        info = patch.kind.alpha_of(patch.tensors)
        if info is None:
            return 1.0
        alpha = decode_scalar(info.dtype, self.files.raw(info.file, info.start, info.nbytes))
        rank = patch.kind.rank(patch.shapes)
        if not alpha and (scale := scale_of_alpha_0(patch.semantics)) is not None:
            return scale_of(patch.kind.name, scale * rank, rank, patch.tensors)
        return scale_of(patch.kind.name, alpha, rank, patch.tensors) * patch.parts

    def products(self, step: Step, *, single: bool = False) -> list[Product] | None:
        """Read the factors of a step's patches on its tensor; None where one is no product, or needs all rows.

        With `single`, sides that are stored as they are come in float32, which holds them.
        """
        if not step.by_rows or any(patch.has_dora or patch.kind.name not in PRODUCTS for patch in step.patches):
            return None
        target = step.targets[0]
        if step.matrix(target) != matrix(target.shape) or any(
            patch.view.picked is not None for patch in step.patches
        ):
            return None  # of one expert in a stack, or of some values of each row
        found = []
        for number, patch in enumerate(step.patches):
            view = patch.view
            factor, left, right = self._stored(patch) if single else self._sides(patch, self.tensors(patch))
            if view.transpose:
                (region,) = view.regions
                rows = slice(region.start, region.stop)
                found.append(Product(number, patch, rows, factor, right.T, left.T))
                continue
            for span in view.spans(target.key):
                found.append(Product(number, patch, span.stored, factor, left[span.own], right))
        return found

    def _sides(self, patch: Patch, tensors: Tensors) -> tuple[float, Array, Array]:
        place = _place(patch, slice(0, patch.view.rows))
        with _refused(patch):
            factor, left, right = PRODUCTS[patch.kind.name](tensors, place, self.scale(patch))
        return share(patch.kind.name, tensors, place) * factor, left, right

    def _stored(self, patch: Patch) -> tuple[float, Array, Array]:
        """Return the sides of a product in float32 where they are the LoRA's own numbers, else in float64."""
        singles = {slot: self.files.single(info) for slot, info in patch.kind.operands(patch.tensors).items()}
        if all(values is not None for values in singles.values()):
            factor, left, right = self._sides(patch, cast(Tensors, singles))
            if all(any(np.may_share_memory(side, each) for each in singles.values()) for side in (left, right)):
                return factor, left, right
        return self._sides(patch, self.tensors(patch))

    def epsilon(self, target: Target) -> float:
        """Return what a bake's arithmetic rounds by, half a unit of 1."""
        double = self.plan.sources.recipe.in_float64 or target.source.dtype == "F64"
        return 2.0**-53 if double else 2.0**-24

    def slack(self, tile: Tile, base: Array, exact: Array, rows: Indices) -> Array:
        """Bound the error that the bake's own precision allows at some places, in `rows`, of a tile.

        A sum of n products in a precision ε is off by some n·ε times its largest partial sum.
        """
        sizes = 16 * (np.abs(base) + np.abs(exact))
        if may_cancel(tile.target.encoding) or may_cancel(tile.target.source):
            sizes = sizes + 64 * (np.abs(tile.base).max(initial=0.0) + np.abs(tile.exact).max(initial=0.0))
        for reach in tile.reaches:
            inside = (rows >= reach.rows.start) & (rows < reach.rows.stop)
            sizes = sizes + inside * terms(reach.patch) * reach.size
        return np.asarray(self.epsilon(tile.target) * sizes)

    def rounded(self, tile: Tile, values: Array) -> Array:
        """Round values that stand for a tile's as the output's are: to nearest, or as the recipe's seed has it."""
        dtype = tile.target.dtype
        if not tile.target.is_drawn:
            return rounded(dtype, values)
        return rounded_by(self.numbers(tile), dtype, values)

    def numbers(self, tile: Tile) -> Numbers:
        """Draw again, by SplitMix64, the numbers of 62 bits that decide where a tile's values go."""
        seed = self.plan.sources.recipe.output.rounding.seed
        digest = hashlib.blake2b(f"{seed}/{tile.target.key}".encode(), digest_size=8).digest()
        first = tile.start * tile.base.shape[1] + 1
        place = np.arange(first, first + tile.base.size, dtype=np.uint64)
        state = np.frombuffer(digest, "<u8") + place * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return np.asarray((state ^ state >> np.uint64(31)) >> np.uint64(2)).reshape(tile.base.shape)

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
            tensors, scale = self.tensors(patch), self.scale(patch)
            loaded.append((number, patch, tensors, scale, _partial(patch, tensors, scale)))
        flipped: dict[int, Array] = {}
        for start in starts:
            stop = min(start + size, rows)
            base = self.files.rows(target.source, start, stop, columns)
            exact, changes = base.copy() if patches else base, []
            for number, patch, tensors, scale, partial in loaded:
                for here in (piece for span in patch.view.spans(target.key) if (piece := span.cut(start, stop))):
                    inner = slice(here.stored.start - start, here.stored.stop - start)
                    seen = exact if self.sequential else base
                    if patch.view.transpose:  # a product: it does not read the weight
                        if number not in flipped:
                            zeros = np.zeros((patch.view.rows, patch.view.columns))
                            whole = _place(patch, slice(0, patch.view.rows))
                            flipped[number] = _delta(patch, tensors, zeros, whole, scale).T
                        delta = flipped[number][here.own]
                    else:
                        delta = _delta(patch, tensors, _picked(patch, seen[inner]), _place(patch, here.own), scale)
                    delta = _widened(patch, delta)
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
            view, seen = patch.view, exact if self.sequential else base
            blocks = [_picked(patch, seen[region.key][region.start : region.stop]) for region in view.regions]
            weight = np.ascontiguousarray(blocks[0].T) if view.transpose else np.concatenate(blocks)
            tensors, scale = self.tensors(patch), self.scale(patch)
            changed = _delta(patch, tensors, weight, _place(patch, slice(0, view.rows)), scale)
            partial = _partial(patch, tensors, scale)
            if view.transpose:
                changed = changed.T
            if not step.summed and patch.kind.adds:
                own[patch.number] = np.ascontiguousarray(changed) / patch.strength
                continue
            for span in view.spans():
                delta = _widened(patch, changed[span.own])
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


def _partial(patch: Patch, tensors: Tensors, scale: float) -> float:
    """Bound the partial sums of a product by the lengths of its factors' rows and columns (Cauchy and Schwarz)."""
    if patch.kind.name not in PRODUCTS:
        return 0.0
    own = {slot: values for slot, values in tensors.items() if slot not in MAGNITUDES}
    place = _place(patch, slice(0, patch.view.rows))
    factor, left, right = PRODUCTS[patch.kind.name](own, place, scale)
    return abs(share(patch.kind.name, own, place) * factor) * longest(left) * longest(right.T)


def longest(rows: Array) -> float:
    """Return the length of the longest row."""
    return float(np.sqrt(np.einsum("ij,ij->i", rows, rows).max(initial=0.0)))


def terms(patch: Patch) -> int:
    """Count the terms of the sums that a patch's change takes, and what comes on top."""
    return 16 + patch.kind.summed_terms(patch.shapes, patch.view.shape) + 64 * patch.has_dora


def _by_row(scale: Array, weight: Array) -> Array:
    """Repeat scales of a tensor's own rows for the rows that patches count, of which it may have more."""
    return scale if len(scale) == 1 else np.repeat(scale, len(weight) // len(scale), axis=0)


def _picked(patch: Patch, rows: Array) -> Array:
    """Return what a patch's module has of stored rows."""
    return rows if patch.view.picked is None else rows[:, patch.view.chosen]


def _widened(patch: Patch, delta: Array) -> Array:
    """Put what a patch's module has of stored rows in its place among the rest, which does not change."""
    if patch.view.picked is None:
        return delta
    wide = np.zeros((len(delta), patch.view.width))
    wide[:, patch.view.chosen] = delta
    return wide


def _place(patch: Patch, rows: slice) -> Place:
    return PlaceOf(rows, patch.view.shape, patch.settings, patch.semantics, patch.strength)


@contextmanager
def _refused(patch: Patch) -> Iterator[None]:
    """Turn what a formula finds wrong with the values of a patch's tensors into an error that names the module."""
    try:
        yield
    except ValueError as error:
        raise MatchError(f"{patch.module}: {str(error).splitlines()[0]}") from None


def _delta(patch: Patch, tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    if patch.kind.name not in FORMULAS:
        raise SurroundingsError(
            f"verification has no formula for {patch.kind.title}", "Add one to lorabake/reference/formulas/."
        )
    with _refused(patch):
        updated = changed(patch.kind.name, tensors, weight, place, scale)
    if updated.shape != weight.shape:
        found, wanted = (" × ".join(map(str, each)) for each in (updated.shape, weight.shape))
        raise MatchError(f"{patch.module}: its formula gives {found}, and the weight's rows are {wanted}")
    delta = updated - weight
    delta *= share(patch.kind.name, tensors, place)
    return delta


def rounded(dtype: str, values: Array) -> Array:
    """Round to the nearest value that a dtype has, ties to even; overflow is left as it is."""
    if DTYPES[dtype].mantissa is None:
        return values
    least = DTYPES[dtype].least
    unit = spacing(dtype, np.where(np.abs(values) < least, least, values))
    return np.asarray(np.rint(values / unit) * unit)


def rounded_by(numbers: Numbers, dtype: str, values: Array) -> Array:
    """Round to the neighbour away from zero where the distance from the other one, in units, exceeds number/2^62.

    For given numbers this never falls as the values rise.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        unit = spacing(dtype, values)
        part, lower = np.modf(np.abs(values) / unit)
        away = numbers < (part * 2.0**62).astype(np.uint64)
        sizes = np.minimum((lower + away) * unit, DTYPES[dtype].largest)
    return np.where(np.isfinite(values), np.copysign(sizes, values), values)
