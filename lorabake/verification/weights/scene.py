"""Collect the evidence on one wrong tensor: its difference from the base, the due one, and each LoRA's part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lorabake.adapters.shapes import matrix
from lorabake.matching.patches import Patch
from lorabake.reference.recompute import Recomputation
from lorabake.reference.rounding import rounded, spacing
from lorabake.reference.tiles import rounded_as
from lorabake.verification.weights.comparison import Comparison
from lorabake.verification.weights.projections import Sums, signs

if TYPE_CHECKING:
    Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scene:
    """Hold the wrong rows of one tensor: E, the rightly rounded E, each own patch's rows of it and D; the noise.

    With `vectors`, (columns, few), all of them are multiplied by these.
    """

    rows: NDArray[np.int64]
    total_rows: int
    found: Matrix
    due: Matrix
    own: tuple[tuple[Patch, Matrix], ...]
    noise: float
    vectors: Matrix | None = None


def scene_of(recomputation: Recomputation, result: Comparison) -> Scene:
    """Read the wrong rows of a tensor again; all of its rows if most are wrong."""
    rows = np.array(sorted(result.rows))
    count, columns = result.step.matrix(result.target.key)
    if len(rows) > count // 2:
        rows = np.arange(count)
    place = {row: index for index, row in enumerate(rows.tolist())}
    found, due = (np.zeros((len(rows), columns), np.float32) for _ in range(2))
    own: dict[int, Matrix] = {}
    noise = 0.0
    for tile in recomputation.tiles(result.step):
        if tile.target.key != result.target.key:
            continue
        here = [row for row in range(tile.start, tile.start + len(tile.base)) if row in place]
        if not here:
            continue
        inner, outer = np.array(here) - tile.start, np.array([place[row] for row in here])
        values = recomputation.files.rows(result.found, tile.start, tile.start + len(tile.base), columns)
        units = spacing(result.dtype, values[inner])
        noise += float(np.square(units).sum()) / (4 if result.is_drawn else 12)
        found[outer] = values[inner] - tile.base[inner]
        as_due = rounded_as(tile, tile.exact) if result.is_drawn else rounded(result.dtype, tile.exact)
        due[outer] = as_due[inner] - tile.base[inner]
        for change in tile.changes:
            delta = own.setdefault(change.number, np.zeros((len(rows), columns), np.float32))
            mine = (inner >= change.rows.start) & (inner < change.rows.stop)
            delta[outer[mine]] = change.delta[inner[mine] - change.rows.start] / change.patch.share
    patches = tuple((result.step.patches[index], delta) for index, delta in sorted(own.items()) if delta.any())
    return Scene(rows, count, found, due, patches, noise)


def scene_of_sums(sums: Sums) -> Scene:
    """Use the wrong rows of a tensor's random sums instead of the rows themselves."""
    rows, count = sums.wrong, len(sums.arrived)
    if len(rows) > count // 2:
        rows = np.arange(count)
    own: dict[int, Matrix] = {}
    for product, part in zip(sums.products, sums.parts, strict=True):
        whole = own.setdefault(product.number, np.zeros((count, part.shape[1]), np.float32))
        whole[product.rows] += part / product.patch.strength
    patches = tuple((sums.step.patches[number], whole[rows]) for number, whole in own.items() if whole[rows].any())
    found, due = (each[rows].astype(np.float32) for each in (sums.arrived, sums.due))
    noise = sums.noise * float(sums.units[rows].sum() / sums.units.sum())
    vectors = np.concatenate([*signs(sums.target.key, matrix(sums.target.shape)[1])], axis=1)
    return Scene(rows, count, found, due, patches, noise, vectors)


def dot(one: Matrix, other: Matrix) -> float:
    """Return an inner product, summed in float64."""
    return float(np.dot(one.ravel().astype(np.float64), other.ravel().astype(np.float64)))


def where(scene: Scene) -> str:
    """Name the wrong rows, unless all are wrong."""
    if len(scene.rows) == scene.total_rows:
        return ""
    first, last = int(scene.rows[0]), int(scene.rows[-1])
    if last - first + 1 == len(scene.rows):
        return f" (rows {first} to {last} of {scene.total_rows})" if first < last else f" (row {first})"
    return f" ({len(scene.rows)} of {scene.total_rows} rows, from {first} to {last})"
