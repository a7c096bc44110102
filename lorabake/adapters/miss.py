"""MiSS (and Bone, its older name): one small block M is added to every group of r columns.

`miss_block` is (r, out), or (r, mini) repeated over the outputs: ΔW[o, i] = M[i mod r, o]. With PEFT's mode "bat" it
is (out/r, r, r), and each r × r block of the weight becomes W·M + W + M. Kang and Yin 2024 (arXiv 2409.15371).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Terms
from lorabake.adapters.shapes import Shapes, Tensors, matrix
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


class Miss(Delta):
    """Add one block to all groups of columns."""

    name = "miss"
    title = "MiSS"
    required = frozenset({"miss_block"})
    suffixes = ((r"\.(?:miss|bone)_block", "miss_block"),)
    peft_type = "MISS"
    whole_in = frozenset({"peft"})
    reads_weight = True
    peft_fields = frozenset({"r", "miss_dropout", "mini_r", "init_weights", "bias"})

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for a block whose outputs divide the weight's, or for blocks that tile it."""
        shape, (rows, columns) = shapes["miss_block"], matrix(weight)
        if len(shape) == 3:
            fits = shape[1] == shape[2] and shape[0] * shape[1] == rows and columns % shape[1] == 0
        else:
            fits = len(shape) == 2 and 0 < shape[0] <= columns and shape[1] > 0 and rows % shape[1] == 0
        return None if fits else f"its block is {shape}"

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for the block that the initialisation names: for all outputs, for some that repeat, or one a tile."""
        rank, start = said.count("r"), said.value("init_weights")
        outputs = said.count("mini_r") if start == "mini" else weight[0]
        if not rank or not outputs:
            return {}
        return {"miss_block": (weight[0] // rank, rank, rank) if start == "bat" else (rank, outputs)}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Lay the block out over these rows."""
        block = tensors["miss_block"]
        numbers = range(rows.start, rows.stop)
        if block.dim() == 2:
            size = block.shape[0]
            return block.T[[row % block.shape[1] for row in numbers]][:, [i % size for i in range(weight.shape[1])]]
        size = block.shape[1]
        own = block[[row // size for row in numbers]]  # (rows, r, r)
        added = block.flatten(0, 1)[list(numbers)]  # (rows, r)
        groups = weight.reshape(weight.shape[0], -1, size)
        return (groups @ own + added[:, None, :]).reshape(weight.shape)


KINDS = (Miss(),)
