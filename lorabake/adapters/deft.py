"""DEFT: a subspace of the outputs is taken out of the weight, and something else put in.

P (out, r) spans the subspace, R (r, in) is put in: ΔW = Q·(s·R − Cᵀ·W) with Q = P and C = relu(P), or, with
`decomposition_method: qr`, both the orthogonal factor of P. s is alpha/r where the configuration says alpha, else 1;
with `para` nothing is put in. PEFT's layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DeftSettings(Settings):
    """Project by an orthogonal factor or by relu, and put in rows times a scale."""

    orthogonal: bool
    scale: float


class Deft(Delta):
    """Exchange a subspace of the outputs."""

    name = "deft"
    title = "DEFT"
    required = frozenset({"deft_P"})
    optional = frozenset({"deft_R"})
    suffixes = ((r"\.deft_P(?:\.[^.]+)?", "deft_P"), (r"\.deft_R(?:\.[^.]+)?", "deft_R"))
    by_rows = False
    peft_type = "DEFT"
    whole_in = frozenset({"peft"})
    reads_weight = True
    peft_fields = frozenset(
        {"r", "alpha", "para", "decomposition_method", "deft_dropout", "init_scale", "init_weights", "fan_in_fan_out"}
        | {"bias"}
    )

    def rank(self, shapes: Shapes) -> int:
        """Return the number of directions."""
        return shapes["deft_P"][1]

    def settings(self, said: Said, shapes: Shapes) -> DeftSettings:
        """Read how the projector is made, and the scale of what is put in."""
        method = said.value("decomposition_method")
        if method not in ("relu", "qr"):
            raise ValueError("no adapter_config.json says decomposition_method")
        if said.is_set("para") == ("deft_R" in shapes):
            raise ValueError("its tensors and para in adapter_config.json contradict each other")
        alpha = said.number("alpha") if said.is_set("alpha") else self.rank(shapes)
        return DeftSettings(method == "qr", alpha / self.rank(shapes))

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for directions as long as a column, and a row for each of them."""
        p, r = shapes["deft_P"], shapes.get("deft_R")
        if len(weight) != 2 or len(p) != 2 or p[0] != weight[0] or (r is not None and r != (p[1], weight[1])):
            return f"its directions {p} and rows {r} are for another size"
        return None

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many directions as the rank."""
        rank = said.count("r")
        return {"deft_P": (weight[0], rank), "deft_R": (rank, weight[1])} if rank else {}

    def prepare(self, tensors: Tensors, terms: TermsOf[DeftSettings]) -> Tensors:
        """Make the projector's two factors, and scale what is put in."""
        import torch

        p = tensors["deft_P"]
        left = torch.linalg.qr(p).Q if terms.settings.orthogonal else p
        found = {"left": left, "right": left if terms.settings.orthogonal else p.relu()}
        if "deft_R" in tensors:
            found["rows"] = tensors["deft_R"] * terms.settings.scale
        return found

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[DeftSettings]
    ) -> torch.Tensor:
        """Take the subspace out, and put the rows in."""
        taken = tensors["right"].T @ weight
        return tensors["left"] @ (tensors["rows"] - taken if "rows" in tensors else -taken)


KINDS = (Deft(),)
