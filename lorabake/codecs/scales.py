"""Scales of a matrix: which values each scale is for, and the rotations that go with them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK = 128
"""Rows and columns of a block, unless the shape of the scales tells others."""

SCALE_DTYPES = ("F32", "BF16", "F16")
"""Dtypes of scales that are numbers."""

EXPONENTS = ("U8", "F8_E8M0")
"""Dtypes of scales that are powers of two (E8M0)."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Count the scales of a matrix, down and across, and the rows and columns that each is for."""

    down: int
    across: int
    high: int
    wide: int

    @property
    def title(self) -> str:
        """Name it in words: "row scales"."""
        if self.down * self.across == 1:
            return "one scale"
        if self.high > 1 and self.wide > 1:
            return "block scales"
        return "column scales" if self.high > 1 else "group scales" if self.across > 1 else "row scales"

    def spread(self, scale: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Repeat scales until they multiply a matrix (rows, columns) of this shape elementwise."""
        rows, columns = shape[0] if shape else 1, prod(shape[1:])
        tall = scale.reshape(self.down, self.across).repeat_interleave(self.high, 0)[:rows]
        return tall.repeat_interleave(self.wide, 1)[:, :columns] if self.across > 1 else tall

    def largest_of(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the largest magnitude of each block that has a scale, (down, across)."""
        import torch

        sizes = weight.abs().reshape(weight.shape[0] if weight.dim() else 1, -1)
        right, below = self.across * self.wide - sizes.shape[1], self.down * self.high - sizes.shape[0]
        sizes = torch.nn.functional.pad(sizes, (0, right, 0, below))
        return sizes.view(self.down, self.high, self.across, self.wide).amax(dim=(1, 3))


def grid(weight: tuple[int, ...], scale: tuple[int, ...]) -> Grid | None:
    """Derive from shapes what each scale is for: all, a row, a column, 128 by 128, or so many values of a row.

    Return None if the shapes do not tell.
    """
    rows, columns = weight[0] if weight else 1, prod(weight[1:])
    if prod(scale) == 1:
        return Grid(1, 1, rows, columns)
    if scale[:1] == weight[:1] and prod(scale) == rows:
        return Grid(rows, 1, 1, columns)
    if len(weight) != 2 or len(scale) != 2:
        return None
    down, across = scale
    high = _block(rows, down)
    wide = columns // across if high == 1 and columns % max(across, 1) == 0 else _block(columns, across)
    return Grid(down, across, high, wide) if high and wide else None


def _block(size: int, count: int) -> int:
    if count in (1, size):
        return size // max(count, 1)
    return BLOCK if -(-size // BLOCK) == count else 0


def next_powers(values: torch.Tensor) -> torch.Tensor:
    """Return the exponents of the smallest powers of two not below each value; at least −126, for E8M0."""
    import torch

    part, exponent = torch.frexp(values.cpu())  # some devices lack frexp
    return (exponent - (part == 0.5).int()).clamp(min=-126)


def powers_of(scale: torch.Tensor) -> torch.Tensor:
    """Return powers of two from exponents that are stored as whole numbers, 127 more than they are (E8M0)."""
    import torch

    return torch.ldexp(torch.ones_like(scale), scale.int() - 127)


def rotate(weight: torch.Tensor, group: int) -> torch.Tensor:
    """Multiply each `group` values of a row by the regular Hadamard matrix of that size, which is its own inverse.

    ConvRot (arXiv 2512.03673, theorem 3.3; comfy-kitchen) stores W·H of a linear layer and turns the inputs likewise.
    H is the Kronecker power of the 4 × 4 matrix of ones with −1 on the diagonal that rises, over the root of `group`.
    """
    import torch

    four = 0.5 - torch.eye(4, dtype=weight.dtype, device=weight.device).flip(0)
    matrix = four
    while len(matrix) < group:
        matrix = torch.kron(matrix, four)
    return (weight.reshape(-1, group) @ matrix).reshape(weight.shape)
