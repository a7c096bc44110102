"""MLX-LM's LoRA: ΔW = scale·(a·b)ᵀ with a (in, rank) and b (rank, out), the scale said by its adapter_config.json.

Hu et al. 2021 (arXiv 2106.09685), stored the other way round than elsewhere; `m` is DoRA's magnitude, one a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Kind, Settings, Shapes, Tensors, Terms, matrix, product_fault, whole_number

if TYPE_CHECKING:
    import torch


class Mlx(Kind):
    """Add the product of two thin matrices, both stored transposed."""

    name = "mlx"
    title = "LoRA"
    required = frozenset({"lora_a", "lora_b"})
    suffixes = ((r"\.lora_a", "lora_a"), (r"\.lora_b", "lora_b"), (r"\.m", "magnitude"))
    low_rank = True
    programs = frozenset()

    def rank(self, shapes: Shapes) -> int:
        """Return the number of columns of `lora_a`."""
        return shapes["lora_a"][-1]

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check a (in, r) and b (r, out) against the weight."""
        return product_fault(shapes["lora_b"][::-1], shapes["lora_a"][::-1], weight, "lora_b and lora_a, turned,")

    def configured(self, config: Settings, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many columns of a as the rank."""
        rank = whole_number(config, "lora_parameters", "rank")
        return {"lora_a": (matrix(weight)[1], rank)} if rank else {}

    def factors(self, tensors: Tensors, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn both."""
        return tensors["lora_b"].T.contiguous(), tensors["lora_a"].T.contiguous()


KINDS = (Mlx(),)
