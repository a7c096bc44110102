"""Weights that are no plain floats: which tensors hold one, in which shape, and what its values are.

*Scaled* weights have 8 bits a value, times scales: stored in their own shape, they can be encoded anew. *Packed* ones
have several values a number, or blocks of GGUF, or rows in another order: they are decoded only. Headers alone tell,
but for the short notes (JSON, some hundred bytes) in which a few formats say how they packed. `decode` alone needs
torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, cast

from lorabake.tensors.dtypes import DTYPES, LARGEST
from lorabake.tensors.safetensors import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Facts = Mapping[str, object]
Parts = Mapping[str, "torch.Tensor"]

SCALES = ("scale_weight", "weight_scale", "weight_scale_inv", "SCB")
"""What the scales of a weight of 8 bits are called beside it; bitsandbytes' SCB is 127 times one."""

HARMLESS = ("weight", "bias", "input_scale", "scale_input", "weight_format")
"""What may stand beside a weight of 8 bits without a say in its values."""

NOTES = ("comfy_quant", "weight_format", "input_scale", "scale_input")
"""Short tensors beside a weight that say how it is stored; they go when it becomes a plain one."""

BLOCK = 128
"""Rows and columns of a block where the shape of the scales says no other."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns AWQ puts into which four bits, the lowest first."""

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of e2m1, by their four bits (OCP Microscaling Formats 1.0)."""

BITSANDBYTES = (
    "absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4",
    "quant_state.bitsandbytes__fp4",
)  # fmt: skip
"""What stands behind the name of a weight in bitsandbytes' 4 bits."""

MAX_NOTE = 4096


@dataclass(frozen=True, slots=True)
class PackedInfo(TensorInfo):
    """Say which tensors hold a weight: `dtype` names the way, `shape` is the weight's own, `parts` are by role.

    `facts` hold what else it takes to decode it. Offsets are those of the first part.
    """

    parts: Mapping[str, TensorInfo] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Packing:
    """Hold a checkpoint's packed and scaled weights, by the weight's key.

    `strange` maps weights of 8 bits to a tensor beside them whose role is unknown; `grown` are plain weights that a
    LoRA widens.
    """

    packed: Mapping[str, PackedInfo] = field(default_factory=dict)
    scaled: Mapping[str, PackedInfo] = field(default_factory=dict)
    strange: Mapping[str, str] = field(default_factory=dict)
    grown: Mapping[str, PackedInfo] = field(default_factory=dict)

    def logical(self, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """Return a checkpoint's tensors as if nothing were packed: each packed weight in its first part's place."""
        owners = {part.key: key for key, info in self.packed.items() for part in info.parts.values()}
        found: dict[str, TensorInfo] = {}
        for key, tensor in tensors.items():
            owner = owners.get(key, key)
            found.setdefault(owner, self.packed.get(owner, tensor))
        return found


def find_packing(tensors: Mapping[str, TensorInfo], config: Mapping[str, object]) -> Packing:
    """Find what is packed or scaled; `config` is the model's config.json, which says some of it.

    What looks packed and is not known stays as the plain tensors that it is stored in.
    """
    dtypes = {info.dtype for info in tensors.values()}
    packed = {key: info for key, info in tensors.items() if isinstance(info, PackedInfo)}
    if packed or not dtypes & {"U8", "I8", "I32", *LARGEST}:
        return Packing(packed)
    said = config.get("quantization_config")
    options: Facts = said if isinstance(said, dict) else {}
    packed = {info.key: info for info in _packed(tensors, options)}
    scaled: dict[str, PackedInfo] = {}
    strange: dict[str, str] = {}
    beside: dict[str, list[str]] = {}
    for key in tensors:
        module, _, leaf = key.rpartition(".")
        if leaf not in HARMLESS:
            beside.setdefault(module.removesuffix(".weight"), []).append(key)
        if stem := re.match(r"(.+)_scales?(?:_inv)?\Z", key):
            beside.setdefault(stem[1], []).append(key)
    parts = {part.key for info in packed.values() for part in info.parts.values()}
    for key, info in tensors.items():
        if DTYPES[info.dtype].bits != 8 or not info.shape or key in parts or key in packed:
            continue
        module = key.removesuffix(".weight")
        others = [other for other in beside.get(module, ()) if other != key]
        names = [f"{module}.{leaf}" for leaf in SCALES if f"{module}.{leaf}" in others]
        if len(names) == 1 and (found := _scaled(info, tensors[names[0]], tensors, options)):
            unknown = set(others) - {part.key for part in found.parts.values()}
            if not unknown:
                scaled[key] = found
                continue
            others = sorted(unknown)
        if others:
            strange[key] = (names or others)[0]
    return Packing(packed, scaled, strange)


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


def unit(scale_key: str) -> float:
    """Return what a scale of this name is to be multiplied by."""
    return 1 / 127 if scale_key.endswith(".SCB") else 1.0


def _scaled(
    weight: TensorInfo, scale: TensorInfo, tensors: Mapping[str, TensorInfo], options: Facts
) -> PackedInfo | None:
    """Describe a weight times its scales; None where more than these decides its values."""
    if weight.dtype not in LARGEST or scale.dtype not in ("F32", "BF16", "F16"):
        return None
    if scale.key.endswith(".SCB") and weight.dtype != "I8":
        return None
    shape = grid(weight.shape, scale.shape)
    size = options.get("weight_block_size")
    if shape is None or (size is not None and min(shape[0]) > 1 and list(shape[1]) != size):
        return None
    module = weight.key.removesuffix(".weight")
    notes = {leaf: tensors[f"{module}.{leaf}"] for leaf in NOTES if f"{module}.{leaf}" in tensors}
    if "comfy_quant" in notes:
        said = _json(notes["comfy_quant"])
        formats = {"I8": "int8_tensorwise", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
        plain = said.keys() <= {"format", "full_precision_matrix_mult"}
        if not plain or said.get("format") != formats[weight.dtype]:
            return None
    if "weight_format" in notes and _raw(notes["weight_format"]).strip(b"\0"):
        return None  # bitsandbytes laid it out for one GPU
    parts = {"weight": weight, "scale": scale, **notes}
    return _described(f"scaled {weight.dtype}", weight.key, weight.shape, parts)


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


# -- Packed ----------------------------------------------------------------------------------------------


def _packed(tensors: Mapping[str, TensorInfo], options: Facts) -> Iterator[PackedInfo]:
    for key, info in tensors.items():
        stem, _, leaf = key.rpartition(".")
        if leaf == "absmax" and stem in tensors:
            found = _bitsandbytes(stem, tensors)
        elif leaf == "qweight" and f"{stem}.scales" in tensors and f"{stem}.qzeros" in tensors:
            found = _by_groups(stem, tensors, options)
        elif leaf == "weight_packed" and f"{stem}.weight_scale" in tensors:
            found = _compressed(stem, tensors)
        elif key.endswith("_blocks") and info.dtype == "U8" and len(info.shape) == 4:
            found = _mxfp4(key.removesuffix("_blocks"), tensors)
        else:
            continue
        if found is not None:
            yield found


def _bitsandbytes(key: str, tensors: Mapping[str, TensorInfo]) -> PackedInfo | None:
    """bitsandbytes' 4 bits (Dettmers et al. 2023, arXiv 2305.14314): codes, a table of values, sizes of blocks."""
    parts = {leaf: tensors[f"{key}.{leaf}"] for leaf in BITSANDBYTES if f"{key}.{leaf}" in tensors}
    note = next((leaf for leaf in parts if leaf.startswith("quant_state")), None)
    if note is None or "quant_map" not in parts or tensors[key].dtype != "U8":
        return None
    said = _json(parts[note])
    shape, size = said.get("shape"), said.get("blocksize")
    nested = said.get("nested_blocksize") if "nested_absmax" in parts else None
    if not isinstance(shape, list) or type(size) is not int or tensors[key].nbytes * 2 != prod(shape):
        return None
    if nested is not None and (type(nested) is not int or "nested_quant_map" not in parts):
        return None
    if parts["absmax"].dtype != ("U8" if nested else "F32"):
        return None
    facts = {"blocksize": size, "nested_blocksize": nested, "offset": said.get("nested_offset", 0.0)}
    title = f"bitsandbytes {said.get('quant_type', '4 bits')}"
    return _described(title, key, tuple(shape), {"codes": tensors[key], **parts}, facts)


def _by_groups(module: str, tensors: Mapping[str, TensorInfo], options: Facts) -> PackedInfo | None:
    """Describe GPTQ (arXiv 2210.17323) packed along the inputs, and AWQ (arXiv 2306.00978) along the outputs.

    GPTQ's two formats differ in nothing but what they mean by a zero: config.json has to say which it is.
    """
    names = ("qweight", "qzeros", "scales", "g_idx")
    parts = {name: tensors[f"{module}.{name}"] for name in names if f"{module}.{name}" in tensors}
    weight, zeros, scales = (parts[name].shape for name in names[:3])
    if {len(shape) for shape in (weight, zeros, scales)} != {2} or parts["qweight"].dtype != "I32":
        return None
    groups, out = scales
    key = f"{module}.weight"
    if weight[1] * 8 == out and zeros == (groups, weight[1]) and weight[0] % groups == 0 and "g_idx" not in parts:
        version = str(options.get("version", "gemm")).lower()
        return _described("AWQ", key, (out, weight[0]), parts, {"bits": 4}) if version == "gemm" else None
    bits = 32 * zeros[1] // out
    if weight[1] != out or bits not in (2, 4, 8) or zeros != (groups, out * bits // 32):
        return None
    inputs = weight[0] * 32 // bits
    if parts.get("g_idx", replace(parts["scales"], shape=(inputs,))).shape != (inputs,) or inputs % groups:
        return None
    offset = {"gptq": 1, "gptq_v2": 0}.get(str(options.get("checkpoint_format", "gptq")))
    if options.get("quant_method") != "gptq" or offset is None:
        return None  # nothing says whether zeros are stored less one, or that it was not packed anew for one kernel
    return _described("GPTQ", key, (out, inputs), parts, {"bits": bits, "offset": offset})


def _compressed(module: str, tensors: Mapping[str, TensorInfo]) -> PackedInfo | None:
    """compressed-tensors' `pack-quantized`: 4 or 8 bits a value, half of the range below zero, scales by group."""
    packed, scale = tensors[f"{module}.weight_packed"], tensors[f"{module}.weight_scale"]
    noted = tensors.get(f"{module}.weight_shape")
    if noted is None or noted.dtype not in ("I64", "I32") or noted.shape != (2,) or packed.dtype != "I32":
        return None
    if {f"{module}.weight_zero_point", f"{module}.weight_g_idx"} & tensors.keys() or len(scale.shape) != 2:
        return None
    out, inputs = read_shape(noted)
    bits = next((bits for bits in (4, 8) if packed.shape == (out, -(-inputs * bits // 32))), 0)
    if not bits or scale.shape[0] != out or inputs % max(scale.shape[1], 1):
        return None
    parts = {"packed": packed, "scale": scale, "shape": noted}
    return _described("compressed-tensors", f"{module}.weight", (out, inputs), parts, {"bits": bits})


def _mxfp4(key: str, tensors: Mapping[str, TensorInfo]) -> PackedInfo | None:
    """Describe MXFP4 as gpt-oss stores experts: 32 values a block along the inputs, the weight transposed in use."""
    blocks, scales = tensors[f"{key}_blocks"], tensors.get(f"{key}_scales")
    if scales is None or scales.dtype != "U8" or scales.shape != blocks.shape[:3] or blocks.shape[3] != 16:
        return None
    experts, rows, groups, _ = blocks.shape
    return _described("MXFP4", key, (experts, groups * 32, rows), {"blocks": blocks, "scales": scales})


def grow(weight: TensorInfo, shape: tuple[int, ...]) -> PackedInfo:
    """Describe a weight with zeros behind its values along every side that is shorter than in `shape`."""
    return _described("padded", weight.key, shape, {"weight": weight})


def reordered(tensor: TensorInfo, rows: tuple[range, ...]) -> PackedInfo:
    """Describe a tensor whose rows are to be read in another order, `rows` saying which comes when."""
    return _described(f"reordered {tensor.dtype}", tensor.key, tensor.shape, {"tensor": tensor}, {"rows": rows})


def turned(tensor: TensorInfo) -> PackedInfo:
    """Describe a matrix that is to be read as its transpose."""
    return _described(f"turned {tensor.dtype}", tensor.key, tensor.shape[::-1], {"tensor": tensor})


def _described(
    title: str, key: str, shape: tuple[int, ...], parts: Mapping[str, TensorInfo], facts: Facts | None = None
) -> PackedInfo:
    first = next(iter(parts.values()))
    folder = first.key.removesuffix(first.name)
    name = key.removeprefix(folder)
    return PackedInfo(key, name, title, shape, first.file, first.start, first.stop, parts, facts or {})


def decode(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """Return a weight's values in its own shape; `parts` hold its tensors as they are stored."""
    return DECODERS[info.dtype.partition(" ")[0]](info, parts, dtype)


def _decode_scaled(info: PackedInfo, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    scale = parts["scale"].to(dtype) * unit(info.parts["scale"].key)
    flat = parts["weight"].to(dtype).reshape(info.shape[0] if info.shape else 1, -1)
    return (flat * spread(scale, info.shape)).reshape(info.shape)


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
    raw, width = _raw(info), DTYPES[info.dtype].bits // 8
    return tuple(int.from_bytes(raw[at : at + width], "little") for at in range(0, len(raw), width))


def _raw(info: TensorInfo) -> bytes:
    with open(info.file, "rb") as stream:
        stream.seek(info.start)
        return stream.read(min(info.nbytes, MAX_NOTE))


def _json(info: TensorInfo) -> dict[str, object]:
    """Read a tensor of bytes that hold a JSON object; an empty one where they do not."""
    try:
        said = json.loads(_raw(info))
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
