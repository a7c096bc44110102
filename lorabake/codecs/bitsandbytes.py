"""bitsandbytes' 4 bits, nf4 and fp4 (Dettmers et al. 2023, arXiv 2305.14314): codes, a table, sizes of blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from lorabake.codecs.codec import Codec, Group, Parts, Stored
from lorabake.tensors.values import read_object

if TYPE_CHECKING:
    import torch

ROLES = (
    "absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4",
    "quant_state.bitsandbytes__fp4",
)  # fmt: skip
"""What stands behind the name of a weight."""


@dataclass(frozen=True, slots=True)
class BitsAndBytes(Codec):
    """Look 4 bits up in a table, and multiply them by the size of their block of `block` values.

    Where sizes are stored in 8 bits, they are looked up in a second table, multiplied by the size of their own block,
    of `nested` sizes, and `offset` is added.
    """

    kind: str
    block: int
    nested: int = 0
    offset: float = 0.0

    name = "bitsandbytes"

    @classmethod
    def recognise(cls, group: Group) -> Stored | None:
        """Ask for the note of the state, and for as many codes as it says."""
        parts = {role: group.parts[role] for role in ROLES if role in group.parts}
        note = next((role for role in parts if role.startswith("quant_state")), None)
        codes = group.parts.get("")
        if codes is None or note is None or not {"absmax", "quant_map"} <= parts.keys():
            return None
        if group.roles != {"", *parts} or group.notes:
            return None
        said = read_object(parts[note])
        shape, size, offset = said.get("shape"), said.get("blocksize"), said.get("nested_offset", 0.0)
        nested = said.get("nested_blocksize") if "nested_absmax" in parts else 0
        if not isinstance(shape, list) or not isinstance(size, int) or not isinstance(nested, int):
            return None
        if not all(isinstance(side, int) for side in shape) or not isinstance(offset, (int, float)):
            return None
        if codes.nbytes * 2 != prod(shape):
            return None
        if nested and "nested_quant_map" not in parts:
            return None
        if parts["absmax"].dtype != ("U8" if nested else "F32"):
            return None
        # Codes are kept in any dtype, for programs that move floats alone.
        codes = replace(codes, dtype="U8", shape=(codes.nbytes,))
        codec = cls(str(said.get("quant_type", "4 bits")), size, nested, offset)
        return group.stored(codec, tuple(shape), {"codes": codes, **parts})

    def title(self, stored: Stored) -> str:
        """Name the table: nf4 or fp4."""
        return f"bitsandbytes {self.kind}"

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Look up, the upper four bits of a byte first, and multiply."""
        import torch

        codes = parts["codes"].reshape(-1)
        values = parts["quant_map"].to(dtype)[torch.stack((codes >> 4, codes & 15), dim=1).reshape(-1).long()]
        sizes = parts["absmax"].to(dtype)
        if self.nested:
            outer = _stretched(parts["nested_absmax"].to(dtype), self.nested, sizes)
            table = parts["nested_quant_map"].to(dtype)
            sizes = table[parts["absmax"].long()] * outer + self.offset
        return (values * _stretched(sizes, self.block, values)).reshape(stored.shape)


CODECS = (BitsAndBytes,)


def _stretched(sizes: torch.Tensor, block: int, like: torch.Tensor) -> torch.Tensor:
    """Repeat each block's size for its values; the last block may be short."""
    return sizes.repeat_interleave(block)[: like.numel()]
