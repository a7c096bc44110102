"""The plain formulas, against the tests' own arithmetic and against the kinds that there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorabake.adapters import kinds
from lorabake.adapters.settings import NO_SETTINGS
from lorabake.reference.arrays import decode
from lorabake.reference.formulas import FORMULAS, changed
from lorabake.reference.formulas.formula import PlaceOf
from lorabake.reference.rounding import rounded, spacing
from tests import builders as b


def test_every_kind_has_a_formula() -> None:
    assert {kind.name for kind in kinds()} == FORMULAS.keys()


@pytest.mark.parametrize("dora", [None, "magnitude", "row", "column"])
@pytest.mark.parametrize(("shape", "tucker"), [((6, 8), False), ((6, 4, 3, 3), False), ((6, 4, 3, 3), True)])
def test_lora_is_what_the_papers_say(shape: tuple[int, ...], tucker: bool, dora: str | None) -> None:
    slots = b.lora(shape, rank=3, tucker=tucker, dora=dora)
    weight = b.Values(5)(*shape)
    wanted = b.dora(weight, slots, 0.5) if dora else weight.double() + b.delta(slots, shape, 0.5)
    tensors = {slot: tensor.double().numpy() for slot, tensor in slots.items()}
    flat = weight.double().numpy().reshape(shape[0], -1)
    found = changed("lora", tensors, flat, PlaceOf(slice(0, shape[0]), shape, NO_SETTINGS), 0.5)
    np.testing.assert_allclose(found, wanted.reshape(shape[0], -1).numpy(), rtol=1e-12)
    if dora != "column":
        part = changed("lora", tensors, flat[2:5], PlaceOf(slice(2, 5), shape, NO_SETTINGS), 0.5)
        np.testing.assert_allclose(part, found[2:5], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("F16", torch.float16),
        ("BF16", torch.bfloat16),
        ("F32", torch.float32),
        ("F64", torch.float64),
        ("F8_E4M3", torch.float8_e4m3fn),
        ("F8_E5M2", torch.float8_e5m2),
        ("I64", torch.int64),
        ("U8", torch.uint8),
        ("BOOL", torch.bool),
    ],
)
def test_decoding_is_torchs(name: str, dtype: torch.dtype) -> None:
    values = (b.Values(1)(50) * 10).to(dtype)
    found = decode(name, values.view(torch.uint8).numpy().tobytes())
    np.testing.assert_array_equal(found, values.double().numpy())


@pytest.mark.parametrize(
    ("name", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)]
)
def test_spacing_and_rounding_are_those_of_the_dtype(name: str, dtype: torch.dtype) -> None:
    values = b.Values(2)(2000).double() * torch.exp2(torch.linspace(-30, 10, 2000).double())
    values = values[values.to(dtype) != 0]
    held = values.to(torch.float32).to(dtype).double()
    np.testing.assert_array_equal(rounded(name, held.numpy()), held.numpy())
    np.testing.assert_array_equal(spacing(name, held.numpy()), b.ulp(held, dtype).numpy())
    near = torch.from_numpy(rounded(name, values.numpy()))
    assert bool(((near - values).abs() <= b.ulp(values, dtype) / 2).all())
