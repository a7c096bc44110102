"""LoRA's own bias (PEFT's `lora_bias`): b' = b + scale·β, with the scale of the LoRA it belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Product
from lorabake.adapters.settings import Terms
from lorabake.adapters.shapes import Shapes, Tensors, fits

if TYPE_CHECKING:
    import torch


class LoraBias(Product):
    """Add β (out) to the module's bias."""

    name = "lora_bias"
    title = "LoRA bias"
    required = frozenset({"bias", "up", "down"})
    optional = frozenset({"alpha"})
    suffixes = ((r"\.lora_B(?:\.[^.]+)?\.bias", "bias"),)
    parameter = "bias"
    programs = frozenset({"peft", "comfyui", "forge"})  # the last two in Black Forest Labs' control LoRAs

    def rank(self, shapes: Shapes) -> int:
        """Return the rank of the LoRA that the bias belongs to."""
        return shapes["down"][0]

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for one value an output."""
        return None if fits(shapes["bias"], weight) else f"its bias is {shapes['bias']}"

    def factors(self, tensors: Tensors, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
        """Write β as the product of itself and one."""
        bias = tensors["bias"].reshape(-1, 1)
        return bias, bias.new_ones(1, 1)


KINDS = (LoraBias(),)
