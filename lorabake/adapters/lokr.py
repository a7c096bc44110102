"""LoKr: ΔW = scale · W₁ ⊗ W₂, a Kronecker product whose factors may themselves be of low rank.

W₁ is `lokr_w1` or `lokr_w1_a`·`lokr_w1_b`; W₂ is `lokr_w2`, `lokr_w2_a`·`lokr_w2_b`, or, with the core `lokr_t2`
(rank, rank, kernel…), Σ_{m,n} w2_a[m,o]·t2[m,n,…]·w2_b[n,i]. W₂ is flattened to (o₂, rest) before the product, which
holds for today's files and for those of March 2023, whose W₁ spans a part of the kernel.
The scale is alpha/rank if a factor is decomposed, and 1 if both are whole, whatever alpha says (LyCORIS, arXiv
2309.14859); PEFT's is alpha/rank always. LyCORIS's own merge counts it twice.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.programs import EVERY, OF_KOHYA, PROGRAMS, core_unread
from lorabake.adapters.settings import NO_SETTINGS, Settings, Terms
from lorabake.adapters.shapes import Shapes, Tensors, fits, matrix
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch

W1 = (frozenset({"lokr_w1"}), frozenset({"lokr_w1_a", "lokr_w1_b"}))
W2 = (
    frozenset({"lokr_w2"}),
    frozenset({"lokr_w2_a", "lokr_w2_b"}),
    frozenset({"lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
)


class Lokr(Delta):
    """Add the Kronecker product of two matrices."""

    name = "lokr"
    title = "LoKr"
    required = frozenset()
    optional = frozenset().union(*W1, *W2, {"alpha"})
    suffixes = tuple((rf"\.{slot}", slot) for slot in sorted(frozenset().union(*W1, *W2)))
    peft_type = "LOKR"
    peft_fields = frozenset(
        {"r", "alpha", "rank_pattern", "alpha_pattern", "rank_dropout", "module_dropout", "use_effective_conv2d"}
        | {"init_weights", "decompose_both", "decompose_factor", "rank_dropout_scale"}
    )
    programs = EVERY
    dora_in = OF_KOHYA

    def claims(self, slots: frozenset[str]) -> frozenset[str]:
        """Ask for each factor in one of its forms."""
        first = frozenset(slot for slot in slots if slot.startswith("lokr_w1"))
        second = frozenset(slot for slot in slots if slot.startswith(("lokr_w2", "lokr_t2")))
        return slots & (self.optional | self.lengths) if first in W1 and second in W2 else frozenset()

    def rank(self, shapes: Shapes) -> int:
        """Return the rank of the decomposed factor (of W₂ if both are, as ComfyUI does); 1 if none is."""
        for slot in ("lokr_w2_b", "lokr_w1_b"):
            if slot in shapes:
                return shapes[slot][0]
        return 1

    def told_rank(self, shapes: Shapes, weight: tuple[int, ...] | None = None) -> int | None:
        """Return the rank of the decomposed factor, None where both are whole."""
        return self.rank(shapes) if "lokr_w1_b" in shapes or "lokr_w2_b" in shapes else None

    def scale(self, alpha: float, shapes: Shapes) -> float:
        """Ignore alpha where both factors are whole."""
        decomposed = "lokr_w1_b" in shapes or "lokr_w2_b" in shapes
        return alpha / self.rank(shapes) if decomposed else 1.0

    def settings(self, said: Said, shapes: Shapes) -> Settings:
        """Refuse what PEFT lays out in a way of its own."""
        if said.is_given and len(shapes.get("lokr_w2", ())) == 3:
            raise ValueError(
                "PEFT trains a whole lokr_w2 of a 1-D convolution in another order than a Kronecker product's"
            )
        return NO_SETTINGS

    def unread(self, program: str, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Name what no one can have meant: three programs scramble a whole W₂ of 1-D and 3-D convolutions."""
        if "lokr_t2" in shapes and (why := core_unread(program, weight)):
            return why
        if len(shapes.get("lokr_w2", ())) in (3, 5) and program in ("comfyui", "forge", "a1111"):
            return f"{PROGRAMS[program]} scrambles LoKr with a whole lokr_w2 on 1-D and 3-D convolutions"
        return None

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check that the product has the weight's rows and columns."""
        sizes, kernel = [], weight[2:]
        for k in "12":
            left, right = shapes.get(f"lokr_w{k}_a"), shapes.get(f"lokr_w{k}_b")
            core = shapes.get(f"lokr_t{k}")
            if left is None or right is None:
                whole = shapes[f"lokr_w{k}"]
                if len(whole) != 2 and (k == "1" or len(whole) < 2 or not fits(whole[2:], kernel)):
                    return f"lokr_w{k} is {whole}"
                sizes.append(matrix(whole))
            elif (len(left), len(right)) != (2, 2):
                return f"lokr_w{k}_a {left} and lokr_w{k}_b {right} must be matrices"
            elif core is not None:
                if core[:2] != (left[0], right[0]) or not fits(core[2:], kernel):
                    return f"its Tucker core {core} does not fit lokr_w{k}_a {left} and lokr_w{k}_b {right}"
                sizes.append((left[1], right[1] * prod(core[2:])))
            elif left[1] != right[0]:
                return f"lokr_w{k}_a {left} and lokr_w{k}_b {right} disagree on the rank"
            else:
                sizes.append((left[0], right[1]))
        made = sizes[0][0] * sizes[1][0], sizes[0][1] * sizes[1][1]
        return None if made == matrix(weight) else f"its delta is {made[0]} × {made[1]}"

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many rows of the right-hand factors as the rank."""
        rank, slots = said.count("r"), shapes.keys() & {"lokr_w1_b", "lokr_w2_b"}
        return {slot: (rank, *shapes[slot][1:]) for slot in slots} if rank else {}

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Multiply the decomposed factors out; W₁ takes the scale."""
        found = {}
        for k in "12":
            if f"lokr_w{k}" in tensors:
                found[k] = tensors[f"lokr_w{k}"].flatten(1)
                continue
            left, right = tensors[f"lokr_w{k}_a"], tensors[f"lokr_w{k}_b"].flatten(1)
            if f"lokr_t{k}" in tensors:
                left, right = left.T, (right.T @ tensors[f"lokr_t{k}"].flatten(2)).flatten(1)
            found[k] = left @ right
        return {"w1": found["1"] * terms.scale, "w2": found["2"]}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Write the rows asked for: row o of the product is row o // o₂ of W₁ times row o mod o₂ of W₂."""
        first, second = tensors["w1"], tensors["w2"]
        outer = range(rows.start, rows.stop)
        left = first[[row // second.shape[0] for row in outer]]
        right = second[[row % second.shape[0] for row in outer]]
        return (left[:, :, None] * right[:, None, :]).flatten(1)


KINDS = (Lokr(),)
