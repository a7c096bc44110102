"""MLX-LM's LoRA: ΔW = scale·(a·b)ᵀ with a (in, rank) and b (rank, out), the scale said by its adapter_config.json.

Hu et al. 2021 (arXiv 2106.09685), stored the other way round than elsewhere; `m` is DoRA's magnitude, one a row. On
embeddings ΔW = scale·a·b, with a (tokens, rank) and b (rank, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.adapters.kind import Product
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors, product_fault
from lorabake.keymap.peft import INPUTS
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class MlxSettings(Settings):
    """Say whether it is for an embedding."""

    is_embedding: bool


class Mlx(Product):
    """Add the product of two thin matrices, both stored transposed."""

    name = "mlx"
    title = "LoRA"
    required = frozenset({"lora_a", "lora_b"})
    suffixes = ((r"\.lora_a", "lora_a"), (r"\.lora_b", "lora_b"), (r"\.m", "magnitude"))
    programs = frozenset()

    def rank(self, shapes: Shapes) -> int:
        """Return the number of columns of `lora_a`."""
        return shapes["lora_a"][-1]

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check a (in, r) and b (r, out) against the weight, or a (tokens, r) and b (r, width)."""
        fault = product_fault(shapes["lora_b"][::-1], shapes["lora_a"][::-1], weight, "lora_b and lora_a, turned,")
        return fault and product_fault(shapes["lora_a"], shapes["lora_b"], weight, "lora_a and lora_b") and fault

    def settings(self, said: Said, shapes: Shapes) -> MlxSettings:
        """Tell an embedding by its name: a square one fits either way."""
        return MlxSettings(said.module.rpartition(".")[2] in INPUTS)

    def unsettled(self, settings: MlxSettings, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check the factors as the settings have them."""
        a, b = shapes["lora_a"], shapes["lora_b"]
        if settings.is_embedding:
            return product_fault(a, b, weight, "lora_a and lora_b of an embedding")
        return product_fault(b[::-1], a[::-1], weight, "lora_b and lora_a, turned,")

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many columns of a as the rank."""
        rank = said.count("lora_parameters", "rank")
        return {"lora_a": (shapes["lora_a"][0], rank)} if rank else {}

    def factors(self, tensors: Tensors, terms: TermsOf[MlxSettings]) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn both, but on embeddings."""
        if terms.settings.is_embedding:
            return tensors["lora_a"], tensors["lora_b"]
        return tensors["lora_b"].T.contiguous(), tensors["lora_a"].T.contiguous()


KINDS = (Mlx(),)
