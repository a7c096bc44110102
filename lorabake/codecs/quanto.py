"""optimum-quanto (0.2): 8 bits in the weight's own shape, or 2 and 4 bits in rows cut into groups."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lorabake.codecs.codec import Codec, Group, Parts, Stored
from lorabake.codecs.scales import SCALE_DTYPES
from lorabake.tensors.dtypes import DTYPES

if TYPE_CHECKING:
    import torch

KINDS = {"I8": "qint8", "F8_E4M3": "qfloat8", "F8_E5M2": "qfloat8_e5m2"}
"""What quanto calls weights of 8 bits, by dtype."""


@dataclass(frozen=True, slots=True)
class Quanto(Codec):
    """Multiply values of 8 bits by one scale, or by one a row."""

    name = "quanto"

    @classmethod
    def recognise(cls, group: Group) -> Stored | None:
        """Ask for scales whose shape fits."""
        if group.roles != {"_data", "_scale"} or group.notes:
            return None
        data, scale = group.parts["_data"], group.parts["_scale"]
        rows = (data.shape[:1] or (1,)) + (1,) * (len(data.shape) - 1)
        if not DTYPES[data.dtype].takes_scale or scale.dtype not in SCALE_DTYPES or scale.shape not in ((), rows):
            return None
        return group.stored(cls(), data.shape, {"data": data, "scale": scale})

    def title(self, stored: Stored) -> str:
        """Name it by its dtype."""
        return f"quanto {KINDS[stored.parts['data'].dtype]}"

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Multiply."""
        return parts["data"].to(dtype) * parts["scale"].to(dtype)


@dataclass(frozen=True, slots=True)
class QuantoBits(Codec):
    """Multiply codes of 2 or 4 bits by the scale of their group, and shift them.

    Half or a quarter of the groups lies above the next in each byte. The shape is not stored: rows of 32 to 128
    values may be groups of rows. It is certain where a bias tells how many rows there are, and no convolution may
    hide behind it.
    """

    bits: int

    name = "quanto_bits"

    @classmethod
    def recognise(cls, group: Group) -> Stored | None:
        """Ask for shapes that fit, and that leave no doubt about the weight's own."""
        if group.roles != {"_data._data", "_scale", "_shift"} or group.notes:
            return None
        data, scale, shift = (group.parts[name] for name in ("_data._data", "_scale", "_shift"))
        if data.dtype != "U8" or len(data.shape) < 2 or scale.dtype not in SCALE_DTYPES or scale.shape != shift.shape:
            return None
        if shift.dtype not in (*SCALE_DTYPES, "I8", "U8") or scale.shape[1:] != (1,) * (len(data.shape) - 1):
            return None
        groups = scale.shape[0]
        bits = [bits for bits in (4, 2) if -(-groups * bits // 8) == data.shape[0]]
        size = prod(data.shape[1:])
        if len(bits) != 1:
            return None
        if len(data.shape) > 2 or size not in (32, 64, 96, 128):  # no groups
            shape = (groups, *data.shape[1:])
        elif group.rows and group.is_linear and groups % group.rows == 0:
            shape = (group.rows, groups // group.rows * size)
            if size != values_a_scale(shape[1]):
                return None
        else:
            return None
        return group.stored(cls(bits[0]), shape, {"data": data, "scale": scale, "shift": shift})

    @property
    def mixes(self) -> bool:
        """Tell that what is shifted may be larger than what comes out."""
        return True

    def title(self, stored: Stored) -> str:
        """Name it by its bits."""
        return f"quanto qint{self.bits}"

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Cut the bytes up, put what lies in them below each other, scale and shift."""
        import torch

        scale, shift, rows = parts["scale"].to(dtype), parts["shift"], len(parts["scale"])
        bands = [parts["data"] >> place & (1 << self.bits) - 1 for place in range(0, 8, self.bits)]
        codes = torch.cat(bands)[:rows]
        if shift.is_floating_point():
            return (codes.to(dtype) * scale - shift.to(dtype)).reshape(stored.shape)
        return ((codes.to(dtype) - shift.to(dtype)) * scale).reshape(stored.shape)


CODECS = (Quanto, QuantoBits)


def values_a_scale(columns: int) -> int:
    """Return how many values of a row share a scale: 128, or the largest of 96, 64 and 32 that fits; else the row."""
    fitting = (size for size in (128, 96, 64, 32) if columns % size == 0)
    return next(fitting, columns) if columns > 128 else columns
