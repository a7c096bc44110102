"""HiRA: W' = W ⊙ (1 + B·A), a low-rank factor on every value; A is (r, in), B (out, r). Huang et al. 2025 (ICLR)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Terms
from lorabake.adapters.shapes import Shapes, Tensors, matrix, product_fault
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


class Hira(Delta):
    """Multiply by one plus a low-rank matrix."""

    name = "hira"
    title = "HiRA"
    required = frozenset({"hira_A", "hira_B"})
    suffixes = ((r"\.hira_A", "hira_A"), (r"\.hira_B", "hira_B"))
    peft_type = "HIRA"
    reads_weight = True
    peft_fields = frozenset({"r", "hira_dropout", "fan_in_fan_out", "init_weights", "rank_pattern", "bias"})

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check the product's shape."""
        return product_fault(shapes["hira_B"], shapes["hira_A"], weight, "hira_B and hira_A")

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many rows of A as the rank."""
        rank = said.count("r")
        return {"hira_A": (rank, matrix(weight)[1])} if rank else {}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Return W ⊙ B·A."""
        return weight * (tensors["hira_B"][rows] @ tensors["hira_A"])


KINDS = (Hira(),)
