"""Super-Tuning: a few values of a weight are trained, and a product beside them, if the configuration says r.

`supertuning_values` (n) lie at `supertuning_indices` (n), counted along the rows: ΔW = S + lora_alpha/r · B·A.
arXiv 2607.09287; PEFT's layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors, product_fault
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch

PRODUCT = frozenset({"super_A", "super_B"})


@dataclass(frozen=True, slots=True)
class SupertuningSettings(Settings):
    """Scale the product."""

    scale: float


class Supertuning(Delta):
    """Add sparse values and a product."""

    name = "supertuning"
    title = "Super-Tuning"
    required = frozenset({"super_values"})
    optional = PRODUCT | {"super_places"}
    integers = frozenset({"super_places"})
    suffixes = (
        (r"\.supertuning_values(?:\.[^.]+)?", "super_values"),
        (r"\.supertuning_indices(?:\.[^.]+)?", "super_places"),
        (r"\.supertuning_lora_A(?:\.[^.]+)?\.weight", "super_A"),
        (r"\.supertuning_lora_B(?:\.[^.]+)?\.weight", "super_B"),
    )
    peft_type = "SUPERTUNING"
    peft_fields = frozenset(
        {"r", "lora_alpha", "lora_dropout", "sparsity", "select_top", "save_precomputed_indices", "init_weights"}
    )

    def settings(self, said: Said, shapes: Shapes) -> SupertuningSettings:
        """Read the product's scale, and ask for the places: found again, they depend on the last bit of the base."""
        if "super_places" not in shapes:
            raise ValueError(
                "its places are not in the file (save_precomputed_indices was off)\n"
                "Load it with PEFT on its base, set save_precomputed_indices, and save it again."
            )
        scale = said.number("lora_alpha") / shapes["super_A"][0] if "super_A" in shapes else 1.0
        return SupertuningSettings(scale)

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for one place a value, and for both factors or none."""
        values, places = shapes["super_values"], shapes.get("super_places", shapes["super_values"])
        if len(weight) != 2:
            return "it is for linear layers"
        if len(values) != 1 or places != values or values[0] > prod(weight):
            return f"its values {values} and places {places} do not go together"
        if PRODUCT & shapes.keys() and not shapes.keys() >= PRODUCT:
            return "only one factor of its product is there"
        if "super_A" in shapes:
            return product_fault(shapes["super_B"], shapes["super_A"], weight, "its factors")
        return None

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for the share of values that the configuration leaves, and for the product's rank."""
        sparsity, rank = said.value("sparsity"), said.count("r")
        wanted: dict[str, tuple[int, ...]] = {"super_A": (rank, weight[1])} if rank else {}
        if isinstance(sparsity, (int, float)) and 0 <= sparsity < 1:
            wanted["super_values"] = (int(prod(weight) * (1 - sparsity)),)
        return wanted

    def prepare(self, tensors: Tensors, terms: TermsOf[SupertuningSettings]) -> Tensors:
        """Put the values in their places; the product takes its scale."""
        places, count = tensors["super_places"].long(), prod(terms.shape)
        if not bool(((places >= 0) & (places < count)).all()):
            raise ValueError("its places are out of the weight")
        dense = tensors["super_values"].new_zeros(count).index_add_(0, places, tensors["super_values"])
        found = {"dense": dense.view(terms.shape)}
        if "super_A" in tensors:
            found |= {"up": tensors["super_B"], "down": tensors["super_A"] * terms.settings.scale}
        return found

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[SupertuningSettings]
    ) -> torch.Tensor:
        """Return these rows of both."""
        sparse = tensors["dense"][rows]
        return sparse + tensors["up"][rows] @ tensors["down"] if "up" in tensors else sparse


KINDS = (Supertuning(),)
