"""MXFP8 (OCP Microscaling Formats 1.0): float8 e4m3, and a power of two for each 32 values along the inputs.

transformers, compressed-tensors and ModelOpt store the exponents in the order of the blocks. ComfyUI stores them in
the order of cuBLAS: tiles of 128 rows by 4 blocks, filled up with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.codecs import comfy, schemes
from lorabake.codecs.codec import WEIGHT, Codec, Group, Parts, Stored
from lorabake.codecs.scales import EXPONENTS, next_powers, powers_of
from lorabake.tensors.dtypes import DTYPES

if TYPE_CHECKING:
    import torch

BLOCK = 32
"""Values of a row that share a scale."""

SCALES = ("weight_scale", "weight_scale_inv")
"""What the exponents of a weight are called beside it."""

IN_ORDER = ("mxfp8", "compressed-tensors")
"""Methods whose exponents lie in the order of the blocks."""

FORMS = ("e4m3", "e4m3fn", "float8_e4m3", "float8_e4m3fn")
"""What statements call the form of float8."""


@dataclass(frozen=True, slots=True)
class Mxfp8(Codec):
    """Multiply float8 by the power of two of its block; `are_tiled` tells that exponents lie in tiles."""

    are_tiled: bool = False

    name = "mxfp8"
    encodes = True
    before = frozenset({"scaled"})
    options = frozenset({"quant_method", "quant_algo", "weight_block_size", "config_groups", "fmt"})

    @classmethod
    def recognise(cls, group: Group) -> Stored | None:
        """Ask for one exponent a block, and for a statement that tells their order."""
        weight, names = group.parts.get(""), group.roles - {""}
        if weight is None or len(names) != 1 or not names <= {*SCALES}:
            return None
        scale = group.parts[next(iter(names))]
        if weight.dtype != "F8_E4M3" or len(weight.shape) != 2 or scale.dtype not in EXPONENTS:
            return None
        rows, columns = weight.shape
        if not rows or not columns or columns % BLOCK:
            return None
        are_tiled = bool(group.notes)
        if not (_is_tiled(group, weight.shape) if are_tiled else _is_in_order(group)):
            return None
        if scale.shape != (_tiled(rows, columns // BLOCK) if are_tiled else (rows, columns // BLOCK)):
            return None
        return group.stored(cls(are_tiled), weight.shape, {WEIGHT: weight, "scale": scale})

    def title(self, stored: Stored) -> str:
        """Name it."""
        return "MXFP8"

    def dtype(self, stored: Stored) -> str:
        """Return the dtype of the stored values."""
        return stored.parts[WEIGHT].dtype

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Multiply."""
        scale = self._in_order(stored, parts["scale"].to(dtype))
        return self._multiplied(parts[WEIGHT].to(dtype), self._powers(stored, scale))

    def written(self, stored: Stored) -> tuple[str, ...]:
        """Fill the values and their exponents."""
        return (WEIGHT, "scale")

    def encode(self, stored: Stored, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Divide by the least powers of two with which no value is larger than float8's largest."""
        import torch

        largest = weight.abs().reshape(len(weight), -1, BLOCK).amax(-1) / DTYPES["F8_E4M3"].largest
        exponents = next_powers(torch.where(largest > 0, largest, torch.ones_like(largest))).to(weight.device)
        powers = torch.ldexp(torch.ones_like(largest), exponents)
        scale = powers if stored.parts["scale"].dtype == "F8_E8M0" else (exponents + 127).to(weight.dtype)
        values = (weight.reshape(len(weight), -1, BLOCK) / powers[..., None]).reshape(weight.shape)
        return {WEIGHT: values, "scale": self._in_tiles(stored, scale)}

    def _powers(self, stored: Stored, scale: torch.Tensor) -> torch.Tensor:
        """Return scales as numbers, from exponents where they are stored as whole ones."""
        return scale if stored.parts["scale"].dtype == "F8_E8M0" else powers_of(scale)

    def _multiplied(self, values: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
        return (values.reshape(len(values), -1, BLOCK) * powers[..., None]).reshape(values.shape)

    def _in_order(self, stored: Stored, scale: torch.Tensor) -> torch.Tensor:
        """Take exponents out of their tiles, in which the four quarters of 32 rows lie side by side."""
        if not self.are_tiled:
            return scale
        down, across = scale.shape[0] // 128, scale.shape[1] // 4
        rows = scale.reshape(down, across, 32, 4, 4).permute(0, 3, 2, 1, 4).reshape(scale.shape)
        return rows[: stored.shape[0], : stored.shape[1] // BLOCK]

    def _in_tiles(self, stored: Stored, scale: torch.Tensor) -> torch.Tensor:
        """Put exponents into tiles again, and zeros where a tile goes on."""
        import torch

        if not self.are_tiled:
            return scale
        rows, columns = stored.parts["scale"].shape
        whole = torch.nn.functional.pad(scale, (0, columns - scale.shape[1], 0, rows - scale.shape[0]))
        tiles = whole.reshape(rows // 128, 4, 32, columns // 4, 4).permute(0, 3, 2, 1, 4)
        return tiles.reshape(rows, columns)


CODECS = (Mxfp8,)


def _is_in_order(group: Group) -> bool:
    """Tell whether statements name a method whose exponents lie in order, and no other blocks or form."""
    says = group.options
    is_named = says.get("quant_method") in IN_ORDER or says.get("quant_algo") == "MXFP8"
    is_form = says.get("fmt", FORMS[0]) in FORMS
    bits = [*schemes.bits(says, "float")]
    return is_named and is_form and {*schemes.blocks(says)} <= {(1, BLOCK)} and {*bits} <= {8}


def _is_tiled(group: Group, shape: tuple[int, ...]) -> bool:
    """Tell whether ComfyUI's note names the format, for a weight that was not filled up to another shape."""
    says = comfy.said(group)
    is_named = says.pop("format", None) == "mxfp8" and says.pop("group_size", BLOCK) == BLOCK and not says
    return is_named and all(note.says.get("orig_shape", [*shape]) == [*shape] for note in group.notes)


def _tiled(rows: int, blocks: int) -> tuple[int, int]:
    """Return the shape of exponents in tiles."""
    return -(-rows // 128) * 128, -(-blocks // 4) * 4
