"""MLX-LM's LoRA: ΔW = scale·(a·b)ᵀ with a (in, rank) and b (rank, out), the scale said by its adapter_config.json.

Hu et al. 2021 (arXiv 2106.09685), stored the other way round than elsewhere; `m` is DoRA's magnitude, one a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Kind, Shapes, Tensors, Terms, matrix

if TYPE_CHECKING:
    import torch


class Mlx(Kind):
    """Add the product of two thin matrices, both stored transposed."""

    name = "mlx"
    title = "LoRA"
    required = frozenset({"lora_a", "lora_b"})
    optional = frozenset({"magnitude"})
    suffixes = ((r"\.lora_a", "lora_a"), (r"\.lora_b", "lora_b"), (r"\.m", "magnitude"))
    low_rank = True

    def rank(self, shapes: Shapes) -> int:
        """Return the number of columns of `lora_a`."""
        return shapes["lora_a"][-1]

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check a (in, r) and b (r, out) against the weight."""
        first, second = shapes["lora_a"], shapes["lora_b"]
        if len(first) != 2 or len(second) != 2:
            return f"lora_a {first} and lora_b {second} must have two dimensions"
        if first[1] != second[0]:
            return f"lora_a {first} and lora_b {second} disagree on the rank"
        delta = second[1], first[0]
        return None if delta == matrix(weight) else f"its delta is {delta[0]} × {delta[1]}"

    def factors(self, tensors: Tensors, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn both."""
        return tensors["lora_b"].T.contiguous(), tensors["lora_a"].T.contiguous()


KINDS = (Mlx(),)
