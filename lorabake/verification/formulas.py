"""What each adapter kind does to a weight, written out plainly in float64 with NumPy.

A second, independent account of the mathematics: nothing here is shared with `adapters/` or the executor, nothing
is fast, and each function reads like the formula in its paper. A test asks that every kind has one.

A formula takes a module's tensors by slot (alpha apart), the scale alpha/rank, and `weight`: rows `rows` of the
module's weight as (rows, columns), columns = inputs × kernel. `shape` is the whole weight's (out, in[, kernel…]).
It returns what those rows become at strength 1. Kinds whose rows depend on each other get all rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Place:
    """Say which rows of a module's weight are asked for, and the shape of the whole."""

    rows: slice
    shape: tuple[int, ...]


Formula = Callable[[Tensors, Array, Place, float], Array]


def lora(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W + scale·B·A (arXiv 2106.09685).

    With a Tucker core M, ΔW[o,i,y,x] = Σ B[o,m]·M[m,n,y,x]·A[n,i] (arXiv 2309.14859).
    """
    up, down = tensors["up"], tensors["down"]
    left = up.reshape(up.shape[0], -1)[place.rows]
    if "mid" in tensors:
        mid = tensors["mid"]
        core = mid.reshape(mid.shape[0], mid.shape[1], -1)
        right = np.einsum("mnk,ni->mik", core, down.reshape(down.shape[0], -1))
    else:
        right = down
    delta = scale * (left @ right.reshape(left.shape[1], -1))
    return dora(tensors, weight + delta, place)


def dora(tensors: Tensors, updated: Array, place: Place) -> Array:
    """V·d/‖V‖ with V = W + ΔW, by rows or by columns (arXiv 2402.09353); V itself where there is no magnitude."""
    if "magnitude" in tensors:
        lengths = tensors["magnitude"].reshape(-1)[place.rows]
        return np.asarray(updated * (lengths / np.sqrt((updated**2).sum(axis=1)))[:, None])
    if "dora_scale" not in tensors:
        return updated
    scale = tensors["dora_scale"]
    if scale.shape[0] == place.shape[0] and scale.size == place.shape[0]:
        lengths = scale.reshape(-1)[place.rows]
        return np.asarray(updated * (lengths / np.sqrt((updated**2).sum(axis=1)))[:, None])
    cube = updated.reshape(place.shape[0], place.shape[1], -1)
    norms = np.sqrt((cube**2).sum(axis=(0, 2)))
    return np.asarray((cube * (scale.reshape(-1) / norms)[None, :, None]).reshape(updated.shape))


def lora_bias(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Return b + scale·β."""
    return weight + scale * tensors["bias"].reshape(-1, 1)[place.rows]


def mlx(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W + scale·(a·b)ᵀ, or with its magnitude."""
    delta = scale * np.einsum("ir,ro->oi", tensors["lora_a"], tensors["lora_b"][:, place.rows])
    return dora(tensors, weight + delta, place)


def whole(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Return T, whatever the weight was."""
    (value,) = tensors.values()
    return value.reshape(place.shape[0] if place.shape else 1, -1)[place.rows]


FORMULAS: dict[str, Formula] = {
    "lora": lora,
    "lora_bias": lora_bias,
    "mlx": mlx,
    "whole": whole,
    "whole_bias": whole,
}
"""By `Kind.name`."""
