"""HiRA: W' = W ⊙ (1 + B·A), a low-rank factor on every value; A is (r, in), B (out, r). Huang et al. 2025 (ICLR)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Kind, Shapes, Tensors, Terms, matrix

if TYPE_CHECKING:
    import torch


class Hira(Kind):
    """Multiply by one plus a low-rank matrix."""

    name = "hira"
    title = "HiRA"
    required = frozenset({"hira_A", "hira_B"})
    suffixes = ((r"\.hira_A", "hira_A"), (r"\.hira_B", "hira_B"))
    peft_type = "HIRA"
    peft_fields = frozenset({"r", "hira_dropout", "fan_in_fan_out", "init_weights", "rank_pattern", "bias"})

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check the product's shape."""
        a, b = shapes["hira_A"], shapes["hira_B"]
        if len(a) != 2 or len(b) != 2 or b[1] != a[0]:
            return f"hira_A {a} and hira_B {b} disagree on the rank"
        return None if (b[0], a[1]) == matrix(weight) else f"its factor is {b[0]} × {a[1]}"

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Return W ⊙ B·A."""
        return weight * (tensors["hira_B"][rows] @ tensors["hira_A"])


KINDS = (Hira(),)
