"""RoAd: outputs h and h + g/2 of each group of g are rotated and stretched as a pair; the bias goes along.

W'[h] = α·cos θ·W[h] − α·sin θ·W[h + g/2] and W'[h + g/2] = α·sin θ·W[h] + α·cos θ·W[h + g/2]. PEFT's variants
differ in what shares θ and α: `road_1` a pair, `road_2` nothing, `road_4` not even cosine and sine. Liao and Monz,
2024 (arXiv 2409.00119).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch

PARAMETERS = {"road_1": 0.5, "road_2": 1, "road_4": 2}
"""Variant -> parameters an output."""


@dataclass(frozen=True, slots=True)
class RoadSettings(Settings):
    """Name the variant, and the size of groups."""

    variant: str
    group: int


class Road(Delta):
    """Rotate pairs of outputs."""

    name = "road"
    title = "RoAd"
    required = frozenset({"road_theta", "road_alpha"})
    suffixes: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"\.road_theta", "road_theta"),
        (r"\.road_alpha", "road_alpha"),
    )
    by_rows = False
    peft_type = "ROAD"
    reads_weight = True
    peft_fields = frozenset({"variant", "group_size", "init_weights", "bias"})

    def settings(self, said: Said, shapes: Shapes) -> RoadSettings:
        """Read the variant and the size of groups."""
        variant, size = said.text("variant"), said.integer("group_size", 64)
        if variant not in PARAMETERS or size is None or size < 2 or size % 2:
            raise ValueError("no adapter_config.json says RoAd's variant and an even group_size")
        if prod(shapes["road_theta"]) % (PARAMETERS[variant] * size):
            raise ValueError(f"groups of {size} do not divide its outputs")
        return RoadSettings(variant, size)

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for as many parameters as one of the variants has."""
        theta, alpha = shapes["road_theta"], shapes["road_alpha"]
        if theta == alpha and len(theta) == 1 and weight and theta[0] / weight[0] in PARAMETERS.values():
            return None
        return f"its road_theta is {theta}, its road_alpha {alpha}"

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many parameters as the variant has."""
        count = PARAMETERS.get(said.text("variant"), 0) * weight[0]
        return {"road_theta": (int(count),)} if count else {}

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[RoadSettings]
    ) -> torch.Tensor:
        """Rotate all rows."""
        import torch

        size = terms.settings.group
        theta, alpha = tensors["road_theta"].reshape(-1), tensors["road_alpha"].reshape(-1)
        if terms.settings.variant == "road_4":
            theta, alpha = (each.reshape(-1, 2, 2, size // 2) for each in (theta, alpha))
            cosine, sine = alpha[:, 0] * theta[:, 0].cos(), alpha[:, 1] * theta[:, 1].sin()
        else:
            halves = 1 if terms.settings.variant == "road_1" else 2
            theta, alpha = (each.reshape(-1, halves, size // 2).expand(-1, 2, -1) for each in (theta, alpha))
            cosine, sine = alpha * theta.cos(), alpha * theta.sin()
        pairs = weight.reshape(-1, 2, size // 2, weight.shape[1])
        other = torch.stack([-pairs[:, 1], pairs[:, 0]], dim=1)
        return (pairs * (cosine[..., None] - 1) + other * sine[..., None]).reshape(weight.shape)


class RoadBias(Road):
    """Rotate the bias with the outputs."""

    name = "road_bias"
    title = "RoAd's bias"
    suffixes = ()
    parameter = "bias"
    where_present = True


KINDS = (Road(), RoadBias())
