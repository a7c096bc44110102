"""What an adapter kind is: its slots, the shapes it asks for, and the change it makes to a weight.

Strength, dtype, device, slicing and accumulation are the executor's business. A weight is seen as a matrix
(out, columns), columns = inputs × kernel; tensors arrive in the compute dtype on the compute device.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]
Shapes = Mapping[str, tuple[int, ...]]


class Kind:
    """Define one adapter algorithm.

    `required` and `optional` name its slots, `suffixes` how files spell them: a pattern at a key's end, and the
    slot that it fills. `parameter` is what it changes in a module (`weight`, `bias`). A kind overrides `fault` and
    either `factors` (then `low_rank` is true) or `value`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    required: ClassVar[frozenset[str]]
    optional: ClassVar[frozenset[str]] = frozenset()
    suffixes: ClassVar[tuple[tuple[str, str], ...]]
    parameter: ClassVar[str] = "weight"
    low_rank: ClassVar[bool] = False

    def rank(self, shapes: Shapes) -> int:
        """Return the rank that alpha is divided by; 1 for a kind without one."""
        return 1

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Say why tensors of these shapes cannot change a weight of that shape, or None if they can."""
        raise NotImplementedError

    def factors(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (up, down), shaped (out, rank) and (rank, columns), whose product is the unscaled delta."""
        raise NotImplementedError

    def value(self, tensors: Tensors) -> torch.Tensor:
        """Return what the parameter becomes at strength 1, shaped (out, columns), whatever it was."""
        raise NotImplementedError


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Flatten a weight's shape to (rows, columns)."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)
