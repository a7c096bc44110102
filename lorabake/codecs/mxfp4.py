"""MXFP4 as gpt-oss stores experts (OCP Microscaling Formats 1.0): 32 values of 4 bits a block along the inputs.

The weight is transposed in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.codecs.codec import Codec, Group, Parts, Stored, described

if TYPE_CHECKING:
    import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of e2m1, by their four bits."""


@dataclass(frozen=True, slots=True)
class Mxfp4(Codec):
    """Multiply values of e2m1 by the power of two of their block."""

    name = "mxfp4"

    @classmethod
    def recognise(cls, group: Group) -> Stored | None:
        """Ask for blocks of 16 bytes with an exponent each."""
        if group.roles != {"blocks", "scales"} or group.notes:
            return None
        blocks, scales = group.parts["blocks"], group.parts["scales"]
        if (blocks.dtype, scales.dtype) != ("U8", "U8") or scales.shape != blocks.shape[:3]:
            return None
        if blocks.shape[3:] != (16,):
            return None
        experts, rows, groups, _ = blocks.shape
        return described(cls(), group.key, (experts, groups * 32, rows), {"blocks": blocks, "scales": scales})

    def title(self, stored: Stored) -> str:
        """Name it."""
        return "MXFP4"

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Cut the bytes in two, the lower four bits first, look up, multiply, and transpose."""
        import torch

        pairs = parts["blocks"]
        codes = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)
        powers = torch.ldexp(torch.ones_like(parts["scales"], dtype=dtype), parts["scales"].int() - 127)
        rows = (torch.tensor(E2M1, dtype=dtype, device=codes.device)[codes.long()] * powers[..., None]).flatten(-2)
        return rows.transpose(1, 2).contiguous()


CODECS = (Mxfp4,)
