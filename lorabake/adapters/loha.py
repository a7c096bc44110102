"""LoHa: ΔW = alpha/rank · (A₁·B₁) ⊙ (A₂·B₂), the Hadamard product of two low-rank matrices.

Aₖ (`hada_wk_a`) is (out, rank), Bₖ (`hada_wk_b`) is (rank, columns). With Tucker cores Tₖ (`hada_tk`, (rank, rank,
kernel…)) Aₖ is (rank, out), Bₖ (rank, in), and each factor is Σ_{m,n} Aₖ[m,o]·Tₖ[m,n,…]·Bₖ[n,i].
Hyeon-Woo et al. 2021, FedPara (arXiv 2108.06098); LyCORIS (arXiv 2309.14859). The scale counts once, as in training:
LyCORIS's own merge counts it twice.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.programs import EVERY, OF_KOHYA, core_unread
from lorabake.adapters.settings import Terms
from lorabake.adapters.shapes import Shapes, Tensors, fits, matrix
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


class Loha(Delta):
    """Add the elementwise product of two low-rank matrices."""

    name = "loha"
    title = "LoHa"
    required = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
    optional = frozenset({"hada_t1", "hada_t2", "alpha"})
    suffixes = tuple((rf"\.{slot}", slot) for slot in sorted(required | {"hada_t1", "hada_t2"}))
    peft_type = "LOHA"
    peft_fields = frozenset(
        {"r", "alpha", "rank_pattern", "alpha_pattern", "rank_dropout", "module_dropout", "use_effective_conv2d"}
        | {"init_weights"}
    )
    programs = EVERY
    dora_in = OF_KOHYA

    def rank(self, shapes: Shapes) -> int:
        """Return the number of rows of B₁."""
        return shapes["hada_w1_b"][0]

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check both products against the weight."""
        if ("hada_t1" in shapes) != ("hada_t2" in shapes):
            return "only one of its two Tucker cores is there"
        for k in "12":
            left, right, core = shapes[f"hada_w{k}_a"], shapes[f"hada_w{k}_b"], shapes.get(f"hada_t{k}")
            if len(left) != 2 or len(right) != 2 or (core is not None and len(core) < 3):
                return f"hada_w{k}_a {left} and hada_w{k}_b {right} must be matrices"
            if core is None:
                agree, made = left[1] == right[0], (left[0], right[1])
            else:
                agree, made = core[:2] == (left[0], right[0]), (left[1], right[1] * prod(core[2:]))
                if not fits(core[2:], weight[2:]):
                    return f"hada_t{k} {core} lays its kernel out otherwise than the weight"
            if not agree:
                return f"hada_w{k}_a {left} and hada_w{k}_b {right} disagree on the rank"
            if made != matrix(weight):
                return f"its delta is {made[0]} × {made[1]}"
        return None

    def unread(self, program: str, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask whether the program can fold the cores in."""
        return core_unread(program, weight) if "hada_t1" in shapes else None

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many rows of B as the rank."""
        rank = said.count("r")
        return {slot: (rank, *shapes[slot][1:]) for slot in ("hada_w1_b", "hada_w2_b")} if rank else {}

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Fold the cores: four factors, (out, rank) and (rank, columns) twice."""
        found: dict[str, torch.Tensor] = {}
        for k in "12":
            left, right = tensors[f"hada_w{k}_a"], tensors[f"hada_w{k}_b"]
            if f"hada_t{k}" in tensors:
                left, right = left.T, (right.T @ tensors[f"hada_t{k}"].flatten(2)).flatten(1)
            found |= {f"left{k}": left, f"right{k}": right}
        return found

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Multiply the two products, row by row."""
        first = tensors["left1"][rows] @ tensors["right1"]
        return first.mul_(tensors["left2"][rows] @ tensors["right2"]).mul_(terms.scale)


KINDS = (Loha(),)
