"""LoRA on the experts of a mixture (PEFT's `target_parameters`): Δ of expert e is alpha/r·B_e·A_e.

`down` is (experts · r, in), expert by expert; `up` is (out, r · experts), the experts inside: column t·experts + e is
the t-th of expert e. The weight is a stack of experts, (experts · out, in), or one tensor (experts, out, in), or
(experts, in, out) where a model multiplies from the other side. PEFT's layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Kind, Settings, Shapes, Tensors, Terms, whole_number

if TYPE_CHECKING:
    import torch


class ExpertLora(Kind):
    """Add a product to each expert; it has the slots of a LoRA, and takes its place on experts."""

    name = "expert_lora"
    title = "LoRA on experts"
    required = frozenset({"up", "down"})
    suffixes = ()
    by_place = True

    def experts(self, shapes: Shapes, weight: tuple[int, ...]) -> int:
        """Count the experts in a weight; 0 where the tensors are for another one."""
        out, inputs = shapes["up"][0], shapes["down"][1]
        if len(weight) == 2 and weight[1] == inputs and out and weight[0] % out == 0:
            return weight[0] // out
        return weight[0] if len(weight) == 3 and sorted(weight[1:]) == sorted((out, inputs)) else 0

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for one product an expert."""
        up, down = shapes["up"], shapes["down"]
        if len(up) != 2 or len(down) != 2 or up[1] != down[0]:
            return f"up {up} and down {down} disagree on the rank"
        experts = self.experts(shapes, weight)
        if not experts or down[0] % experts:
            return f"its deltas are {up[0]} × {down[1]}"
        if len(weight) == 3 and up[0] == down[1]:
            return "as many outputs as inputs: nothing tells which side is which"
        return None

    def configured(self, config: Settings, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for the rank of each expert."""
        rank, experts = whole_number(config, "r"), self.experts(shapes, weight)
        return {"down": (rank * experts, *shapes["down"][1:])} if rank else {}

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Part the experts: A (experts, r, in), B (experts, out, r) with the scale."""
        up, down = tensors["up"], tensors["down"]
        shapes = {"up": tuple(up.shape), "down": tuple(down.shape)}
        experts = self.experts(shapes, terms.shape)
        a = down.reshape(experts, -1, down.shape[1])
        b = up.reshape(up.shape[0], -1, experts).permute(2, 0, 1) * terms.scale
        is_turned = len(terms.shape) == 3 and terms.shape[1] == down.shape[1]
        return {"left": a.transpose(1, 2), "right": b.transpose(1, 2)} if is_turned else {"left": b, "right": a}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Multiply the factors of these rows' experts."""
        import torch

        left, right = tensors["left"], tensors["right"]
        if len(terms.shape) == 3:
            return (left[rows] @ right[rows]).flatten(1)
        high = left.shape[1]
        pieces = []
        for expert in range(rows.start // high, -(-rows.stop // high)):
            inner = slice(max(rows.start - expert * high, 0), min(rows.stop - expert * high, high))
            pieces.append(left[expert, inner] @ right[expert])
        return torch.cat(pieces)


EXPERTS = ExpertLora()
KINDS = (EXPERTS,)
