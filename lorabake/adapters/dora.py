"""DoRA: the direction comes from W + Δ, the length of each row (or column) from a trained magnitude.

W' = V · d/‖V‖ with V = W + scale·Δ and d the magnitude. PEFT's `magnitude` and LyCORIS's `dora_scale` of shape
(out, 1, …) hold one length an output row (on embeddings PEFT's is one a column); a `dora_scale` of shape (1, in, …)
one an input, whose norm is taken over outputs and kernel (OneTrainer, older LyCORIS). Liu et al. 2024 (arXiv
2402.09353).
It wraps whatever kind it sits on, so it is no kind of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, Literal

from lorabake.adapters.kind import MAGNITUDES, OF_KOHYA, PROGRAMS, Shapes, fits

if TYPE_CHECKING:
    import torch

Axis = Literal["row", "column"]

STRENGTH_INSIDE = ("peft", "lycoris")
"""Programs for which a magnitude at strength s is no mixture of W and W(1), and at strength 0 not W."""

LENGTHS_OF_THE_BASE = ("comfyui", "forge")
"""Programs that divide rows by their lengths before the change."""


def is_in(slots: Iterable[str]) -> bool:
    """Tell whether a module's slots hold a magnitude."""
    return any(slot in MAGNITUDES for slot in slots)


def axis(shapes: Shapes, weight: tuple[int, ...], of_magnitudes: Axis = "row") -> Axis | None:
    """Tell whether the lengths are those of rows or of columns; None if they fit neither, or are given twice.

    `of_magnitudes` are those of a `magnitude`, whose shape does not tell.
    """
    if len(weight) < 2 or shapes.keys() >= MAGNITUDES:
        return None
    if "magnitude" in shapes:
        shape, count = shapes["magnitude"], weight[of_magnitudes == "column"]
        return of_magnitudes if count == prod(shape) == max(shape, default=1) else None
    shape = shapes["dora_scale"]
    if fits(shape, weight[:1]):
        return "row"
    return "column" if fits(shape, (1, weight[1])) else None


def check(semantics: str, shapes: Shapes) -> None:
    """Raise ValueError for a magnitude that a program could not have read."""
    if semantics in OF_KOHYA and "dora_scale" not in shapes:
        raise ValueError(f"{PROGRAMS[semantics]} does not read magnitudes of this spelling, only a dora_scale")
    if semantics == "peft" and shapes.get("dora_scale", ())[:1] == (1,):
        raise ValueError("PEFT has magnitudes of rows alone")


def reads_columns(semantics: str, axis: Axis | None) -> bool:
    """Tell whether the norms are those of columns, for which it takes all rows."""
    return axis == "column" or semantics == "a1111"


def apply(
    weight: torch.Tensor,
    delta: torch.Tensor,
    magnitude: torch.Tensor,
    axis: Axis,
    shape: tuple[int, ...],
    semantics: str,
    strength: float,
) -> torch.Tensor:
    """Return what W (rows, columns) becomes: W(1), or W(s) in programs of `STRENGTH_INSIDE`.

    PEFT: (W + s·Δ)·d/‖W + s·Δ‖. LyCORIS: V·(1 + s·(d/‖V‖ − 1)). ComfyUI and Forge: V·d/‖W‖ by rows. AUTOMATIC1111:
    V·d/‖V‖ with norms of columns, whatever d is. The small numbers that some add to the norm are left out.
    """
    if semantics == "peft":
        return renorm(weight + strength * delta, magnitude, axis, shape)
    updated = weight + delta
    if semantics in LENGTHS_OF_THE_BASE and axis == "row":
        return updated * (magnitude.reshape(-1, 1) / weight.square().sum(dim=1, keepdim=True).sqrt())
    if semantics == "a1111" and axis == "row":
        return renorm(updated, magnitude.new_ones(shape[1]), "column", shape) * magnitude.reshape(-1, 1)
    result = renorm(updated, magnitude, axis, shape)
    return updated + strength * (result - updated) if semantics == "lycoris" else result


def renorm(updated: torch.Tensor, magnitude: torch.Tensor, axis: Axis, weight: tuple[int, ...]) -> torch.Tensor:
    """Give the rows or columns of V (rows, columns) the lengths in `magnitude`.

    `weight` is the module's shape (out, in[, kernel…]); rows may be fewer than out where `axis` is "row".
    """
    if axis == "row":
        norm = updated.square().sum(dim=1, keepdim=True).sqrt()
        return updated * (magnitude.reshape(-1, 1) / norm)
    cube = updated.reshape(updated.shape[0], weight[1], -1)
    norm = cube.square().sum(dim=(0, 2), keepdim=True).sqrt()
    return (cube * (magnitude.reshape(1, -1, 1) / norm)).reshape(updated.shape)
