"""Round values to a dtype, in float64: to the nearest neighbour, or by drawn numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lorabake.reference.formulas.formula import Array
from lorabake.tensors.dtypes import DTYPES, mantissa_of

Numbers = NDArray[np.uint64]
"""Random numbers of 62 bits."""


def spacing(dtype: str, values: Array) -> Array:
    """Return the distance between a dtype's neighbouring numbers at each value."""
    mantissa, least = mantissa_of(dtype), DTYPES[dtype].least
    if not DTYPES[dtype].floating:
        return np.ones_like(values)
    powers = np.empty_like(values)
    np.bitwise_and(values.view(np.uint64), np.uint64(0x7FF0000000000000), out=powers.view(np.uint64))
    np.maximum(powers, least, out=powers)
    powers *= 2.0**-mantissa
    return powers


def rounded(dtype: str, values: Array) -> Array:
    """Round to the nearest value of a dtype, ties to even; leave overflow as it is."""
    if DTYPES[dtype].mantissa is None:
        return values
    least = DTYPES[dtype].least
    unit = spacing(dtype, np.where(np.abs(values) < least, least, values))
    return np.asarray(np.rint(values / unit) * unit)


def rounded_by(numbers: Numbers, dtype: str, values: Array) -> Array:
    """Round away from zero if the distance from the neighbour nearer to zero, in units, exceeds number/2^62.

    For fixed random numbers, a larger value never gets a smaller result.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        unit = spacing(dtype, values)
        part, lower = np.modf(np.abs(values) / unit)
        away = numbers < (part * 2.0**62).astype(np.uint64)
        sizes = np.minimum((lower + away) * unit, DTYPES[dtype].largest)
    return np.where(np.isfinite(values), np.copysign(sizes, values), values)
