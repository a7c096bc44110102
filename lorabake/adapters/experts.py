"""LoRA on the experts of a mixture, all in one: Δ of expert e is alpha/r·B_e·A_e.

The weight is a stack, (experts, out, in), or (experts, in, out) where a model multiplies from the other side.
PEFT (`target_parameters`): `down` is (experts · r, in), expert by expert; `up` is (out, r · experts), the experts
inside: column t·experts + e is the t-th of expert e. Which side of the weight counts as its inputs changed with
PEFT's versions; where both are as long, `settings` are told which one A reads.
Others: `down` (experts, r, in) and `up` (experts, out, r), either of them also (1, …): one for all experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors
from lorabake.keymap.said import WHO_TRAINED, Said
from lorabake.keymap.view import View

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ExpertSettings(Settings):
    """Say which side of the weight A reads, 1 or 2; None where the shapes tell it."""

    side: int | None = None


class ExpertLora(Delta):
    """Add a product to each expert; it has the slots of a LoRA, and takes its place on experts."""

    name = "expert_lora"
    title = "LoRA on experts"
    required = frozenset({"up", "down"})
    optional = frozenset({"alpha"})
    suffixes = ()
    by_place = True

    def view_of(self, views: Mapping[str, View], *, turned: bool = False) -> View | None:
        """Choose the stack of all experts."""
        view = views.get(self.parameter)
        return view and view.as_stack()

    def rank(self, shapes: Shapes) -> int:
        """Return the rank of each expert, where the tensors tell it."""
        return shapes["down"][1] if len(shapes["down"]) == 3 else 1

    def told_rank(self, shapes: Shapes, weight: tuple[int, ...] | None = None) -> int | None:
        """Return the rank of each expert; None where the experts have to be counted, and there is no weight."""
        if len(shapes["down"]) == 3:
            return shapes["down"][1]
        return shapes["down"][0] // weight[0] if weight else None

    def is_told_by(self, shapes: Shapes) -> bool:
        """Tell whether the shapes are those of stacks of factors, which no convolution has."""
        up, down = shapes["up"], shapes["down"]
        return len(up) == len(down) == 3 and up[2] == down[1] and (up[0] == down[0] or 1 in (up[0], down[0]))

    def sides(self, shapes: Shapes, weight: tuple[int, ...]) -> frozenset[int]:
        """Return the sides of a weight (experts, first, second) that A may read, 1 or 2; B writes the other one."""
        pair = shapes["down"][-1], shapes["up"][-2]
        return frozenset(side for side in (1, 2) if pair == (weight[side], weight[3 - side]))

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for one product an expert."""
        up, down, experts = shapes["up"], shapes["down"], weight[0]
        if (len(up), len(down)) == (3, 3):
            if up[2] != down[1] or {up[0], down[0]} - {1, experts}:
                return f"up {up} and down {down} disagree on the rank or the experts"
        elif (len(up), len(down)) != (2, 2) or up[1] != down[0] or down[0] % experts:
            return f"up {up} and down {down} disagree on the rank"
        if "alpha" in shapes and len(down) == 2:
            return "its alpha is over a rank that its tensors do not tell"
        return None if self.sides(shapes, weight) else f"its deltas are {up[-2]} × {down[-1]}"

    def settings(self, said: Said, shapes: Shapes) -> ExpertSettings:
        """Say which side A reads where the shapes of the weight do not tell; refuse where nothing does."""
        if shapes["down"][-1] != shapes["up"][-2]:
            return ExpertSettings()
        if said.side is None:
            raise ValueError(
                f"as many outputs as inputs ({shapes['down'][-1]}), and nothing tells which side its A reads\n"
                f"PEFT changed that in 0.19.1: {WHO_TRAINED}"
            )
        return ExpertSettings(said.side)

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for the rank of each expert."""
        rank, down = said.count("r"), shapes["down"]
        if rank is None:
            return {}
        return {"down": (rank * weight[0], down[1]) if len(down) == 2 else (down[0], rank, down[2])}

    def prepare(self, tensors: Tensors, terms: TermsOf[ExpertSettings]) -> Tensors:
        """Part the experts: the left factors (experts, first, r), with the scale, and the right ones."""
        up, down, experts = tensors["up"], tensors["down"], terms.shape[0]
        if down.dim() == 2:
            a = down.reshape(experts, -1, down.shape[1])
            b = up.reshape(up.shape[0], -1, experts).permute(2, 0, 1) * terms.scale
        else:
            a = down.expand(experts, -1, -1)
            b = (up * terms.scale).expand(experts, -1, -1)
        side = terms.settings.side or (2 if a.shape[2] == terms.shape[2] else 1)
        return {"left": b, "right": a} if side == 2 else {"left": a.transpose(1, 2), "right": b.transpose(1, 2)}

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[ExpertSettings]
    ) -> torch.Tensor:
        """Multiply the factors of these rows' experts."""
        import torch

        left, right = tensors["left"], tensors["right"]
        high = left.shape[1]
        pieces = []
        for expert in range(rows.start // high, -(-rows.stop // high)):
            inner = slice(max(rows.start - expert * high, 0), min(rows.stop - expert * high, high))
            pieces.append(left[expert, inner] @ right[expert])
        return torch.cat(pieces)


EXPERTS = ExpertLora()
KINDS = (EXPERTS,)
