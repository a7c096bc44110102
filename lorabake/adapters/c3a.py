"""C3A: ΔW is made of circulant blocks: ΔW[m·b + k, n·b + j] = w[m, n, (j − k) mod b] / in.

`c3a_kernel` is (out/b, in/b, b). Chen et al. 2024 (arXiv 2407.19342), with PEFT's scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Terms
from lorabake.adapters.shapes import Shapes, Tensors, matrix
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


class C3a(Delta):
    """Add circulant blocks."""

    name = "c3a"
    title = "C3A"
    required = frozenset({"c3a_kernel"})
    suffixes = ((r"\.c3a_kernel", "c3a_kernel"),)
    peft_type = "C3A"
    peft_fields = frozenset({"block_size", "block_size_pattern", "init_weights", "bias"})

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for blocks that tile the weight."""
        shape = shapes["c3a_kernel"]
        fits = len(shape) == 3 and (shape[0] * shape[2], shape[1] * shape[2]) == matrix(weight)
        return None if fits else f"its kernels are {shape}"

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for blocks of the size that the configuration names."""
        size = said.count("block_size")
        return {"c3a_kernel": (weight[0] // size, matrix(weight)[1] // size, size)} if size else {}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Turn each kernel round for these rows."""
        import torch

        kernel = tensors["c3a_kernel"]
        size = kernel.shape[2]
        row = torch.arange(rows.start, rows.stop, device=kernel.device)
        turned = (torch.arange(size, device=kernel.device)[None, :] - row[:, None]) % size  # (rows, b)
        index = turned[:, None, :].expand(-1, kernel.shape[1], -1)
        return kernel[row // size].gather(2, index).flatten(1) / weight.shape[1]


KINDS = (C3a(),)
