"""LoRA on an embedding (PEFT): ΔW = alpha/r · (B·A)ᵀ with A (r, tokens) and B (width, r)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Kind, Shapes, Tensors, Terms, matrix

if TYPE_CHECKING:
    import torch


class EmbeddingLora(Kind):
    """Add the transposed product to the token embeddings."""

    name = "embedding_lora"
    title = "embedding LoRA"
    required = frozenset({"embedding_up", "embedding_down"})
    suffixes = (
        (r"\.lora_embedding_B(?:\.[^.]+)?", "embedding_up"),
        (r"\.lora_embedding_A(?:\.[^.]+)?", "embedding_down"),
    )
    low_rank = True
    peft_type = "LORA"

    def rank(self, shapes: Shapes) -> int:
        """Return the number of rows of A."""
        return shapes["embedding_down"][0]

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check the product's shape."""
        up, down = shapes["embedding_up"], shapes["embedding_down"]
        if len(up) != 2 or len(down) != 2 or up[1] != down[0]:
            return f"lora_embedding_A {down} and lora_embedding_B {up} disagree on the rank"
        return None if (down[1], up[0]) == matrix(weight) else f"its delta is {down[1]} × {up[0]}"

    def factors(self, tensors: Tensors, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
        """Exchange and turn the factors."""
        return tensors["embedding_down"].T, tensors["embedding_up"].T


KINDS = (EmbeddingLora(),)
