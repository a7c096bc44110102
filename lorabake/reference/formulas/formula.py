"""What a formula takes and returns.

A formula takes a module's tensors by slot (alpha only where it is no scale), the scale alpha/rank, and `weight`: rows
`rows` of the module's weight as (rows, columns), columns = inputs × kernel. `shape` is the whole weight's
(out, in[, kernel…]).
It returns what those rows become at strength 1. Kinds whose rows depend on each other get all rows at once.
A kind that adds a number times a product of two matrices says the three, (rows, r) and (r, columns), and its formula
follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from lorabake.adapters.settings import Settings

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Tensors = Mapping[str, Array]


S_co = TypeVar("S_co", bound=Settings, covariant=True)


@dataclass(frozen=True, slots=True)
class PlaceOf(Generic[S_co]):
    """Say which rows of a module's weight are asked for, the shape of the whole, and the kind's settings.

    `semantics` names a program whose law is followed, with `strength` where that goes into it.
    """

    rows: slice
    shape: tuple[int, ...]
    settings: S_co
    semantics: str = ""
    strength: float = 1.0


Place = PlaceOf[Settings]
"""A place for a kind that needs no settings."""

Formula = Callable[[Tensors, Array, PlaceOf[Any], float], Array]
Factors = Callable[[Tensors, PlaceOf[Any], float], tuple[float, Array, Array]]


def product(factors: Factors) -> Formula:
    """Make the formula W + f·L·R of f, L and R."""

    def formula(tensors: Tensors, weight: Array, place: PlaceOf[Any], scale: float) -> Array:
        factor, left, right = factors(tensors, place, scale)
        return np.asarray(weight + factor * (left @ right))

    return formula


def sparse_rows(rows: Indices, columns: Indices, values: Array, weight: Array, place: Place) -> Array:
    """Return the rows asked for of a matrix that is zero but for some values."""
    check_places(rows, place.shape[0])
    check_places(columns, weight.shape[1])
    found, inside = np.zeros_like(weight), (rows >= place.rows.start) & (rows < place.rows.stop)
    np.add.at(found, (rows[inside] - place.rows.start, columns[inside]), values[inside])
    return found


def check_places(places: Indices, count: int) -> None:
    """Raise ValueError for a place that is none of `count`; NumPy would count negative ones from the end."""
    if ((places < 0) | (places >= count)).any():
        raise ValueError(f"it names place {places.max()} or {places.min()} of {count}")
