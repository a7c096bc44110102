"""The dtypes of SafeTensors: names, sizes, and the value of a single element, all without torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dtype:
    """Describe one element; `torch` is its name in the torch module, None where torch has no equal."""

    name: str
    bits: int
    floating: bool
    torch: str | None


DTYPES: dict[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype("BOOL", 8, False, "bool"),
        Dtype("U8", 8, False, "uint8"),
        Dtype("I8", 8, False, "int8"),
        Dtype("U16", 16, False, "uint16"),
        Dtype("I16", 16, False, "int16"),
        Dtype("U32", 32, False, "uint32"),
        Dtype("I32", 32, False, "int32"),
        Dtype("U64", 64, False, "uint64"),
        Dtype("I64", 64, False, "int64"),
        Dtype("F4", 4, True, None),  # torch's float4 packs two values into one element: another shape
        Dtype("F6_E2M3", 6, True, None),
        Dtype("F6_E3M2", 6, True, None),
        Dtype("F8_E4M3", 8, True, "float8_e4m3fn"),
        Dtype("F8_E5M2", 8, True, "float8_e5m2"),
        Dtype("F8_E8M0", 8, True, "float8_e8m0fnu"),
        Dtype("F8_E4M3FNUZ", 8, True, "float8_e4m3fnuz"),
        Dtype("F8_E5M2FNUZ", 8, True, "float8_e5m2fnuz"),
        Dtype("F16", 16, True, "float16"),
        Dtype("BF16", 16, True, "bfloat16"),
        Dtype("F32", 32, True, "float32"),
        Dtype("F64", 64, True, "float64"),
        Dtype("C64", 64, False, "complex64"),
    )
}
"""Every dtype that safetensors 0.8 knows, by its name in a header."""

FLOAT_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""The recipe's words for output dtypes, and their names in a header."""

LARGEST = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0, "I8": 127.0}
"""The largest value of the dtypes that weights are scaled into."""

COARSE = {"BF16", *LARGEST}
"""Dtypes whose resolution may swallow what a usual LoRA changes."""

_STRUCT_CODES = {
    "BOOL": "?",
    "U8": "B",
    "I8": "b",
    "U16": "H",
    "I16": "h",
    "U32": "I",
    "I32": "i",
    "U64": "Q",
    "I64": "q",
    "F16": "e",
    "F32": "f",
    "F64": "d",
}


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
    if dtype_name not in _STRUCT_CODES:
        raise ValueError(f"a single {dtype_name} cannot be read as a number")
    return float(struct.unpack("<" + _STRUCT_CODES[dtype_name], raw)[0])


def _decode_e4m3(byte: int) -> float:
    """Decode 1 sign, 4 exponent (bias 7) and 3 mantissa bits; all ones is NaN, there is no infinity."""
    if byte & 0x7F == 0x7F:
        return math.nan
    exponent, mantissa = byte >> 3 & 0xF, byte & 0x7
    size = math.ldexp(8 + mantissa, exponent - 10) if exponent else math.ldexp(mantissa, -9)
    return -size if byte & 0x80 else size
