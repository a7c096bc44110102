"""GPTQ (arXiv 2210.17323): codes packed along the inputs, zeros and scales by group.

Its two formats differ in nothing but what they mean by a zero: a statement has to say which it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.codecs.bits import by_group, unpacked
from lorabake.codecs.codec import Codec, Group, Parts, Stored

if TYPE_CHECKING:
    import torch

OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""What is added to a stored zero, by `checkpoint_format`."""


@dataclass(frozen=True, slots=True)
class Gptq(Codec):
    """Multiply codes of so many bits, less their group's zero, by its scale; `offset` is added to stored zeros."""

    bits: int
    offset: int

    name = "gptq"
    options = frozenset({"quant_method", "checkpoint_format"})

    @classmethod
    def recognise(cls, group: Group) -> Stored | None:
        """Ask for shapes that fit, and for the statement that says what a zero means."""
        names = ("qweight", "qzeros", "scales", "g_idx")
        parts = {name: group.parts[name] for name in names if name in group.parts}
        if not {*names[:3]} <= parts.keys() or group.roles != parts.keys() or group.notes:
            return None
        weight, zeros, scales = (parts[name].shape for name in names[:3])
        if {len(shape) for shape in (weight, zeros, scales)} != {2} or parts["qweight"].dtype != "I32":
            return None
        groups, out = scales
        bits = 32 * zeros[1] // out if out else 0
        if weight[1] != out or bits not in (2, 4, 8) or zeros != (groups, out * bits // 32):
            return None
        inputs = weight[0] * 32 // bits
        if ("g_idx" in parts and parts["g_idx"].shape != (inputs,)) or inputs % max(groups, 1):
            return None
        offset = OFFSETS.get(str(group.options.get("checkpoint_format", "gptq")))
        if group.options.get("quant_method") != "gptq" or offset is None:
            return (
                None  # nothing says whether zeros are stored less one, or that it was not packed anew for one kernel
            )
        return group.stored(cls(bits, offset), (out, inputs), parts)

    def title(self, stored: Stored) -> str:
        """Name it."""
        return "GPTQ"

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Cut the numbers up, and scale."""
        codes = unpacked(parts["qweight"].T, self.bits).T
        zeros = (unpacked(parts["qzeros"], self.bits) + self.offset) & ((1 << self.bits) - 1)
        return by_group(codes, zeros, parts["scales"], parts.get("g_idx"), dtype)


CODECS = (Gptq,)
