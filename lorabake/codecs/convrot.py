"""ComfyUI's ConvRot W4A4: two values of 4 bits a byte, the first one below, times a scale a row, turned in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.codecs import comfy
from lorabake.codecs.codec import Codec, Group, Parts, Stored
from lorabake.codecs.scales import SCALE_DTYPES, rotate

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ConvRot(Codec):
    """Multiply values from −8 to 7 by a scale a row, and turn them back; `rotation` values of a row turn together."""

    rotation: int

    name = "convrot"

    @classmethod
    def recognise(cls, group: Group) -> Stored | None:
        """Ask for the note, and for bytes and scales whose shapes fit."""
        if not group.notes or group.roles != {"", "weight_scale"}:
            return None
        says, codes, scale = comfy.said(group), group.parts[""], group.parts["weight_scale"]
        if says.get("format") != "convrot_w4a4" or not says.keys() <= comfy.ROTATING:
            return None
        if codes.dtype != "I8" or len(codes.shape) != 2 or scale.dtype not in SCALE_DTYPES:
            return None
        rows, columns = codes.shape[0], codes.shape[1] * 2
        rotation = comfy.rotated_values(says, columns)
        if rotation is None or scale.shape not in ((rows,), (rows, 1)):
            return None
        return group.stored(cls(rotation), (rows, columns), {"codes": codes, "scale": scale})

    @property
    def mixes(self) -> bool:
        """Tell that each value is a sum of a group's."""
        return True

    def title(self, stored: Stored) -> str:
        """Name it as ComfyUI does."""
        return "ConvRot W4A4"

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Cut the bytes in two, multiply, and turn back."""
        import torch

        pairs = parts["codes"]
        codes = torch.stack((pairs & 15, pairs >> 4 & 15), dim=-1).flatten(-2)
        values = ((codes ^ 8) - 8).to(dtype) * parts["scale"].to(dtype).reshape(-1, 1)
        return rotate(values, self.rotation)


CODECS = (ConvRot,)
