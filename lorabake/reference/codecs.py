"""What packed and scaled weights hold, worked out a second time: NumPy, float64, apart from what bakes.

Each function goes by the description of its format, index by index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lorabake.reference.formulas.formula import Array
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.packing import PackedInfo, dequantize

Stored = Callable[[str], NDArray[Any]]
E2M1 = [sign * size for sign in (1, -1) for size in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]


def scales(info: PackedInfo, stored: Array) -> Array:
    """Return the scale of each value of a weight, (rows, columns) or what broadcasts to it."""
    kind, shape = info.parts["scale"], info.shape
    factor = 1 / 127 if kind.key.endswith("SCB") else 1.0
    stored = np.exp2(stored.astype(np.float64) - 127) if kind.dtype == "U8" else stored
    rows, columns = shape[0] if shape else 1, int(np.prod(shape[1:], dtype=int))
    if stored.size == 1:
        return np.full((1, 1), stored.item() * factor)
    if stored.size == rows and stored.shape[0] == rows:
        return stored.reshape(rows, 1) * factor
    down, across = stored.shape
    return np.asarray(stored[np.ix_(starts(rows, down), starts(columns, across, short=down == rows))] * factor)


def starts(size: int, count: int, *, short: bool = False) -> NDArray[np.intp]:
    """Return which of `count` blocks each of `size` places is in: even ones, or of 128 and the rest."""
    even = count in (1, size) or (short and size % count == 0)
    return np.arange(size) // (size // count if even else 128)


def largest(weight: Array, stored: Array) -> Array:
    """Return the largest magnitude in the block of each stored scale, in the scales' shape."""
    rows, columns = weight.shape
    if stored.size == 1 or (stored.size == rows and stored.shape[0] == rows):
        by_row = np.abs(weight).max(axis=1)
        return np.asarray((by_row.max() if stored.size == 1 else by_row).reshape(stored.shape))
    down, across = stored.shape
    found = np.zeros(stored.shape)
    where = np.broadcast_arrays(starts(rows, down)[:, None], starts(columns, across, short=down == rows)[None])
    np.maximum.at(found, (where[0].ravel(), where[1].ravel()), np.abs(weight).ravel())
    return found


def may_cancel(info: TensorInfo | None) -> bool:
    """Tell whether a stored weight's values are sums of larger numbers: small ones are then as inexact as these."""
    return isinstance(info, PackedInfo) and bool(info.facts.get("rotation") or "shift" in info.parts)


def hadamard(group: int) -> Array:
    """Return ConvRot's matrix: the Kronecker power of a 4 × 4 one, over the root of its size; its own inverse."""
    four = np.array([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    matrix: Array = np.ones((1, 1))
    while len(matrix) < group:
        matrix = np.asarray(np.kron(matrix, four))
    return np.asarray(matrix / np.sqrt(group))


def turned(info: PackedInfo, rows: Array) -> Array:
    """Turn rows of a weight into the basis in which it is stored, or back."""
    group = int(str(info.facts.get("rotation", 0)))
    if not group:
        return rows
    return np.asarray((rows.reshape(len(rows), -1, group) @ hadamard(group)).reshape(rows.shape))


def worth(info: PackedInfo, rows: Array, scale: Array) -> Array:
    """Return what a scaled weight's rows are worth, all of them, from their stored values and scales."""
    return turned(info, rows * scales(info, scale))


def next_power(values: Array) -> Array:
    """Return the least power of two that is no smaller, 2^−126 at least.

    That is float64's exponent, one higher where a bit follows it.
    """
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
    whole = bits & np.uint64(0xFFF0000000000000)
    return np.maximum(np.where(bits == whole, whole, whole + np.uint64(1 << 52)).view(np.float64), 2.0**-126)


def as_stored(dtype: str, powers: Array) -> Array:
    """Return powers of two as they are stored: as themselves, or as exponents, 127 more than they are (E8M0)."""
    return np.asarray(np.log2(powers) + 127) if dtype == "U8" else powers


def unpack(info: PackedInfo, stored: Stored) -> Array:
    """Return a weight's values in its own shape; `stored` reads one of its parts as the numbers that it holds."""
    way = info.dtype.partition(" ")[0]
    return WAYS[way](info, stored)


def _scaled(info: PackedInfo, stored: Stored) -> Array:
    rows = stored("weight").reshape(info.shape[0] if info.shape else 1, -1)
    return worth(info, rows, stored("scale")).reshape(info.shape)


def _padded(info: PackedInfo, stored: Stored) -> Array:
    weight = stored("weight")
    return np.pad(weight, [(0, due - size) for due, size in zip(info.shape, weight.shape, strict=True)])


def _reordered(info: PackedInfo, stored: Stored) -> Array:
    tensor, place = stored("tensor"), 0
    values = np.full(info.shape, np.nan)
    for rows in cast(tuple[range, ...], info.facts["rows"]):
        values[place : place + len(rows)] = tensor[rows.start : rows.stop : rows.step]
        place += len(rows)
    return values


def _turned(info: PackedInfo, stored: Stored) -> Array:
    return np.asarray(np.einsum("ij->ji", stored("tensor")))


def _gguf(info: PackedInfo, stored: Stored) -> Array:
    return dequantize(info, stored("data")).astype(np.float64)


def _bitsandbytes(info: PackedInfo, stored: Stored) -> Array:
    codes, table, sizes = stored("codes").ravel().astype(np.uint8), stored("quant_map"), stored("absmax")
    if nested := info.facts["nested_blocksize"]:
        places = np.arange(sizes.size) // int(str(nested))
        sizes = stored("nested_quant_map")[sizes.astype(int)] * stored("nested_absmax")[places]
        sizes = sizes + float(str(info.facts["offset"]))
    values = np.empty(codes.size * 2)
    values[0::2], values[1::2] = table[codes // 16], table[codes % 16]
    return np.asarray(
        (values * sizes[np.arange(values.size) // int(str(info.facts["blocksize"]))]).reshape(info.shape)
    )


def _bits(words: NDArray[Any], bits: int, place: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return bits `place`·bits and up of each number."""
    numbers = words.astype(np.int64) % 2**32
    return np.asarray(numbers // 2 ** (place * bits) % 2**bits)


def _gptq(info: PackedInfo, stored: Stored) -> Array:
    bits, offset = int(str(info.facts["bits"])), int(str(info.facts["offset"]))
    many, (out, inputs) = 32 // bits, info.shape
    scale, i, o = stored("scales"), np.arange(inputs), np.arange(out)
    group = stored("g_idx").astype(int) if "g_idx" in info.parts else i // (inputs // len(scale))
    code = _bits(stored("qweight")[i // many], bits, (i % many)[:, None])
    zero = (_bits(stored("qzeros")[:, o // many], bits, (o % many)[None, :]) + offset) % 2**bits
    return np.asarray(((code - zero[group]) * scale[group]).T)


def _awq(info: PackedInfo, stored: Stored) -> Array:
    out, inputs = info.shape
    scale, o = stored("scales"), np.arange(out)
    place = np.array([0, 4, 1, 5, 2, 6, 3, 7])[o % 8][None, :]
    group = np.arange(inputs) // (inputs // len(scale))
    code, zero = (_bits(stored(name)[:, o // 8], 4, place) for name in ("qweight", "qzeros"))
    return np.asarray(((code - zero[group]) * scale[group]).T)


def _compressed(info: PackedInfo, stored: Stored) -> Array:
    bits, scale, (_, inputs) = int(str(info.facts["bits"])), stored("scale"), info.shape
    many, i = 32 // bits, np.arange(inputs)
    code = _bits(stored("packed")[:, i // many], bits, (i % many)[None, :])
    return np.asarray((code - 2 ** (bits - 1)) * scale[:, i // (inputs // scale.shape[1])])


def _mxfp4(info: PackedInfo, stored: Stored) -> Array:
    blocks, table = stored("blocks").astype(int), np.array(E2M1)
    values = np.empty((*blocks.shape[:3], 32))
    values[..., 0::2], values[..., 1::2] = table[blocks % 16], table[blocks // 16]
    values *= 2.0 ** (stored("scales") - 127.0)[..., None]
    return np.ascontiguousarray(values.reshape(*blocks.shape[:2], -1).swapaxes(1, 2))


def _convrot(info: PackedInfo, stored: Stored) -> Array:
    bytes_, place = stored("codes").astype(np.int64) % 256, np.arange(info.shape[1])
    nibbles = bytes_[:, place // 2] // 16 ** (place % 2) % 16
    return turned(info, np.where(nibbles > 7, nibbles - 16, nibbles) * stored("scale").reshape(-1, 1))


def _quanto(info: PackedInfo, stored: Stored) -> Array:
    scale = stored("scale")
    if "shift" not in info.parts:
        return np.asarray(stored("data") * scale)
    bytes_, shift, bits = stored("data").astype(np.int64), stored("shift"), int(str(info.facts["bits"]))
    row = np.arange(len(scale))
    codes = bytes_[row % len(bytes_)] // 2 ** (bits * (row // len(bytes_))).reshape(-1, *[1] * (bytes_.ndim - 1))
    codes = codes % 2**bits
    is_whole = info.parts["shift"].dtype in ("I8", "U8")
    return np.asarray((codes - shift) * scale if is_whole else codes * scale - shift).reshape(info.shape)


WAYS: dict[str, Callable[[PackedInfo, Stored], Array]] = {
    "scaled": _scaled,
    "padded": _padded,
    "reordered": _reordered,
    "turned": _turned,
    "GGUF": _gguf,
    "bitsandbytes": _bitsandbytes,
    "GPTQ": _gptq,
    "AWQ": _awq,
    "compressed-tensors": _compressed,
    "MXFP4": _mxfp4,
    "quanto": _quanto,
    "ConvRot": _convrot,
}
"""By the first word of a packed tensor's dtype."""
