"""The dtypes of SafeTensors: names, sizes, and the value of a single element, all without torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dtype:
    """Describe one element: every fact about a dtype that any part of the program needs.

    `torch` is its name in the torch module, None where torch has no equal; `code` is what struct and NumPy call it,
    "" where they do not know it. `mantissa` counts the bits behind the leading one, None where nothing rounds to the
    dtype. `least` is the smallest normal number: below it the spacing stays the same. `largest` is the largest finite
    number, `limit` the smallest magnitude that overflows after rounding. A bake goes into tensors of a dtype with
    `is_output`, which recipes call by torch's name. Weights with `takes_scale` are stored in units of a scale.
    """

    name: str
    bits: int
    torch: str | None
    floating: bool = True
    code: str = ""
    mantissa: int | None = None
    least: float = 0.0
    largest: float = math.inf
    limit: float = math.inf
    is_output: bool = False
    takes_scale: bool = False

    @property
    def is_coarse(self) -> bool:
        """Tell whether it is so coarse that usual changes of a LoRA may get lost."""
        return self.mantissa is not None and self.mantissa <= 7

    @property
    def is_fine(self) -> bool:
        """Tell whether it is fine enough for all changes, so that stochastic rounding gains nothing."""
        return self.bits > 16

    @property
    def is_number(self) -> bool:
        """Tell whether a bake and its verification read its values as numbers."""
        return bool(self.code) or self.is_output

    @property
    def fits_single(self) -> bool:
        """Tell whether it is a float dtype all of whose values float32 can hold."""
        return self.is_output and self.bits <= 32

    @property
    def safe_square(self) -> float:
        """Return a sum of squares, as a float32, below which no value can reach the limit."""
        return min(0.9 * self.limit**2, 1e38)

    @property
    def title(self) -> str:
        """Return torch's name if weights are scaled into it, or else the name in headers."""
        return str(self.torch) if self.takes_scale else self.name


DTYPES: dict[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype("BOOL", 8, "bool", False, "?"),
        Dtype("U8", 8, "uint8", False, "B", 0, 1.0, 255.0, 255.5),
        Dtype("I8", 8, "int8", False, "b", 0, 1.0, 127.0, 127.5, takes_scale=True),
        Dtype("U16", 16, "uint16", False, "H"),
        Dtype("I16", 16, "int16", False, "h"),
        Dtype("U32", 32, "uint32", False, "I"),
        Dtype("I32", 32, "int32", False, "i"),
        Dtype("U64", 64, "uint64", False, "Q"),
        Dtype("I64", 64, "int64", False, "q"),
        Dtype("F4", 4, None),  # torch's float4 packs two values into one element: another shape
        Dtype("F6_E2M3", 6, None),
        Dtype("F6_E3M2", 6, None),
        Dtype(
            "F8_E4M3", 8, "float8_e4m3fn", mantissa=3, least=2.0**-6, largest=448.0, limit=464.0,
            is_output=True, takes_scale=True,
        ),
        Dtype(
            "F8_E5M2", 8, "float8_e5m2", mantissa=2, least=2.0**-14, largest=57344.0, limit=61440.0,
            is_output=True, takes_scale=True,
        ),
        # Powers of two: a scale is compared in float32, in which it is worked out.
        Dtype(
            "F8_E8M0", 8, "float8_e8m0fnu", mantissa=23, least=2.0**-127, largest=2.0**127, limit=2.0**127.5
        ),
        Dtype("F8_E4M3FNUZ", 8, "float8_e4m3fnuz"),
        Dtype("F8_E5M2FNUZ", 8, "float8_e5m2fnuz"),
        Dtype("F16", 16, "float16", True, "e", 10, 2.0**-14, 65504.0, 65520.0, is_output=True),
        Dtype(
            "BF16", 16, "bfloat16", mantissa=7, least=2.0**-126, largest=2.0**128 - 2.0**120,
            limit=2.0**128 - 2.0**119, is_output=True,
        ),
        # No limits: what is computed is no wider, and a float64 too large for float32 becomes no number there.
        Dtype("F32", 32, "float32", True, "f", 23, 2.0**-126, is_output=True),
        Dtype("F64", 64, "float64", True, "d", 52, 2.0**-1022, is_output=True),
        Dtype("C64", 64, "complex64", False),
    )
}  # fmt: skip
"""Every dtype that safetensors 0.8 knows, by its name in a header."""


def named(word: str) -> Dtype:
    """Return the dtype that a recipe's word for an output dtype means, such as `bfloat16`."""
    return next(dtype for dtype in DTYPES.values() if dtype.is_output and dtype.torch == word)


def is_output(name: str) -> bool:
    """Tell whether a bake can write this dtype; packed formats have no dtype in this table."""
    return name in DTYPES and DTYPES[name].is_output


def mantissa_of(name: str) -> int:
    """Count the bits after the leading one; 0 if nothing is rounded to the dtype."""
    return DTYPES[name].mantissa or 0


def coarser(one: str, other: str) -> str:
    """Return the dtype with fewer bits after the leading one; the first if they have equally many."""
    return min(one, other, key=mantissa_of)


def nbytes(dtype_name: str, shape: Sequence[int]) -> int:
    """Count the bytes of a tensor.

    Raise KeyError for a dtype that isn't in DTYPES, and ValueError where elements narrower than a byte leave
    a byte half filled.
    """
    size, rest = divmod(DTYPES[dtype_name].bits * math.prod(shape), 8)
    if rest:
        raise ValueError(f"{list(shape)} elements of {dtype_name} do not fill whole bytes")
    return size


def decode_scalar(dtype_name: str, raw: bytes) -> float:
    """Read the one value that `raw` holds, little-endian, as for an alpha.

    Raise ValueError for a dtype that holds no plain number (complex, 4 and 6 bits, scales), and for `raw` of
    any other length than one element's.
    """
    if dtype_name in DTYPES and len(raw) * 8 != DTYPES[dtype_name].bits:
        raise ValueError(f"{len(raw)} bytes are not one {dtype_name}")
    if dtype_name == "F8_E4M3":
        return _decode_e4m3(raw[0])
    if dtype_name == "F8_E5M2":  # the upper half of a float16
        dtype_name, raw = "F16", b"\0" + raw
    elif dtype_name == "BF16":  # the upper half of a float32
        dtype_name, raw = "F32", b"\0\0" + raw
    if dtype_name not in DTYPES or not DTYPES[dtype_name].code:
        raise ValueError(f"a single {dtype_name} cannot be read as a number")
    return float(struct.unpack("<" + DTYPES[dtype_name].code, raw)[0])


def _decode_e4m3(byte: int) -> float:
    """Decode 1 sign, 4 exponent (bias 7) and 3 mantissa bits; all ones is NaN, there is no infinity."""
    if byte & 0x7F == 0x7F:
        return math.nan
    exponent, mantissa = byte >> 3 & 0xF, byte & 0x7
    size = math.ldexp(8 + mantissa, exponent - 10) if exponent else math.ldexp(mantissa, -9)
    return -size if byte & 0x80 else size
