"""AdaLoRA: ΔW = alpha/(r + 1e-5) · B·(A ⊙ E), a product with trained singular values E (kept, 1).

r is the rank that the training began with; of its singular values the file has those that were kept. alpha is PEFT's
`lora_alpha` itself, or r where that is not positive. Zhang et al. 2023 (arXiv 2303.10512).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.adapters.kind import Product
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors, product_fault
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class AdaLoraSettings(Settings):
    """Scale by `alpha` over the `rank` that the training began with."""

    alpha: float
    rank: float


class AdaLora(Product):
    """Add a product of three."""

    name = "adalora"
    title = "AdaLoRA"
    required = frozenset({"up", "down", "lora_E"})
    suffixes = ((r"\.lora_E", "lora_E"),)
    peft_type = "ADALORA"
    peft_fields = frozenset(
        {
            "r",
            "lora_alpha",
            "lora_dropout",
            "fan_in_fan_out",
            "bias",
            "target_r",
            "init_r",
            "tinit",
            "tfinal",
            "deltaT",
        }
        | {"beta1", "beta2", "orth_reg_weight", "total_step", "rank_pattern"}
    )

    def rank(self, shapes: Shapes) -> int:
        """Return the number of singular values."""
        return shapes["down"][0]

    def settings(self, said: Said, shapes: Shapes) -> AdaLoraSettings:
        """Read alpha and the first rank; refuse a count of singular values that the configuration does not know."""
        alpha, rank = said.number("lora_alpha"), said.number("init_r")
        patterns = said.value("rank_pattern")
        kept = patterns.get(f"{said.module}.lora_E") if isinstance(patterns, dict) else None
        count = sum(map(bool, kept)) if isinstance(kept, list) else rank
        if count != shapes["down"][0]:
            raise ValueError(f"it has {shapes['down'][0]} singular values, and adapter_config.json says {count:g}")
        if alpha <= 0 and count != rank:
            raise ValueError(
                "lora_alpha is not positive: PEFT then scales by another rank after loading than in training"
            )
        return AdaLoraSettings(alpha if alpha > 0 else rank, rank)

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check the product's shape."""
        if shapes["lora_E"] != (*shapes["down"][:1], 1):
            return f"lora_A {shapes['down']} and lora_E {shapes['lora_E']} disagree on the rank"
        return product_fault(shapes["up"], shapes["down"], weight, "lora_B and lora_A")

    def factors(self, tensors: Tensors, terms: TermsOf[AdaLoraSettings]) -> tuple[torch.Tensor, torch.Tensor]:
        """Put singular values and scale into the right-hand factor."""
        scale = terms.settings.alpha / (terms.settings.rank + 1e-5)
        return tensors["up"], tensors["down"] * tensors["lora_E"] * scale


KINDS = (AdaLora(),)
