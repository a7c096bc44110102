"""What kinds ask of the shapes of their tensors.

A weight is seen as a matrix (out, columns), columns = inputs × kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each slot's tensor."""

Tensors = Mapping[str, "torch.Tensor"]
"""The tensor of each slot."""


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Flatten a weight's shape to (rows, columns)."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Tell whether a shape is the one wanted, but for sides of 1 at the end: they do not change how values lie."""
    return all(size == other for size, other in zip_longest(shape, wanted, fillvalue=1))


def reads(down: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Tell whether the rows of a factor (rank, …) are as long as the weight's: input by kernel, or flattened."""
    return fits(down[1:], weight[1:]) or fits(down[1:], matrix(weight)[1:])


def product_fault(up: tuple[int, ...], down: tuple[int, ...], weight: tuple[int, ...], names: str) -> str | None:
    """Say why up (out, rank) times down (rank, columns) has not the weight's shape, or None if it has."""
    if len(up) != 2 or len(down) != 2:
        return f"{names} must be matrices, and are {up} and {down}"
    if up[1] != down[0]:
        return f"{names} disagree on the rank: {up[0]} × {up[1]} times {down[0]} × {down[1]}"
    return None if (up[0], down[1]) == matrix(weight) else f"its delta is {up[0]} × {down[1]}"
