"""Decode and encode stored weights a second time, in NumPy and float64, independently of the bake.

Shared with the bake is the record of what is stored (`Stored`): which tensors hold a weight, in which roles, its
shape, and the settings that recognition read from headers and statements. The types of GGUF are unpacked by the gguf
package in both accounts. Each function goes by the description of its format, index by index, and is found by the
codec's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabake.codecs.codec import WEIGHT, Showing, Stored
from lorabake.reference.formulas.formula import Array
from lorabake.reference.rounding import rounded
from lorabake.tensors.dtypes import DTYPES

Read = Callable[[str], NDArray[Any]]
"""Read one of a weight's parts as the numbers that it holds, bytes as they are."""

E2M1 = [sign * size for sign in (1, -1) for size in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]

EDGE = 2.0**-18
"""Most relative error of float32 against a block's largest value; far more than the actual one."""


def worth(weight: Stored, read: Read) -> Array:
    """Return the values of a weight, decoded, in its own shape."""
    values = FORMULAS[weight.codec.name](weight, read)
    return values if weight.view is None else _seen(weight.view, values)


def _seen(view: Showing, values: Array) -> Array:
    """Rearrange values as a view shows them."""
    if view.within is not None:
        values = _seen(view.within, values)
    if view.transpose:
        return np.asarray(np.einsum("ij->ji", values))
    shown, place = np.zeros(view.shape), 0
    if not view.rows:
        shown[tuple(np.s_[:size] for size in values.shape)] = values
        return shown
    for rows in view.rows:
        shown[place : place + len(rows)] = values[rows.start : rows.stop : rows.step]
        place += len(rows)
    return shown


def may_cancel(weight: Stored) -> bool:
    """Tell whether a weight's values are sums of larger numbers; small values then have the error of large ones."""
    cancels = CANCELLING.get(weight.codec.name)
    return cancels is not None and cancels(weight)


def settings(weight: Stored) -> Any:
    """Return the settings that reading a weight needs besides its parts, as recognition found them."""
    return weight.codec


# -- Scaled ----------------------------------------------------------------------------------------------


def _scaled(weight: Stored, read: Read) -> Array:
    rows = read(WEIGHT).reshape(weight.shape[0] if weight.shape else 1, -1)
    values = rows * _units(weight, read("scale"))
    return _turned(settings(weight).rotation, values).reshape(weight.shape)


def _units(weight: Stored, stored: Array) -> Array:
    """Return the scale of each value of a weight: (rows, columns), or an array that broadcasts to it."""
    shape, unit = weight.shape, settings(weight).unit
    stored = np.exp2(stored.astype(np.float64) - 127) if settings(weight).are_exponents else stored
    rows, columns = shape[0] if shape else 1, int(np.prod(shape[1:], dtype=int))
    if stored.size == 1:
        return np.full((1, 1), stored.item() * unit)
    if stored.size == rows and stored.shape[0] == rows:
        return np.asarray(stored.reshape(rows, 1) * unit)
    down, across = stored.shape
    return np.asarray(stored[np.ix_(_places(rows, down), _places(columns, across, short=down == rows))] * unit)


def _places(size: int, count: int, *, short: bool = False) -> NDArray[np.intp]:
    """Return the block of each of `size` positions: `count` equal blocks, or blocks of 128 and a rest."""
    even = count in (1, size) or (short and size % count == 0)
    return np.arange(size) // (size // count if even else 128)


def _largest(weight: Array, shape: tuple[int, ...]) -> Array:
    """Return the largest magnitude in the block of each scale, in the scales' shape."""
    rows, columns = weight.shape
    size = int(np.prod(shape, dtype=int))
    if size == 1 or (size == rows and shape[0] == rows):
        by_row = np.abs(weight).max(axis=1)
        return np.asarray((by_row.max() if size == 1 else by_row).reshape(shape))
    down, across = shape
    found = np.zeros(shape)
    where = np.broadcast_arrays(_places(rows, down)[:, None], _places(columns, across, short=down == rows)[None])
    np.maximum.at(found, (where[0].ravel(), where[1].ravel()), np.abs(weight).ravel())
    return found


def hadamard(group: int) -> Array:
    """Return ConvRot's matrix: the Kronecker power of a 4 × 4 one, over the root of its size; its own inverse."""
    four = np.array([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    matrix: Array = np.ones((1, 1))
    while len(matrix) < group:
        matrix = np.asarray(np.kron(matrix, four))
    return np.asarray(matrix / np.sqrt(group))


def _turned(group: int, rows: Array) -> Array:
    """Turn rows of a weight into the basis in which it is stored, or back."""
    if not group:
        return rows
    return np.asarray((rows.reshape(len(rows), -1, group) @ hadamard(group)).reshape(rows.shape))


def next_power(values: Array) -> Array:
    """Return the smallest power of two that is not below each value, and at least 2^−126.

    It is float64's exponent, plus one if the mantissa is not zero.
    """
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
    whole = bits & np.uint64(0xFFF0000000000000)
    return np.maximum(np.where(bits == whole, whole, whole + np.uint64(1 << 52)).view(np.float64), 2.0**-126)


# -- stored anew -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recoded:
    """Hold how a changed weight is stored: its rotated rows divided by `units`, and its other `parts`."""

    turn: Callable[[Array], Array]
    units: Array
    parts: Mapping[str, Array]


def recoded(weight: Stored, rows: Array, found: Callable[[str], Array | None]) -> Recoded:
    """Return how a changed weight ought to be stored, by its codec's name; `rows` are its own, (rows, columns).

    `found` reads a part of the checkpoint that is judged, None where it has none of the weight's dtype and shape:
    where the bake's precision may end on either side of an edge, it decides, if it is one of the two.
    """
    return RECODINGS[weight.codec.name](weight, rows, found)


def _scaled_anew(weight: Stored, rows: Array, found: Callable[[str], Array | None]) -> Recoded:
    """Scale each block so that its largest value becomes the dtype's largest, or less if scales are powers of two."""
    said, scale = settings(weight), weight.parts["scale"]
    sizes = _largest(_turned(said.rotation, rows), scale.shape) / DTYPES[weight.parts[WEIGHT].dtype].largest
    sizes /= said.unit
    sizes = np.where(sizes > 0, sizes, 1.0)
    due = edged(sizes, found("scale"), said.are_exponents) if said.powers_of_two else rounded(scale.dtype, sizes)
    return Recoded(lambda values: _turned(said.rotation, values), _units(weight, due), {"scale": due})


def edged(sizes: Array, found: Array | None, are_exponents: bool) -> Array:
    """Return the next powers of two as they are stored; at an edge between two, take the one in the checkpoint."""
    due, low, high = (_as_stored(next_power(sizes * (1 + off)), are_exponents) for off in (0, -EDGE, EDGE))
    return due if found is None else np.asarray(np.where((found == low) | (found == high), found, due))


def _as_stored(powers: Array, are_exponents: bool) -> Array:
    """Return powers of two as they are stored: as numbers, or as exponents plus 127 (E8M0)."""
    return np.asarray(np.log2(powers) + 127) if are_exponents else powers


# -- MXFP8 -----------------------------------------------------------------------------------------------


def _mxfp8(weight: Stored, read: Read) -> Array:
    return np.asarray(read(WEIGHT) * _block_powers(weight, read("scale")))


def _block_powers(weight: Stored, stored: Array) -> Array:
    """Return the power of two of each value, from scales as they are stored."""
    numbers = stored.astype(np.float64).ravel()[_exponent_places(weight)]
    return np.repeat(np.exp2(numbers - 127) if weight.parts["scale"].dtype == "U8" else numbers, 32, axis=1)


def _exponent_places(weight: Stored) -> NDArray[np.intp]:
    """Return where the exponent of each block lies: in order, or in cuBLAS' tiles of 128 rows by 4 blocks.

    A tile goes by its row's remainder of 32, then by which quarter of the tile the row is in, then by its block.
    """
    row, block = np.ogrid[: weight.shape[0], : weight.shape[1] // 32]
    across = weight.parts["scale"].shape[1]
    if not settings(weight).are_tiled:
        return np.asarray(row * across + block)
    tile = row // 128 * (across // 4) + block // 4
    return np.asarray(tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4)


def _mxfp8_anew(weight: Stored, rows: Array, found: Callable[[str], Array | None]) -> Recoded:
    """Let no value of a block be larger than float8's largest, by the least power of two; tiles go on with zeros."""
    sizes = np.abs(rows).reshape(len(rows), -1, 32).max(axis=2) / DTYPES["F8_E4M3"].largest
    there, places = found("scale"), _exponent_places(weight)
    there = None if there is None else np.asarray(there.ravel()[places])
    due = edged(np.where(sizes > 0, sizes, 1.0), there, weight.parts["scale"].dtype == "U8")
    scale = np.zeros(weight.parts["scale"].shape)
    scale.reshape(-1)[places] = due
    return Recoded(lambda values: values, _block_powers(weight, scale), {"scale": scale})


# -- packed ----------------------------------------------------------------------------------------------


def _gguf(weight: Stored, read: Read) -> Array:
    from gguf import GGMLQuantizationType
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[settings(weight).kind]
    values = dequantize(read("data").reshape(-1, GGML_QUANT_SIZES[kind][1]), kind)
    return np.asarray(values, np.float64).reshape(weight.shape)


def _bitsandbytes(weight: Stored, read: Read) -> Array:
    said = settings(weight)
    codes, table, sizes = read("codes").ravel().astype(np.uint8), read("quant_map"), read("absmax")
    if said.nested:
        outer = read("nested_absmax")[np.arange(sizes.size) // said.nested]
        sizes = read("nested_quant_map")[sizes.astype(int)] * outer + said.offset
    values = np.empty(codes.size * 2)
    values[0::2], values[1::2] = table[codes // 16], table[codes % 16]
    return np.asarray((values * sizes[np.arange(values.size) // said.block]).reshape(weight.shape))


def _bits(words: NDArray[Any], bits: int, place: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return bits `place`·bits and up of each number."""
    numbers = words.astype(np.int64) % 2**32
    return np.asarray(numbers // 2 ** (place * bits) % 2**bits)


def _gptq(weight: Stored, read: Read) -> Array:
    bits, offset = settings(weight).bits, settings(weight).offset
    many, (out, inputs) = 32 // bits, weight.shape
    scale, i, o = read("scales"), np.arange(inputs), np.arange(out)
    group = read("g_idx").astype(int) if "g_idx" in weight.parts else i // (inputs // len(scale))
    code = _bits(read("qweight")[i // many], bits, (i % many)[:, None])
    zero = (_bits(read("qzeros")[:, o // many], bits, (o % many)[None, :]) + offset) % 2**bits
    return np.asarray(((code - zero[group]) * scale[group]).T)


def _awq(weight: Stored, read: Read) -> Array:
    out, inputs = weight.shape
    scale, o = read("scales"), np.arange(out)
    place = np.array([0, 4, 1, 5, 2, 6, 3, 7])[o % 8][None, :]
    group = np.arange(inputs) // (inputs // len(scale))
    code, zero = (_bits(read(name)[:, o // 8], 4, place) for name in ("qweight", "qzeros"))
    return np.asarray(((code - zero[group]) * scale[group]).T)


def _compressed_tensors(weight: Stored, read: Read) -> Array:
    bits, scale, (_, inputs) = settings(weight).bits, read("scale"), weight.shape
    many, i = 32 // bits, np.arange(inputs)
    code = _bits(read("packed")[:, i // many], bits, (i % many)[None, :])
    return np.asarray((code - 2 ** (bits - 1)) * scale[:, i // (inputs // scale.shape[1])])


def _mxfp4(weight: Stored, read: Read) -> Array:
    blocks, table = read("blocks").astype(int), np.array(E2M1)
    values = np.empty((*blocks.shape[:3], 32))
    values[..., 0::2], values[..., 1::2] = table[blocks % 16], table[blocks // 16]
    values *= 2.0 ** (read("scales") - 127.0)[..., None]
    return np.ascontiguousarray(values.reshape(*blocks.shape[:2], -1).swapaxes(1, 2))


def _convrot(weight: Stored, read: Read) -> Array:
    stored, place = read("codes").astype(np.int64) % 256, np.arange(weight.shape[1])
    nibbles = stored[:, place // 2] // 16 ** (place % 2) % 16
    values = np.where(nibbles > 7, nibbles - 16, nibbles) * read("scale").reshape(-1, 1)
    return _turned(settings(weight).rotation, values)


def _quanto(weight: Stored, read: Read) -> Array:
    return np.asarray(read("data") * read("scale"))


def _quanto_bits(weight: Stored, read: Read) -> Array:
    stored, scale, shift, bits = read("data").astype(np.int64), read("scale"), read("shift"), settings(weight).bits
    row = np.arange(len(scale))
    codes = stored[row % len(stored)] // 2 ** (bits * (row // len(stored))).reshape(-1, *[1] * (stored.ndim - 1))
    codes = codes % 2**bits
    is_whole = not DTYPES[weight.parts["shift"].dtype].floating
    return np.asarray((codes - shift) * scale if is_whole else codes * scale - shift).reshape(weight.shape)


FORMULAS: dict[str, Callable[[Stored, Read], Array]] = {
    "plain": lambda weight, read: read(WEIGHT),
    "scaled": _scaled,
    "gguf": _gguf,
    "bitsandbytes": _bitsandbytes,
    "gptq": _gptq,
    "awq": _awq,
    "compressed_tensors": _compressed_tensors,
    "mxfp4": _mxfp4,
    "mxfp8": _mxfp8,
    "quanto": _quanto,
    "quanto_bits": _quanto_bits,
    "convrot": _convrot,
}
"""Functions that decode a weight, by the codec's name."""

CANCELLING: dict[str, Callable[[Stored], bool]] = {
    "scaled": lambda weight: bool(settings(weight).rotation),
    "convrot": lambda weight: True,
    "quanto_bits": lambda weight: True,
}
"""Functions that tell whether values are sums of larger numbers, by the codec's name."""

RECODINGS: dict[str, Callable[[Stored, Array, Callable[[str], Array | None]], Recoded]] = {
    "scaled": _scaled_anew,
    "mxfp8": _mxfp8_anew,
}
"""Functions that encode a changed weight, by the codec's name."""
