"""What each adapter kind does to a weight, written out plainly in float64 with NumPy.

A second, independent account of the mathematics: nothing here is shared with `adapters/` or the executor, nothing
is fast, and each function reads like the formula in its paper. A test asks that every kind has one: it is a function
in the file of its shape, and a row in the table at that file's end.
"""

from __future__ import annotations

from lorabake.reference.formulas.deltas import DELTAS
from lorabake.reference.formulas.formula import Array, Formula, Place, Tensors, product
from lorabake.reference.formulas.laws import dora
from lorabake.reference.formulas.products import PRODUCTS
from lorabake.reference.formulas.spectra import SPECTRA
from lorabake.reference.formulas.turns import TURNS

FORMULAS: dict[str, Formula] = {
    **{kind: product(factors) for kind, factors in PRODUCTS.items()},
    **DELTAS,
    **TURNS,
    **SPECTRA,
}
"""By `Kind.name`."""


def changed(kind: str, tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Return what a kind makes of rows of a weight, with DoRA on top where there is a magnitude."""
    own = {slot: values for slot, values in tensors.items() if slot not in ("magnitude", "dora_scale")}
    updated = FORMULAS[kind](own, weight, place, scale)
    return updated if len(own) == len(tensors) else dora(tensors, weight, updated - weight, place)
