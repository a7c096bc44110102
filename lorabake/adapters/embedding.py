"""LoRA on an embedding (PEFT): ΔW = alpha/r · (B·A)ᵀ with A (r, tokens) and B (width, r)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Product
from lorabake.adapters.settings import Terms
from lorabake.adapters.shapes import Shapes, Tensors, product_fault
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


AS_LINEAR = {"embedding_up": "down", "embedding_down": "up"}
"""Slots of an embedding's LoRA -> those of the same change as a linear layer's, which hold the other way round."""


class EmbeddingLora(Product):
    """Add the transposed product to the token embeddings."""

    name = "embedding_lora"
    title = "embedding LoRA"
    required = frozenset({"embedding_up", "embedding_down"})
    suffixes = (
        (r"\.lora_embedding_B(?:\.[^.]+)?", "embedding_up"),
        (r"\.lora_embedding_A(?:\.[^.]+)?", "embedding_down"),
    )
    length_axis = "column"
    on_embedding = True
    peft_type = "LORA"
    dora_in = frozenset({"peft"})

    def rank(self, shapes: Shapes) -> int:
        """Return the number of rows of A."""
        return shapes["embedding_down"][0]

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check the product's shape."""
        up, down = shapes["embedding_up"][::-1], shapes["embedding_down"][::-1]
        return product_fault(down, up, weight, "lora_embedding_A and lora_embedding_B, turned,")

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many rows of A as the rank."""
        rank = said.count("r")
        return {"embedding_down": (rank, weight[0])} if rank else {}

    def factors(self, tensors: Tensors, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
        """Exchange and turn the factors."""
        return tensors["embedding_down"].T, tensors["embedding_up"].T


KINDS = (EmbeddingLora(),)
