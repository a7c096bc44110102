import math
import struct
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorabake.recipe.types import Dtype
from lorabake.tensors.dtypes import DTYPES, coarser, decode_scalar, is_output, mantissa_of, named, nbytes

READABLE = ["BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F8_E4M3", "F8_E5M2", "F16", "BF16"]


def test_every_torch_dtype_has_the_size_and_sort_that_the_table_says():
    for dtype in DTYPES.values():
        if dtype.torch is not None and hasattr(torch, dtype.torch):
            of_torch = getattr(torch, dtype.torch)
            assert of_torch.itemsize * 8 == dtype.bits
            assert of_torch.is_floating_point == dtype.floating


OUTPUTS = [dtype for dtype in DTYPES.values() if dtype.is_output]


def test_recipe_words_are_torch_names():
    assert {dtype.torch for dtype in OUTPUTS} == {*get_args(Dtype), "float64"} - {"keep"}
    assert [named(dtype.torch) for dtype in OUTPUTS] == OUTPUTS
    assert not is_output("I8")
    assert not is_output("GPTQ")


@pytest.mark.parametrize("dtype", OUTPUTS, ids=lambda dtype: dtype.name)
def test_the_numbers_of_floats_are_those_of_torch(dtype):
    info = torch.finfo(getattr(torch, dtype.torch))
    assert (dtype.least, 2.0**-dtype.mantissa) == (info.smallest_normal, info.eps)
    if dtype.bits <= 16:
        assert dtype.largest == info.max
        assert dtype.limit == info.max + info.eps * 2.0 ** math.floor(math.log2(info.max)) / 2


@pytest.mark.parametrize(
    "dtype", [dtype for dtype in DTYPES.values() if math.isfinite(dtype.limit)], ids=lambda d: d.name
)
def test_what_is_below_the_limit_rounds_to_a_number(dtype):
    of_torch, limit = getattr(torch, dtype.torch), torch.tensor(dtype.limit)
    below = torch.nextafter(limit, torch.zeros_like(limit))
    values = below.round() if not dtype.floating else below
    assert float(values.to(of_torch)) <= dtype.largest
    assert dtype.safe_square < dtype.limit**2


def test_the_numbers_of_whole_dtypes_are_those_of_torch():
    for dtype in (DTYPES["I8"], DTYPES["U8"]):
        info = torch.iinfo(getattr(torch, dtype.torch))
        assert (dtype.largest, dtype.limit) == (info.max, info.max + 0.5)
        assert (dtype.mantissa, dtype.least) == (0, 1.0)


def test_who_is_coarse_and_who_is_fine():
    assert {dtype.name for dtype in OUTPUTS if dtype.is_coarse} == {"BF16", "F8_E4M3", "F8_E5M2"}
    assert {dtype.name for dtype in OUTPUTS if dtype.is_fine} == {"F32", "F64"}
    assert {dtype.name for dtype in OUTPUTS if not dtype.fits_single} == {"F64"}
    assert {dtype.name for dtype in DTYPES.values() if dtype.takes_scale} == {"I8", "F8_E4M3", "F8_E5M2"}
    assert [coarser("F16", "BF16"), coarser("F32", "F8_E4M3"), coarser("I64", "F16")] == ["BF16", "F8_E4M3", "I64"]
    assert mantissa_of("I64") == 0


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
