"""AWQ (arXiv 2306.00978), version `gemm`: codes of 4 bits packed along the outputs, zeros and scales by group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.codecs.bits import by_group, unpacked
from lorabake.codecs.codec import Codec, Group, Parts, Stored

if TYPE_CHECKING:
    import torch

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns AWQ puts into which four bits, the lowest first."""


@dataclass(frozen=True, slots=True)
class Awq(Codec):
    """Multiply codes of 4 bits, less their group's zero, by its scale."""

    name = "awq"
    options = frozenset({"version"})
    caution = (
        "AWQ moves factors from a layer's inputs into the layer before it: a LoRA fits exactly where it was trained "
        "on this very checkpoint"
    )

    @classmethod
    def recognise(cls, group: Group) -> Stored | None:
        """Ask for shapes that fit, and for no statement of another version."""
        parts = {name: group.parts[name] for name in ("qweight", "qzeros", "scales") if name in group.parts}
        if len(parts) != 3 or group.roles != parts.keys() or group.notes:
            return None
        weight, zeros, scales = (part.shape for part in parts.values())
        if {len(shape) for shape in (weight, zeros, scales)} != {2} or parts["qweight"].dtype != "I32":
            return None
        groups, out = scales
        if weight[1] * 8 != out or zeros != (groups, weight[1]) or weight[0] % max(groups, 1):
            return None
        if str(group.options.get("version", "gemm")).lower() != "gemm":
            return None
        return group.stored(cls(), (out, weight[0]), parts)

    def title(self, stored: Stored) -> str:
        """Name it."""
        return "AWQ"

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Cut the numbers up, put the columns in order, and scale."""
        import torch

        places = torch.tensor([ORDER.index(place) for place in range(8)], device=parts["scales"].device)
        codes, zeros = (unpacked(parts[name], 4) for name in ("qweight", "qzeros"))
        codes, zeros = (values.view(len(values), -1, 8)[..., places].flatten(1) for values in (codes, zeros))
        return by_group(codes, zeros, parts["scales"], None, dtype)


CODECS = (Awq,)
