"""compressed-tensors' `pack-quantized`: 4 or 8 bits a value, half of the range below zero, scales by group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.codecs.bits import unpacked
from lorabake.codecs.codec import Codec, Group, Parts, Stored
from lorabake.tensors.values import read_shape

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class CompressedTensors(Codec):
    """Multiply codes of so many bits, less half of their range, by the scale of their group of a row."""

    bits: int

    name = "compressed_tensors"

    @classmethod
    def recognise(cls, group: Group) -> Stored | None:
        """Ask for codes, scales and a noted shape that fit together."""
        if group.roles != {"weight_packed", "weight_scale", "weight_shape"} or group.notes:
            return None
        packed, scale, noted = (group.parts[name] for name in ("weight_packed", "weight_scale", "weight_shape"))
        if noted.dtype not in ("I64", "I32") or noted.shape != (2,) or packed.dtype != "I32" or len(scale.shape) != 2:
            return None
        out, inputs = read_shape(noted)
        bits = next((bits for bits in (4, 8) if packed.shape == (out, -(-inputs * bits // 32))), 0)
        if not bits or scale.shape[0] != out or inputs % max(scale.shape[1], 1):
            return None
        return group.stored(cls(bits), (out, inputs), {"packed": packed, "scale": scale, "shape": noted})

    def title(self, stored: Stored) -> str:
        """Name it."""
        return "compressed-tensors"

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Cut the numbers up, leave out what fills the last one, and scale."""
        scales, (_, inputs) = parts["scale"].to(dtype), stored.shape
        codes = unpacked(parts["packed"], self.bits)[:, :inputs] - (1 << self.bits - 1)
        return codes.to(dtype) * scales.repeat_interleave(inputs // scales.shape[1], 1)


CODECS = (CompressedTensors,)
