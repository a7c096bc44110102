"""DeLoRA: ΔW = B·diag(λ/(r·‖aᵢ‖·‖bᵢ‖))·A ⊙ n: strength and direction apart.

A (r, in) has rows aᵢ, B (out, r) columns bᵢ, lengths below 1e-4 count as that; n (in) holds the lengths that the
base's columns had. Bini et al. 2025 (arXiv 2503.18225), as in PEFT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Product
from lorabake.adapters.settings import Terms
from lorabake.adapters.shapes import Shapes, Tensors, product_fault
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch

SLOTS = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")


class DeLora(Product):
    """Add a product of bounded strength."""

    name = "delora"
    title = "DeLoRA"
    required = frozenset(SLOTS)
    suffixes = tuple((rf"\.{slot}", slot) for slot in SLOTS)
    peft_type = "DELORA"
    peft_fields = frozenset(
        {"r", "delora_lambda", "module_dropout", "init_weights", "rank_pattern", "lambda_pattern", "bias"}
    )

    def rank(self, shapes: Shapes) -> int:
        """Return the number of rows of A."""
        return shapes["delora_A"][0]

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check the product's shape, and that lengths are there for all inputs."""
        fault = product_fault(shapes["delora_B"], shapes["delora_A"], weight, "delora_B and delora_A")
        lengths, strength = shapes["delora_w_norm"], shapes["delora_lambda"]
        if fault is None and strength != (1,):
            return f"its delora_lambda is {strength}, not (1,)"
        return fault or (None if lengths == weight[1:] else f"it has the lengths of {lengths} inputs")

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many rows of A as the rank."""
        rank = said.count("r")
        return {"delora_A": (rank, weight[1])} if rank else {}

    def factors(self, tensors: Tensors, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale B's columns and A's columns."""
        a, b = tensors["delora_A"], tensors["delora_B"]
        lengths = a.norm(dim=1).clamp(min=1e-4) * b.norm(dim=0).clamp(min=1e-4)
        return b * (tensors["delora_lambda"] / (len(a) * lengths)), a * tensors["delora_w_norm"]


KINDS = (DeLora(),)
