"""GraLoRA: a weight cut into k × k blocks, each with a LoRA of its own of rank r/k, plus an ordinary one if hybrid.

`gralora_A` is (k, in/k, r), `gralora_B` (k, r, out/k): the block of inputs n and outputs c is, with s = r/k,
Δ[o, i] = Σ_t A[n, i, c·s + t]·B[c, n·s + t, o]. All is scaled by alpha/(r + hybrid_r). Jung et al. 2025
(arXiv 2505.20355); PEFT's own layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, Terms, stated, whole_number
from lorabake.adapters.shapes import Shapes, Tensors, product_fault

if TYPE_CHECKING:
    import torch

GENERAL = frozenset({"gralora_A_general", "gralora_B_general"})


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

    def settings(self, config: Settings | None, module: str, shapes: Shapes) -> Settings:
        """Compute the scale."""
        alpha = stated(config, "alpha")
        hybrid = shapes["gralora_A_general"][0] if "gralora_A_general" in shapes else 0
        return {"scale": alpha / (shapes["gralora_A"][2] + hybrid)}

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

    def configured(self, config: Settings, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for blocks of the number and the rank that the configuration names, and for the general LoRA's rank."""
        count, rank = whole_number(config, "gralora_k"), whole_number(config, "r")
        general = whole_number(config, "hybrid_r")
        wanted: dict[str, tuple[int, ...]] = {}
        if count and rank:
            wanted = {"gralora_A": (count, weight[1] // count, rank), "gralora_B": (count, rank, weight[0] // count)}
        return wanted | ({"gralora_A_general": (general, weight[1])} if general else {})

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Multiply all blocks out."""
        import torch

        a, b = tensors["gralora_A"], tensors["gralora_B"]
        k, share = a.shape[0], a.shape[2] // a.shape[0]
        cut = torch.einsum("nict,cnto->coni", a.unflatten(2, (k, share)), b.unflatten(1, (k, share)))  # type: ignore[no-untyped-call]
        whole = cut.reshape(terms.shape[0], terms.shape[1])
        if "gralora_A_general" in tensors:
            whole = whole + tensors["gralora_B_general"] @ tensors["gralora_A_general"]
        return {"delta": whole * cast(float, terms.settings["scale"])}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Return these rows."""
        return tensors["delta"][rows]


KINDS = (GraLora(),)
