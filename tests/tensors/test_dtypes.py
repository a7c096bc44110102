import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorabake.tensors.dtypes import DTYPES, FLOAT_NAMES, decode_scalar, nbytes

READABLE = ["BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F8_E4M3", "F8_E5M2", "F16", "BF16"]


def test_every_torch_dtype_has_the_size_and_sort_that_the_table_says():
    for dtype in DTYPES.values():
        if dtype.torch is not None and hasattr(torch, dtype.torch):
            of_torch = getattr(torch, dtype.torch)
            assert of_torch.itemsize * 8 == dtype.bits
            assert of_torch.is_floating_point == dtype.floating


def test_recipe_words_are_torch_names():
    assert {word: DTYPES[name].torch for word, name in FLOAT_NAMES.items()} == {w: w for w in FLOAT_NAMES}


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [("F16", (3, 5), 30), ("F64", (), 8), ("F32", (0, 9), 0), ("F4", (2, 3), 3), ("F6_E2M3", (4,), 3)],
)
def test_nbytes(dtype, shape, expected):
    assert nbytes(dtype, shape) == expected


@pytest.mark.parametrize(("dtype", "shape"), [("F4", (3,)), ("F6_E3M2", (2,)), ("F4", ())])
def test_nbytes_refuses_half_filled_bytes(dtype, shape):
    with pytest.raises(ValueError, match="do not fill whole bytes"):
        nbytes(dtype, shape)


@pytest.mark.parametrize("dtype", [name for name in READABLE if DTYPES[name].bits == 8])
def test_decode_every_byte_as_torch_does(dtype):
    for byte in range(256) if dtype != "BOOL" else (0, 1):
        expected = torch.tensor([byte], dtype=torch.uint8).view(getattr(torch, DTYPES[dtype].torch)).item()
        assert same(decode_scalar(dtype, bytes([byte])), expected), byte


@pytest.mark.parametrize("dtype", ["U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64"])
@given(seed=st.binary(min_size=8, max_size=8))
def test_decode_any_bits_as_torch_does(dtype, seed):
    raw = seed[: DTYPES[dtype].bits // 8]
    expected = torch.frombuffer(bytearray(raw), dtype=getattr(torch, DTYPES[dtype].torch)).item()
    assert same(decode_scalar(dtype, raw), expected)


@pytest.mark.parametrize(
    ("dtype", "raw", "message"),
    [
        ("F16", b"\0", "1 bytes are not one F16"),
        ("F32", b"", "0 bytes are not one F32"),
        ("C64", struct.pack("<2f", 1, 2), "C64 cannot be read as a number"),
        ("F8_E8M0", b"\x7f", "F8_E8M0 cannot be read as a number"),
        ("Q4", b"\0", "Q4 cannot be read as a number"),
    ],
)
def test_decode_refuses(dtype, raw, message):
    with pytest.raises(ValueError, match=message):
        decode_scalar(dtype, raw)


def same(a, b):
    return a == float(b) or (math.isnan(a) and math.isnan(b))
