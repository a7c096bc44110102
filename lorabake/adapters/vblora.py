"""VB-LoRA: the factors of a LoRA are put together from vectors of one bank that all modules share.

The bank is (h, v). `vblora_logits_A` (r, in/v, h) and `vblora_logits_B` (out/v, r, h) choose for each piece the
`topk` likeliest vectors, mixed by the softmax of their logits: ΔW = B·A. A file may hold the chosen ones alone: their
numbers, and all weights but the last, which is what is left to 1. Li et al. 2024 (arXiv 2405.15179); PEFT's layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabake.adapters.kind import Product
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class VbLoraSettings(Settings):
    """Say how many vectors are mixed."""

    topk: int


class VbLora(Product):
    """Add a product of factors from a bank of vectors."""

    name = "vblora"
    title = "VB-LoRA"
    required = frozenset({"logits_A", "logits_B"})
    optional = frozenset({"bank"})
    suffixes: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"\.vblora_logits_A", "logits_A"),
        (r"\.vblora_logits_B", "logits_B"),
    )
    shared: ClassVar[tuple[tuple[str, str, str], ...]] = (
        (r"base_model\.vblora_vector_bank(?:\.[^.]+)?", "bank", "logits_A"),
    )
    chooser: ClassVar[str] = "logits_A"
    peft_type = "VBLORA"
    peft_fields = frozenset(
        {"r", "num_vectors", "vector_length", "topk", "save_only_topk_weights", "vblora_dropout", "fan_in_fan_out"}
        | {"bias", "init_vector_bank_bound", "init_logits_std"}
    )

    def rank(self, shapes: Shapes) -> int:
        """Return the rank of the product."""
        return shapes["logits_A"][0]

    def settings(self, said: Said, shapes: Shapes) -> VbLoraSettings:
        """Read how many vectors are mixed."""
        topk = said.integer("topk")
        if topk is None or not 0 < topk <= shapes["logits_A"][2]:
            raise ValueError("no adapter_config.json says topk")
        return VbLoraSettings(topk)

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for pieces that cover the weight's sides."""
        a, b, bank = shapes["logits_A"], shapes["logits_B"], shapes.get("bank")
        if bank is None or len(bank) != 2:
            return f"its vector bank is {'not in the file' if bank is None else bank}"
        if len(a) != 3 or len(b) != 3 or a[0] != b[1] or a[2] != b[2] or a[2] != bank[0]:
            return f"its logits {a} and {b} do not go with a bank of {bank[0]}"
        return _covers(a, b, bank, weight)

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for a bank of the size that the configuration names, and for the rank."""
        rank, count, length = (said.count(name) for name in ("r", "num_vectors", "vector_length"))
        if not (rank and count and length):
            return {}
        chosen = {self.chooser: (rank, *shapes[self.chooser][1:])}
        return {"bank": (count, length), **chosen}

    def factors(self, tensors: Tensors, terms: TermsOf[VbLoraSettings]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix the vectors."""
        mixed = []
        for logits in (tensors["logits_A"], tensors["logits_B"]):
            best, places = logits.topk(terms.settings.topk, dim=-1)
            mixed.append((best.softmax(dim=-1)[..., None] * tensors["bank"][places]).sum(-2))
        return _product(*mixed)


class ChosenVbLora(VbLora):
    """Add a product of factors from a bank of vectors, of which the chosen ones alone are named."""

    name = "vblora_topk"
    required = frozenset({"indices_A", "weights_A", "indices_B", "weights_B"})
    integers = frozenset({"indices_A", "indices_B"})
    suffixes = tuple(
        (rf"\.vblora_logits_{side}_topk_{what}", f"{what}_{side}") for side in "AB" for what in ("indices", "weights")
    )
    shared = ((r"base_model\.vblora_vector_bank(?:\.[^.]+)?", "bank", "indices_A"),)
    chooser = "indices_A"
    peft_type = ""

    def rank(self, shapes: Shapes) -> int:
        """Return the rank of the product."""
        return shapes["indices_A"][0]

    def settings(self, said: Said, shapes: Shapes) -> VbLoraSettings:
        """Count the vectors that are mixed: the tensors tell."""
        return VbLoraSettings(shapes["indices_A"][2])

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for pieces that cover the weight's sides."""
        a, b, bank = shapes["indices_A"], shapes["indices_B"], shapes.get("bank")
        if bank is None or len(bank) != 2:
            return f"its vector bank is {'not in the file' if bank is None else bank}"
        if len(a) != 3 or len(b) != 3 or a[0] != b[1] or a[2] != b[2]:
            return f"its choices {a} and {b} do not go together"
        if any(shapes[f"weights_{side}"] != (*shapes[f"indices_{side}"][:2], a[2] - 1) for side in "AB"):
            return "it has not one weight less than vectors chosen"
        return _covers(a, b, bank, weight)

    def factors(self, tensors: Tensors, terms: TermsOf[VbLoraSettings]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix the vectors."""
        import torch

        mixed = []
        for side in "AB":
            weights = tensors[f"weights_{side}"]
            weights = torch.cat((weights, 1 - weights.sum(-1, keepdim=True)), dim=-1)
            numbers = tensors[f"indices_{side}"].long()
            if not bool(((numbers >= 0) & (numbers < len(tensors["bank"]))).all()):
                raise ValueError(f"it names vectors that its bank of {len(tensors['bank'])} has not")
            mixed.append((weights[..., None] * tensors["bank"][numbers]).sum(-2))
        return _product(*mixed)


def _covers(a: tuple[int, ...], b: tuple[int, ...], bank: tuple[int, ...], weight: tuple[int, ...]) -> str | None:
    out, inputs = b[0] * bank[1], a[1] * bank[1]
    return None if weight == (out, inputs) else f"its delta is {out} × {inputs}"


def _product(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay A (r, in/v, v) and B (out/v, r, v) out as matrices (out, r) and (r, in)."""
    return b.transpose(1, 2).flatten(0, 1), a.flatten(1)


KINDS = (VbLora(), ChosenVbLora())
