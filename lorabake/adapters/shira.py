"""SHiRA: a few values of a weight are trained: ΔW is sparse, `shira_weight` (n) at `shira_indices` (2, n).

Bhardwaj et al. 2024 (arXiv 2406.13175); PEFT's layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Terms
from lorabake.adapters.shapes import Shapes, Tensors
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


class Shira(Delta):
    """Add sparse values."""

    name = "shira"
    title = "SHiRA"
    required = frozenset({"shira_weight", "shira_indices"})
    integers = frozenset({"shira_indices"})
    suffixes = ((r"\.shira_weight", "shira_weight"), (r"\.shira_indices", "shira_indices"))
    peft_type = "SHIRA"
    peft_fields = frozenset({"r", "mask_type", "random_seed", "init_weights", "fan_in_fan_out"})

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for one row and one column a value."""
        values, places = shapes["shira_weight"], shapes["shira_indices"]
        if len(values) != 1 or places != (2, *values):
            return f"its values {values} and places {places} do not go together"
        return None if len(weight) == 2 else "it is for linear layers"

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many values as a LoRA of that rank would have."""
        rank = said.count("r")
        return {"shira_weight": (rank * sum(weight),)} if rank else {}

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Put the values in their places."""
        rows, columns = tensors["shira_indices"].long()
        for places, size in zip((rows, columns), terms.shape, strict=True):
            if not bool(((places >= 0) & (places < size)).all()):
                raise ValueError(f"its places reach to ({int(rows.max())}, {int(columns.max())}), out of the weight")
        dense = tensors["shira_weight"].new_zeros(terms.shape)
        return {"delta": dense.index_put_((rows, columns), tensors["shira_weight"], accumulate=True)}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Return these rows."""
        return tensors["delta"][rows]


KINDS = (Shira(),)
