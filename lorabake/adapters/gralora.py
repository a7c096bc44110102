"""GraLoRA: a weight cut into k × k blocks, each with a LoRA of its own of rank r/k, plus an ordinary one if hybrid.

`gralora_A` is (k, in/k, r), `gralora_B` (k, r, out/k): the block of inputs n and outputs c is, with s = r/k,
Δ[o, i] = Σ_t A[n, i, c·s + t]·B[c, n·s + t, o]. All is scaled by alpha/(r + hybrid_r). Jung et al. 2025
(arXiv 2505.20355); PEFT's own layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors, product_fault
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch

GENERAL = frozenset({"gralora_A_general", "gralora_B_general"})


@dataclass(frozen=True, slots=True)
class GraLoraSettings(Settings):
    """Scale by alpha over both ranks."""

    scale: float


class GraLora(Delta):
    """Add low-rank blocks."""

    name = "gralora"
    title = "GraLoRA"
    required = frozenset({"gralora_A", "gralora_B"})
    optional = GENERAL
    suffixes = (
        (r"\.gralora_A", "gralora_A"),
        (r"\.gralora_B", "gralora_B"),
        (r"\.gralora_A_general(?:\.[^.]+)?\.weight", "gralora_A_general"),
        (r"\.gralora_B_general(?:\.[^.]+)?\.weight", "gralora_B_general"),
    )
    peft_type = "GRALORA"
    peft_fields = frozenset(
        {"r", "hybrid_r", "alpha", "gralora_k", "gralora_dropout", "fan_in_fan_out", "bias", "init_weights"}
    )

    def settings(self, said: Said, shapes: Shapes) -> GraLoraSettings:
        """Compute the scale."""
        alpha = said.number("alpha")
        hybrid = shapes["gralora_A_general"][0] if "gralora_A_general" in shapes else 0
        return GraLoraSettings(alpha / (shapes["gralora_A"][2] + hybrid))

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for blocks that cover the weight."""
        a, b = shapes["gralora_A"], shapes["gralora_B"]
        if len(a) != 3 or len(b) != 3 or a[0] != b[0] or a[2] != b[1] or not a[0] or a[2] % a[0]:
            return f"its blocks {a} and {b} do not go together"
        if len(weight) != 2 or (b[0] * b[2], a[0] * a[1]) != weight:
            return f"its blocks cover {b[0] * b[2]} × {a[0] * a[1]}"
        general = [shapes[slot] for slot in sorted(GENERAL & shapes.keys())]
        if len(general) == 1:
            return "only one factor of its general LoRA is there"
        return product_fault(general[1], general[0], weight, "the factors of its general LoRA") if general else None

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for blocks of the number and the rank that the configuration names, and for the general LoRA's rank."""
        count, rank = said.count("gralora_k"), said.count("r")
        general = said.count("hybrid_r")
        wanted: dict[str, tuple[int, ...]] = {}
        if count and rank:
            wanted = {"gralora_A": (count, weight[1] // count, rank), "gralora_B": (count, rank, weight[0] // count)}
        return wanted | ({"gralora_A_general": (general, weight[1])} if general else {})

    def prepare(self, tensors: Tensors, terms: TermsOf[GraLoraSettings]) -> Tensors:
        """Multiply all blocks out."""
        import torch

        a, b = tensors["gralora_A"], tensors["gralora_B"]
        k, share = a.shape[0], a.shape[2] // a.shape[0]
        ranks_of_inputs, ranks_of_outputs = (*a.shape[:2], k, share), (k, k, share, b.shape[2])
        cut = torch.einsum("nict,cnto->coni", a.reshape(ranks_of_inputs), b.reshape(ranks_of_outputs))
        whole = cut.reshape(terms.shape[0], terms.shape[1])
        if "gralora_A_general" in tensors:
            whole = whole + tensors["gralora_B_general"] @ tensors["gralora_A_general"]
        return {"delta": whole * terms.settings.scale}

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[GraLoraSettings]
    ) -> torch.Tensor:
        """Return these rows."""
        return tensors["delta"][rows]


KINDS = (GraLora(),)
