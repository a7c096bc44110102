"""Weights that are no plain floats: what the tensors that hold one are worth, and how a changed one is stored again.

*Scaled* weights have 8 bits a value, times scales: stored in their own shape, they can be encoded anew. *Packed* ones
have several values a number, or blocks of GGUF, or rows in another order: they are decoded only. Which tensors hold
which, `lorabake.storage.recognition` tells. What needs torch imports it where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, cast

from lorabake.tensors.dtypes import DTYPES, decode_scalar
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.reader import read_stored
from lorabake.tensors.small import parse_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Facts = Mapping[str, object]
Parts = Mapping[str, "torch.Tensor"]

BLOCK = 128
"""Rows and columns of a block where the shape of the scales says no other."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns AWQ puts into which four bits, the lowest first."""

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of e2m1, by their four bits (OCP Microscaling Formats 1.0)."""

MAX_NOTE = 4096
"""Bytes of a short tensor that says how a weight is stored."""


@dataclass(frozen=True, slots=True)
class PackedInfo(TensorInfo):
    """Say which tensors hold a weight: `dtype` names the way, `shape` is the weight's own, `parts` are by role.

    `facts` hold what else it takes to decode it, or was promised of how it is stored. Offsets are those of the first
    part.
    """

    parts: Mapping[str, TensorInfo] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name the way in words: "int8 with row scales, ConvRot"."""
        way, _, stored = self.dtype.partition(" ")
        if way != "scaled":
            return self.dtype
        found = grid(self.shape, self.parts["scale"].shape)
        assert found is not None
        (down, across), (high, wide) = found
        each = "block" if high > 1 and wide > 1 else "column" if high > 1 else "group" if across > 1 else "row"
        words = [f"{DTYPES[stored].title} with {'one scale' if down * across == 1 else f'{each} scales'}"]
        words += ["powers of two"] * bool(self.facts.get("powers_of_two"))
        words += ["ConvRot"] * bool(self.facts.get("rotation"))
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Strange:
    """Name a weight whose stored values are not its own, in a way that this version does not know.

    `title` is what the way is called; `why` goes on after the weight's key, with advice on further lines; `parts` are
    the keys of the tensors that stand for the weight, which stay as they are; codes are in a dtype of no parameter.
    """

    title: str
    why: str
    parts: frozenset[str]
    has_codes: bool = False


@dataclass(frozen=True)
class Packing:
    """Hold how a checkpoint's weights are stored that are no plain floats, by the weight's key.

    What is `strange` is neither decoded nor cast, even if it is in `packed`, too; `aside` are tensors about what goes
    through a layer, such as the scale of its inputs; `grown` are plain weights that a LoRA widens.
    """

    packed: Mapping[str, PackedInfo] = field(default_factory=dict)
    scaled: Mapping[str, PackedInfo] = field(default_factory=dict)
    strange: Mapping[str, Strange] = field(default_factory=dict)
    aside: frozenset[str] = frozenset()
    grown: Mapping[str, PackedInfo] = field(default_factory=dict)

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Collect the keys of all tensors that no cast may touch: they stand for weights, or say how to read them."""
        parts = (each.parts.values() for each in chain(self.packed.values(), self.scaled.values()))
        stored = {part.key for part in chain.from_iterable(parts)} - self.scaled.keys()
        return self.aside.union(stored, *(each.parts for each in self.strange.values()))

    @property
    def codes(self) -> frozenset[str]:
        """Return the keys of weights that are stored as codes, in a dtype that no plain parameter has."""
        strange = {key for key, each in self.strange.items() if each.has_codes}
        return frozenset({*self.packed, *self.scaled, *strange})

    @property
    def titles(self) -> list[str]:
        """Name the way of each weight that is no plain float."""
        known = (info for info in chain(self.packed.values(), self.scaled.values()) if info.key not in self.strange)
        return [info.title for info in known] + [each.title for each in self.strange.values()]

    def logical(self, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """Return a checkpoint's tensors as if nothing were packed: each packed weight in its first part's place."""
        owners = {part.key: key for key, info in self.packed.items() for part in info.parts.values()}
        found: dict[str, TensorInfo] = {}
        for key, tensor in tensors.items():
            owner = owners.get(key, key)
            found.setdefault(owner, self.packed.get(owner, tensor))
        return found


# -- Scaled ----------------------------------------------------------------------------------------------


def grid(weight: tuple[int, ...], scale: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return how many scales a matrix has (down, across), and the size of the block that each is for.

    None where the shape does not tell: one for all, one a row, one a column, one for 128 by 128, or one for so many
    values of a row.
    """
    rows, columns = weight[0] if weight else 1, prod(weight[1:])
    if prod(scale) == 1:
        return (1, 1), (rows, columns)
    if scale[:1] == weight[:1] and prod(scale) == rows:
        return (rows, 1), (1, columns)
    if len(weight) != 2 or len(scale) != 2:
        return None
    down, across = scale
    high = _block(rows, down)
    wide = columns // across if high == 1 and columns % max(across, 1) == 0 else _block(columns, across)
    return ((down, across), (high, wide)) if high and wide else None


def _block(size: int, count: int) -> int:
    if count in (1, size):
        return size // max(count, 1)
    return BLOCK if -(-size // BLOCK) == count else 0


def rotate(weight: torch.Tensor, group: int) -> torch.Tensor:
    """Multiply each `group` values of a row by the regular Hadamard matrix of that size, which is its own inverse.

    ConvRot (arXiv 2512.03673, theorem 3.3; comfy-kitchen) stores W·H of a linear layer and turns the inputs likewise.
    H is the Kronecker power of the 4 × 4 matrix of ones with −1 on the diagonal that rises, over the root of `group`.
    """
    import torch

    four = 0.5 - torch.eye(4, dtype=weight.dtype, device=weight.device).flip(0)
    matrix = four
    while len(matrix) < group:
        matrix = torch.kron(matrix, four)
    return (weight.reshape(-1, group) @ matrix).reshape(weight.shape)


def factors(info: PackedInfo, scale: torch.Tensor) -> torch.Tensor:
    """Return what a scaled weight's stored values are multiplied by, from its scales as they are stored.

    bitsandbytes' SCB is 127 times that, and a whole number is an exponent of two, 127 more than it is (E8M0).
    """
    import torch

    if info.parts["scale"].dtype == "U8":
        return torch.ldexp(torch.ones_like(scale), scale.int() - 127)
    return scale * (1 / 127 if info.parts["scale"].key.endswith(".SCB") else 1.0)


def spread(scale: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Repeat scales until they multiply a matrix (rows, columns) elementwise."""
    found = grid(shape, tuple(scale.shape))
    assert found is not None
    (down, across), (high, wide) = found
    rows, columns = shape[0] if shape else 1, prod(shape[1:])
    tall = scale.reshape(down, across).repeat_interleave(high, 0)[:rows]
    return tall.repeat_interleave(wide, 1)[:, :columns] if across > 1 else tall


def largest_of(weight: torch.Tensor, shape: tuple[int, ...], scale: tuple[int, ...]) -> torch.Tensor:
    """Return the largest magnitude of each block that has a scale, in the shape of the scales."""
    import torch

    found = grid(shape, scale)
    assert found is not None
    (down, across), (high, wide) = found
    sizes = weight.abs().reshape(shape[0] if shape else 1, -1)
    sizes = torch.nn.functional.pad(sizes, (0, across * wide - sizes.shape[1], 0, down * high - sizes.shape[0]))
    return sizes.view(down, high, across, wide).amax(dim=(1, 3)).reshape(scale)


def grow(weight: TensorInfo, shape: tuple[int, ...]) -> PackedInfo:
    """Describe a weight with zeros behind its values along every side that is shorter than in `shape`."""
    return described("padded", weight.key, shape, {"weight": weight})


def reordered(tensor: TensorInfo, rows: tuple[range, ...]) -> PackedInfo:
    """Describe a tensor whose rows are to be read in another order, `rows` saying which comes when."""
    return described(f"reordered {tensor.dtype}", tensor.key, tensor.shape, {"tensor": tensor}, {"rows": rows})


def turned(tensor: TensorInfo) -> PackedInfo:
    """Describe a matrix that is to be read as its transpose."""
    return described(f"turned {tensor.dtype}", tensor.key, tensor.shape[::-1], {"tensor": tensor})


def described(
    title: str, key: str, shape: tuple[int, ...], parts: Mapping[str, TensorInfo], facts: Facts | None = None
) -> PackedInfo:
    """Describe a weight of this key and shape that these parts hold."""
    first = next(iter(parts.values()))
    folder = first.key.removesuffix(first.name)
    name = key.removeprefix(folder)
    return PackedInfo(key, name, title, shape, first.file, first.start, first.stop, parts, facts or {})


def decode(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """Return a weight's values in its own shape; `parts` hold its tensors as they are stored."""
    return DECODERS[info.dtype.partition(" ")[0]](info, parts, dtype)


def unscaled(info: PackedInfo, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return what a scaled weight's values are worth, in its own shape, from its stored values and scales."""
    flat = weight.reshape(info.shape[0] if info.shape else 1, -1)
    values = (flat * spread(factors(info, scale), info.shape)).reshape(info.shape)
    return rotate(values, cast(int, info.facts["rotation"])) if info.facts.get("rotation") else values


def encode(info: PackedInfo, weight: torch.Tensor, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a changed weight in units of fresh scales, still to be rounded, and the scales, as they are stored.

    The largest value that a scale is for becomes the dtype's largest, or no more where scales are powers of two.
    What is promised of how the weight is stored stays true: rotation, powers of two, shape and dtype of scales.
    """
    import torch

    if info.facts.get("rotation"):
        weight = rotate(weight, cast(int, info.facts["rotation"]))
    stored = info.parts["scale"]
    factor = 1 / 127 if stored.key.endswith(".SCB") else 1.0
    largest = largest_of(weight, info.shape, stored.shape) / (DTYPES[info.parts["weight"].dtype].largest * factor)
    fresh = torch.where(largest > 0, largest, torch.ones_like(largest))
    if info.facts.get("powers_of_two"):
        part, exponent = torch.frexp(fresh.cpu())  # not every device can
        exponent = (exponent - (part == 0.5).int()).clamp(min=-126)  # E8M0 has few below it
        powers = exponent + 127.0 if stored.dtype == "U8" else torch.ldexp(torch.ones_like(part), exponent)
        fresh = powers.to(fresh.device)
    fresh = fresh.to(scale_dtype).to(weight.dtype)
    flat = weight.reshape(info.shape[0] if info.shape else 1, -1)
    return (flat / spread(factors(info, fresh), info.shape)).reshape(info.shape), fresh


def _decode_scaled(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    return unscaled(info, parts["weight"].to(dtype), parts["scale"].to(dtype))


def _decode_convrot(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    import torch

    pairs = parts["codes"]
    codes = torch.stack((pairs & 15, pairs >> 4 & 15), dim=-1).flatten(-2)
    values = ((codes ^ 8) - 8).to(dtype) * parts["scale"].to(dtype).reshape(-1, 1)
    return rotate(values, cast(int, info.facts["rotation"]))


def _decode_quanto(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    import torch

    scale = parts["scale"].to(dtype)
    if "shift" not in parts:  # 8 bits
        return parts["data"].to(dtype) * scale
    bits, rows = cast(int, info.facts["bits"]), len(parts["scale"])
    bands = [parts["data"] >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
    codes, shift = torch.cat(bands)[:rows], parts["shift"]
    if shift.is_floating_point():
        return (codes.to(dtype) * scale - shift.to(dtype)).reshape(info.shape)
    return ((codes.to(dtype) - shift.to(dtype)) * scale).reshape(info.shape)


def _decode_padded(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    whole = parts["weight"].new_zeros(info.shape, dtype=dtype)
    whole[tuple(slice(size) for size in parts["weight"].shape)] = parts["weight"]
    return whole


def _decode_reordered(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    import torch

    tensor, rows = parts["tensor"], cast(tuple[range, ...], info.facts["rows"])
    order = torch.cat([torch.arange(each.start, each.stop, each.step, device=tensor.device) for each in rows])
    return tensor.to(dtype)[order]


def _decode_turned(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    return parts["tensor"].to(dtype).T.contiguous()


def dequantize(info: PackedInfo, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the values of a quantised tensor, as the gguf package has them."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize as unpack

    kind = GGMLQuantizationType[str(info.facts["type"])]
    _, width = GGML_QUANT_SIZES[kind]
    values: NDArray[np.float32] = unpack(raw.reshape(-1, width), kind)
    return np.ascontiguousarray(values, dtype=np.float32).reshape(info.shape)


def _decode_gguf(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    import torch

    return torch.from_numpy(dequantize(info, parts["data"].cpu().numpy())).to(parts["data"].device, dtype)


def _decode_bitsandbytes(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    import torch

    codes = parts["codes"].reshape(-1)
    values = parts["quant_map"].to(dtype)[torch.stack((codes >> 4, codes & 15), dim=1).reshape(-1).long()]
    sizes = parts["absmax"].to(dtype)
    if info.facts["nested_blocksize"]:
        outer = _stretch(parts["nested_absmax"].to(dtype), cast(int, info.facts["nested_blocksize"]), sizes)
        table = parts["nested_quant_map"].to(dtype)
        sizes = table[parts["absmax"].long()] * outer + cast(float, info.facts["offset"])
    return (values * _stretch(sizes, cast(int, info.facts["blocksize"]), values)).reshape(info.shape)


def _decode_gptq(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    bits = cast(int, info.facts["bits"])
    codes = _unpack(parts["qweight"].T, bits).T
    zeros = (_unpack(parts["qzeros"], bits) + cast(int, info.facts["offset"])) & ((1 << bits) - 1)
    return _by_group(codes, zeros, parts, dtype)


def _decode_awq(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    import torch

    places = torch.tensor([AWQ_ORDER.index(place) for place in range(8)], device=parts["scales"].device)
    codes, zeros = (_unpack(parts[name], 4) for name in ("qweight", "qzeros"))
    codes, zeros = (each.view(len(each), -1, 8)[..., places].flatten(1) for each in (codes, zeros))
    return _by_group(codes, zeros, parts, dtype)


def _by_group(codes: torch.Tensor, zeros: torch.Tensor, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """Return (code − zero)·scale, transposed; codes are (in, out), zeros and scales (groups, out)."""
    import torch

    scales, inputs = parts["scales"].to(dtype), codes.shape[0]
    even = torch.arange(inputs, device=codes.device) // (inputs // len(scales))
    group = parts["g_idx"].long() if "g_idx" in parts else even
    if torch.equal(group, even):  # as mostly: no scale need be gathered for each value
        apart = codes.reshape(len(scales), -1, codes.shape[1])
        return (apart - zeros[:, None]).to(dtype).mul_(scales[:, None]).flatten(0, 1).T.contiguous()
    return (codes - zeros[group]).to(dtype).mul_(scales[group]).T.contiguous()


def _decode_compressed(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    bits, scales = cast(int, info.facts["bits"]), parts["scale"].to(dtype)
    codes = _unpack(parts["packed"], bits)[:, : info.shape[1]] - (1 << bits - 1)
    return codes.to(dtype) * scales.repeat_interleave(info.shape[1] // scales.shape[1], 1)


def _decode_mxfp4(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    import torch

    pairs = parts["blocks"]
    codes = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)
    powers = torch.ldexp(torch.ones_like(parts["scales"], dtype=dtype), parts["scales"].int() - 127)
    rows = (torch.tensor(FP4, dtype=dtype, device=codes.device)[codes.long()] * powers[..., None]).flatten(-2)
    return rows.transpose(1, 2).contiguous()


DECODERS = {
    "scaled": _decode_scaled,
    "padded": _decode_padded,
    "reordered": _decode_reordered,
    "turned": _decode_turned,
    "GGUF": _decode_gguf,
    "bitsandbytes": _decode_bitsandbytes,
    "GPTQ": _decode_gptq,
    "AWQ": _decode_awq,
    "compressed-tensors": _decode_compressed,
    "MXFP4": _decode_mxfp4,
    "quanto": _decode_quanto,
    "ConvRot": _decode_convrot,
}
"""By the first word of a packed tensor's dtype."""


def _unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Cut 32-bit numbers (rows, n) into values of so many bits (rows, n·32/bits), the lowest bits first.

    What a shift of negative numbers brings in from above, the mask takes away.
    """
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    return (words[..., None] >> shifts).bitwise_and_((1 << bits) - 1).flatten(1)


def _stretch(sizes: torch.Tensor, block: int, like: torch.Tensor) -> torch.Tensor:
    """Repeat each block's size for its values; the last block may be short."""
    return sizes.repeat_interleave(block)[: like.numel()]


def read_shape(info: TensorInfo) -> tuple[int, ...]:
    """Read a tensor of a few whole numbers, such as a shape; () where it holds none."""
    if info.dtype not in ("I64", "I32", "I16", "U8") or len(info.shape) != 1:
        return ()
    raw, width = read_note(info), DTYPES[info.dtype].bits // 8
    return tuple(int.from_bytes(raw[at : at + width], "little") for at in range(0, len(raw), width))


def read_scalar(info: TensorInfo) -> float:
    """Read a tensor of one number, such as an alpha; raise ValueError, before it is read, where it holds none."""
    if info.nbytes > 8:
        raise ValueError(f"{info.nbytes} bytes are not one {info.dtype}")
    return decode_scalar(info.dtype, read_note(info))


def read_note(info: TensorInfo) -> bytes:
    """Read a short tensor, its first bytes if it is long."""
    return read_stored(info, count=min(info.nbytes, MAX_NOTE))


def read_facts(info: TensorInfo) -> dict[str, object]:
    """Read a tensor of bytes that hold a JSON object; an empty one where they do not."""
    try:
        said = parse_json(read_note(info))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
