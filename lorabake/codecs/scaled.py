"""Weights of 8 bits times scales: float8 or int8 in the weight's own shape, one scale for all, a row, a block …

ComfyUI, diffusers, transformers, compressed-tensors and bitsandbytes' int8 store weights so. Scales may be powers of
two, as numbers or as exponents. ComfyUI may turn an int8 weight before it is stored (ConvRot).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.codecs import comfy, schemes
from lorabake.codecs.codec import LAYOUT, WEIGHT, Codec, Group, Parts, Stored
from lorabake.codecs.scales import EXPONENTS, SCALE_DTYPES, Grid, grid, next_powers, powers_of, rotate
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.values import read_note
from lorabake.visible import visible

if TYPE_CHECKING:
    import torch

SCALES = {"scale_weight": 1.0, "weight_scale": 1.0, "weight_scale_inv": 1.0, "SCB": 1 / 127}
"""What the scales of a weight are called beside it, and what they are multiplied by."""

IN_ORDER = ("fp8", "mxfp8", "compressed-tensors")
"""The ways whose exponents lie in the order of the blocks; others put them into the order of one kernel."""

FORMS = {name + end: dtype for name, dtype in (("e4m3", "F8_E4M3"), ("e5m2", "F8_E5M2")) for end in ("", "fn")}
"""What statements call the forms of float8."""


@dataclass(frozen=True, slots=True)
class Scaled(Codec):
    """Multiply stored values by scales.

    `rotation` says how many values of a row ConvRot turns together, 0 for none; `powers_of_two` that scales were
    promised to be such, `are_exponents` that they are stored as whole numbers, 127 more than the power; `unit` is
    what they are multiplied by.
    """

    grid: Grid
    rotation: int = 0
    powers_of_two: bool = False
    are_exponents: bool = False
    unit: float = 1.0

    name = "scaled"
    encodes = True
    options = frozenset({"quant_method", "weight_block_size", "expert_dtype", "config_groups", "fmt"})

    @classmethod
    def recognise(cls, group: Group) -> Stored | None:
        """Ask for one tensor of scales whose shape fits, and for statements that say nothing else."""
        names = group.roles - {""}
        weight = group.parts.get("")
        if weight is None or len(names) != 1 or not names <= SCALES.keys() or not DTYPES[weight.dtype].takes_scale:
            return None
        (name,) = names
        scale, options = group.parts[name], group.options
        in_order = not group.notes and options.get("quant_method") in IN_ORDER and weight.dtype != "I8"
        if scale.dtype not in SCALE_DTYPES and not (scale.dtype in EXPONENTS and in_order):
            return None
        if name == "SCB" and (weight.dtype, scale.dtype) != ("I8", "F32"):
            return None
        found = grid(weight.shape, scale.shape)
        if found is None or not is_said(found, weight.shape, group) or not is_form(weight, group):
            return None
        if LAYOUT in group.parts and read_note(group.parts[LAYOUT]).strip(b"\0"):
            return None  # bitsandbytes laid it out for one GPU
        if weight.dtype == "I8" and options.get("expert_dtype", "fp8") != "fp8":
            return None  # two values of 4 bits each
        if any(bits != 8 for bits in schemes.bits(options, "int" if weight.dtype == "I8" else "float")):
            return None
        rotation = _rotation(group, weight, found) if group.notes else 0
        if rotation is None:
            return None
        promised = any(schemes.powers_of_two(statement.says) for statement in group.model)
        codec = cls(
            found,
            rotation=rotation,
            powers_of_two=promised or scale.dtype in EXPONENTS,
            are_exponents=scale.dtype == "U8",
            unit=SCALES[name],
        )
        return group.stored(codec, weight.shape, {WEIGHT: weight, "scale": scale})

    @classmethod
    def contradiction(cls, group: Group) -> str:
        """Report float8 in another form than statements name."""
        weight = group.parts.get("")
        if weight is None or is_form(weight, group):
            return ""
        form = visible(str(group.options["fmt"]))
        return f"which is {DTYPES[weight.dtype].title}, though it is said to be {form} (fmt)"

    @property
    def mixes(self) -> bool:
        """Tell whether ConvRot turned the weight."""
        return bool(self.rotation)

    def title(self, stored: Stored) -> str:
        """Name the dtype, what each scale is for, and what is promised."""
        words = [f"{DTYPES[stored.parts[WEIGHT].dtype].title} with {self.grid.title}"]
        words += ["powers of two"] * self.powers_of_two
        words += ["ConvRot"] * bool(self.rotation)
        return ", ".join(words)

    def dtype(self, stored: Stored) -> str:
        """Return the dtype of the stored values."""
        return stored.parts[WEIGHT].dtype

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Multiply, and turn back."""
        shape = stored.shape
        flat = parts[WEIGHT].to(dtype).reshape(shape[0] if shape else 1, -1)
        values = (flat * self.grid.spread(self._factors(parts["scale"].to(dtype)), shape)).reshape(shape)
        return rotate(values, self.rotation) if self.rotation else values

    def written(self, stored: Stored) -> tuple[str, ...]:
        """Fill the values and their scales."""
        return (WEIGHT, "scale")

    def encode(self, stored: Stored, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Divide by new scales, so that the largest value of each block becomes the dtype's largest.

        With scales that are powers of two, it becomes at most the dtype's largest. Scales are rounded before the
        division.
        """
        import torch

        if self.rotation:
            weight = rotate(weight, self.rotation)
        scale = stored.parts["scale"]
        largest = self.grid.largest_of(weight).reshape(scale.shape)
        largest = largest / (DTYPES[stored.parts[WEIGHT].dtype].largest * self.unit)
        fresh = torch.where(largest > 0, largest, torch.ones_like(largest))
        if self.powers_of_two:
            exponents = next_powers(fresh)
            powers = torch.ldexp(torch.ones(exponents.shape, dtype=fresh.dtype), exponents)
            fresh = (exponents + 127.0 if self.are_exponents else powers).to(fresh.device)
        fresh = fresh.to(getattr(torch, str(DTYPES[scale.dtype].torch))).to(weight.dtype)
        flat = weight.reshape(stored.shape[0] if stored.shape else 1, -1)
        units = self.grid.spread(self._factors(fresh), stored.shape)
        return {WEIGHT: (flat / units).reshape(stored.shape), "scale": fresh}

    def _factors(self, scale: torch.Tensor) -> torch.Tensor:
        """Return what stored values are multiplied by, from scales as they are stored."""
        if self.are_exponents:
            return powers_of(scale)
        return scale * self.unit


CODECS = (Scaled,)


def is_form(weight: TensorInfo, group: Group) -> bool:
    """Tell whether a weight in float8 is in the form that statements name, if they name one."""
    form = str(group.options.get("fmt")).removeprefix("float8_")
    return weight.dtype not in FORMS.values() or weight.dtype == FORMS.get(form, weight.dtype)


def is_said(found: Grid, shape: tuple[int, ...], group: Group) -> bool:
    """Tell whether blocks, as shapes show them, are of a size that statements name, if they name any.

    One scale, one a row and one a column leave nothing to say. An axis with one scale tells no size of its own.
    """
    axes = list(zip((found.down, found.across), (found.high, found.wide), shape, strict=False))
    if len(shape) != 2 or not any(1 < count < length for count, _, length in axes):
        return True
    said = [*schemes.blocks(group.options)]

    def fits(block: int, count: int, size: int, length: int) -> bool:
        return block >= length if count == 1 else block == size

    return not said or any(all(fits(size, *axis) for size, axis in zip(block, axes, strict=True)) for block in said)


def _rotation(group: Group, weight: TensorInfo, found: Grid) -> int | None:
    """Return how many values ConvRot turns together, 0 for none; None where a note says anything else."""
    says = comfy.said(group)
    if not says.keys() <= comfy.ROTATING or says.get("format") != comfy.NAMES[weight.dtype]:
        return None
    if "convrot" not in says:
        return 0
    if weight.dtype != "I8" or len(weight.shape) != 2 or found.across != 1:
        return None
    return comfy.rotated_values(says, weight.shape[1])
