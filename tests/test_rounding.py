"""Stochastic rounding: unbiased, the same bytes for any cut of the work, and known to verification draw by draw."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from lorabake import VerifyOptions, load_recipe, plan, verify
from lorabake.execution.rounding import drawn, round_by
from lorabake.recipe import parse_recipe
from lorabake.reference.rounding import rounded_by
from lorabake.reference.survival import survival
from lorabake.verification import embedded_recipe
from tests import builders as b
from tests.test_packing import LORA, SCALED
from tests.test_packing import world as packed_world

WORD = (1 << 64) - 1
FC = "lora_unet_fc"
SHAPE = (96, 80)
WEIGHTS = VerifyOptions(stages=("structure", "weights"))
DTYPES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
}
FLOATS = [dtype for dtype in DTYPES if dtype.is_floating_point]


def splitmix64(state: int) -> Iterator[int]:
    """Yield the generator's numbers, one after the other, as its authors' C code does."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & WORD
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & WORD
        yield mixed ^ (mixed >> 31)


def numbers(seed: int, key: str, count: int) -> list[int]:
    """Draw what decides the rounding of a tensor's values: 62 bits each."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
    generator = splitmix64(int.from_bytes(digest, "little"))
    return [next(generator) >> 2 for _ in range(count)]


def every_value(dtype: torch.dtype) -> list[float]:
    """List all finite values of a dtype, in order, by its bit patterns."""
    if dtype is torch.int8:
        return [float(value) for value in range(-127, 128)]
    codes = torch.arange(1 << 8 * dtype.itemsize).to(torch.uint8 if dtype.itemsize == 1 else torch.int16)
    values = codes.view(dtype).double()
    return sorted({*values[values.isfinite()].tolist()})


def expected(dtype: torch.dtype, values: NDArray[Any], draws: list[int]) -> NDArray[Any]:
    """Round one value after the other between the two entries of the table of all values that enclose it."""
    table = np.array(every_value(dtype))
    found = []
    for value, number in zip(np.abs(values.ravel()).tolist(), draws, strict=True):
        above = int(np.searchsorted(table, value))
        if above == len(table):
            found.append(table[-1])
            continue
        low, high = table[max(above - 1, 0)], table[above]
        is_up = Fraction(value - low) > 0 and number < int(Fraction(value - low) / Fraction(high - low) * 2**62)
        found.append(high if value == high or is_up else low)
    return np.copysign(np.array(found), values.ravel()).reshape(values.shape)


# -- One value ---------------------------------------------------------------------------------------------


def test_the_generator_is_the_published_one() -> None:
    first = splitmix64(1234567)
    assert [next(first) for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for seed, key in ((0, "fc.weight"), (2**70, "unet/ü.weight")):
        wanted = numbers(seed, key, 300)
        assert drawn(seed, key, 0, torch.zeros(300)).tolist() == wanted
        assert drawn(seed, key, 123, torch.zeros(77)).tolist() == wanted[123:200]
    assert drawn(0, "a", 0, torch.zeros(9)).tolist() != drawn(0, "b", 0, torch.zeros(9)).tolist()


@pytest.mark.parametrize("compute", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_value_becomes_one_of_its_neighbours(dtype: torch.dtype, compute: torch.dtype) -> None:
    """Both accounts agree with a search in the table of all values: subnormals, halves, zeros and the end, too."""
    table = torch.tensor(every_value(dtype), dtype=torch.float64)
    few = table[:: max(1, len(table) // 500)]
    parts = torch.rand(len(few) - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    between = few[:-1] + (few[1:] - few[:-1]) * parts
    least = table[table > 0][0]
    tiny = torch.tensor([0.0, -0.0, 0.5, -0.5, 1e-3, 1.0, 1.5, -2.25], dtype=torch.float64) * least
    end = torch.tensor([1.0, -1.0, 1.0001, -1.0001], dtype=torch.float64) * table[-1]
    values = torch.cat((few, between, (few[1:] + few[:-1]) / 2, tiny, end)).to(compute)
    draws = drawn(5, "any", 0, values)
    wanted = expected(dtype, values.double().numpy(), draws.tolist())
    found = round_by(draws, values, dtype)
    as_stored = found.to(dtype).double().numpy()
    np.testing.assert_array_equal(as_stored, wanted)
    second = rounded_by(draws.numpy().astype(np.uint64), DTYPES[dtype], values.double().numpy())
    np.testing.assert_array_equal(second, wanted)
    if dtype.is_floating_point:
        np.testing.assert_array_equal(np.signbit(as_stored), np.signbit(values.numpy()))
        np.testing.assert_array_equal(np.signbit(second), np.signbit(values.numpy()))
    exact = few.to(compute)
    assert torch.equal(round_by(draws[: len(few)], exact, dtype), exact)


def test_what_is_no_number_stays() -> None:
    values = torch.tensor([float("nan"), float("inf"), float("-inf")])
    found = round_by(drawn(0, "", 0, values), values, torch.float16)
    np.testing.assert_array_equal(found.numpy(), values.numpy())
    again = rounded_by(drawn(0, "", 0, values).numpy().astype(np.uint64), "F16", values.double().numpy())
    np.testing.assert_array_equal(again, values.numpy())


@pytest.mark.parametrize("value", [1.03, -2.9, -0.0127])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_mean_is_the_value(dtype: torch.dtype, value: float) -> None:
    """The mean of n draws has the standard deviation √(p(1 − p)/n) of a unit; five of them are one in a million."""
    count, table = 100_000, np.array(every_value(dtype))
    above = int(np.searchsorted(table, value))
    unit = table[above] - table[above - 1]
    share = (value - table[above - 1]) / unit
    values = torch.full((count,), value, dtype=torch.float64)
    mean = float(round_by(drawn(11, "mean", 0, values), values, dtype).mean())
    assert abs(mean - value) <= 5 * unit * (share * (1 - share) / count) ** 0.5


# -- A bake ------------------------------------------------------------------------------------------------


def world(folder: Path, dtype: torch.dtype = torch.bfloat16, size: float = 0.1, **fields: Any) -> Path:
    base = {
        "fc.weight": b.Values(1)(*SHAPE, dtype=dtype),
        "other.weight": b.Values(3)(64, 48, dtype=dtype),
        "other.bias": b.Values(4)(64, dtype=torch.float32),
        "ids": torch.arange(7),
    }
    b.save(folder / "base.safetensors", base)
    b.kohya(folder / "lora.safetensors", {FC: b.lora(SHAPE, seed=2, size=size)})
    return drawn_recipe(folder, **fields)


def drawn_recipe(folder: Path, seed: int = 7, **fields: Any) -> Path:
    output = {"rounding": {"name": "stochastic", "seed": seed}, "allow_loss": True, **fields.pop("output", {})}
    return b.recipe(folder, output=output, **fields)


def failures(recipe: Path, baked: Path | None = None) -> set[str]:
    found = verify(load_recipe(recipe), baked, WEIGHTS)
    assert found.is_true == (not any(each.status == "fail" for each in found.findings))
    return {each.check for each in found.findings if each.status == "fail"}


def relabelled(baked: Path, header_of: Path) -> Path:
    """Write a checkpoint's tensors under another one's metadata, less the hash of its data."""
    metadata = {key: text for key, text in b.header(header_of)[1].items() if "hash" not in key}
    return b.save(baked.parent / "relabelled.safetensors", load_file(baked), metadata)


@pytest.mark.parametrize("compute", ["float32", "float64"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_bake_rounds_as_drawn_and_is_proven(dtype: torch.dtype, compute: str, tmp_path: Path) -> None:
    recipe = world(tmp_path, dtype, compute_dtype=compute)
    after = load_file(b.run(recipe).path)
    before = load_file(tmp_path / "base.safetensors")
    exact = (before["fc.weight"].double() + b.delta(b.lora(SHAPE, seed=2, size=0.1), SHAPE)).numpy()
    wanted = expected(dtype, exact, numbers(7, "fc.weight", exact.size))
    found = after["fc.weight"].double().numpy()
    # float32's own error moves one value in some thousands across the number that was drawn
    assert (found != wanted).sum() <= (0 if compute == "float64" else 3)
    units = b.ulp(torch.from_numpy(exact), dtype).numpy()
    assert np.abs((found - exact) / units).max() <= 1.001
    assert abs(((found - exact) / units).mean()) <= 5 * 0.5 / exact.size**0.5
    for key in before.keys() - {"fc.weight"}:
        assert torch.equal(after[key].view(torch.uint8), before[key].view(torch.uint8))
    assert failures(recipe) == set()


def test_casts_are_rounded_so_too_and_the_tiles_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = b.Values(1)(*SHAPE)
    b.save(tmp_path / "base.safetensors", {"fc.weight": values, "other.weight": b.Values(2)(64, 48)})
    recipe = drawn_recipe(tmp_path, loras=[], output={"dtype": "float8_e4m3fn"})
    digests = set()
    for tile, workers in ((1, 1), (16, 2), (1000, 4), (1 << 18, 1)):
        monkeypatch.setattr("lorabake.execution.tiles.TILE_VALUES", tile)
        digests.add(b.sha256(b.run(recipe, workers=workers).path))
    assert len(digests) == 1
    wanted = expected(torch.float8_e4m3fn, values.numpy(), numbers(7, "fc.weight", values.numel()))
    found = load_file(tmp_path / "out.safetensors")["fc.weight"].float().numpy()
    np.testing.assert_array_equal(found, wanted)
    assert failures(recipe) == set()
    out = tmp_path / "out.safetensors"
    other = b.run(
        drawn_recipe(tmp_path, loras=[], seed=8, output={"dtype": "float8_e4m3fn", "path": "8.safetensors"})
    )
    recipe = drawn_recipe(tmp_path, loras=[], output={"dtype": "float8_e4m3fn"})
    assert failures(recipe, relabelled(other.path, out)) == {"weights.draws"}


def test_workers_do_not_matter_and_the_seed_does(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1(dtype=torch.bfloat16))
    b.sd1_lora(tmp_path / "lora.safetensors", rank=3)
    recipe = drawn_recipe(tmp_path)
    digests = [b.sha256(b.run(recipe, workers=workers).path) for workers in (1, 2, 4, 1)]
    assert len({*digests}) == 1
    assert failures(recipe) == set()
    assert b.sha256(b.run(drawn_recipe(tmp_path, seed=8)).path) != digests[0]


def test_another_seed_and_rounding_to_nearest_are_named(tmp_path: Path) -> None:
    recipe = world(tmp_path)
    right = b.run(recipe).path
    for fields in ({"rounding": {"name": "stochastic", "seed": 8}}, {"rounding": "nearest"}):
        other = b.run(b.recipe(tmp_path, output={**fields, "path": "other.safetensors", "allow_loss": True})).path
        recipe = drawn_recipe(tmp_path)
        assert "structure.metadata" in failures(recipe, other)
        assert failures(recipe, relabelled(other, right)) == {"weights.draws"}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("strength", "check"), [(0.9, "strength"), (-1.0, "sign"), (2.0, "twice"), (1e-9, "missing")]
)
def test_a_wrong_strength_is_named(dtype: torch.dtype, strength: float, check: str, tmp_path: Path) -> None:
    recipe = world(tmp_path, dtype, size=0.3)
    right = b.run(recipe).path
    loras = [{"path": "lora.safetensors", "strength": strength}]
    other = b.run(drawn_recipe(tmp_path, loras=loras, output={"path": "other.safetensors"})).path
    assert failures(drawn_recipe(tmp_path), relabelled(other, right)) == {f"weights.{check}"}


def test_one_value_at_its_other_neighbour_is_found(tmp_path: Path) -> None:
    recipe = world(tmp_path)
    out = b.run(recipe).path
    tensors = load_file(out)
    exact = load_file(tmp_path / "base.safetensors")["fc.weight"].double()
    exact += b.delta(b.lora(SHAPE, seed=2, size=0.1), SHAPE)
    part = (exact.abs() / b.ulp(exact, torch.bfloat16)).frac()
    row, column = (int(place) for place in ((part > 0.3) & (part < 0.7)).nonzero()[0])
    value = tensors["fc.weight"][row, column]
    is_low = value.double().abs() < exact[row, column].abs()
    tensors["fc.weight"].view(torch.int16)[row, column] += 1 if is_low else -1
    b.save(tmp_path / "spoilt.safetensors", tensors, b.header(out)[1])
    assert "weights.rounding" in failures(recipe, tmp_path / "spoilt.safetensors")


@pytest.mark.parametrize("name", SCALED)
def test_scaled_weights_are_rounded_in_units_of_their_scale(name: str, tmp_path: Path) -> None:
    packed_world(tmp_path, SCALED[name])
    nearest = load_file(b.run(b.recipe(tmp_path, output={"allow_loss": True})).path)
    recipe = drawn_recipe(tmp_path)
    out = b.run(recipe, workers=2).path
    after, before = load_file(out), load_file(tmp_path / "base.safetensors")
    scale_key = next(key for key in after if key.startswith("fc.") and key not in ("fc.weight", "fc.bias"))
    assert torch.equal(after[scale_key], nearest[scale_key])
    assert torch.equal(after["other.weight"].view(torch.uint8), before["other.weight"].view(torch.uint8))

    def spread(scale: torch.Tensor) -> NDArray[Any]:
        wide = scale.double().numpy() / (127 if scale_key.endswith("SCB") else 1)
        wide = wide.reshape(wide.shape if wide.ndim == 2 else (-1, 1))
        shape = before["fc.weight"].shape
        for axis in (0, 1):
            block = 128 if wide.shape[axis] == -(-shape[axis] // 128) != 1 else shape[axis] // wide.shape[axis]
            wide = wide.repeat(block, axis)
        return wide[: shape[0], : shape[1]]

    stored = before["fc.weight"].double().numpy() * spread(before[scale_key])
    exact = (stored + b.delta(LORA, tuple(stored.shape)).numpy()) / spread(after[scale_key])
    found, dtype = after["fc.weight"].double().numpy(), after["fc.weight"].dtype
    wanted = expected(dtype, exact, numbers(7, "fc.weight", exact.size))
    differing = found != wanted
    assert differing.sum() <= 5  # where float32 decided otherwise
    error = found - exact
    assert abs(error.mean()) <= 5 * np.sqrt((error**2).mean() / error.size)
    assert np.abs(found).max() == (127 if dtype is torch.int8 else 448)
    assert failures(recipe) == set()
    other = b.run(drawn_recipe(tmp_path, seed=8, output={"path": "other.safetensors"})).path
    assert failures(drawn_recipe(tmp_path), relabelled(other, out)) == {"weights.draws"}


def test_what_nearest_loses_survives(tmp_path: Path) -> None:
    recipe = world(tmp_path, torch.float8_e4m3fn, size=0.03)
    (near,) = survival(plan(load_recipe(b.recipe(tmp_path, output={"allow_loss": True})))).values()
    recipe = b.recipe(tmp_path, output={"rounding": "stochastic"})
    result = b.run(recipe)  # not stopped
    (share,) = result.survival.values()
    before, after = (load_file(tmp_path / name)["fc.weight"].double() for name in ("base.safetensors", result.path))
    due = b.delta(b.lora(SHAPE, seed=2, size=0.03), SHAPE)
    assert share == pytest.approx(float(((after - before) * due).sum() / (due * due).sum()), abs=1e-4)
    assert near < 0.1 < 0.7 < share < 1.3


def test_it_is_told_where_nothing_is_drawn(tmp_path: Path) -> None:
    made = b.run(world(tmp_path, torch.float32))
    plain = b.run(b.recipe(tmp_path, output={"path": "plain.safetensors"})).path
    assert [note for note in made.plan.notes if note.startswith("rounding: stochastic changes nothing here")]
    assert b.tensor_bytes(made.path) == b.tensor_bytes(plain)
    assert not [note for note in plan(load_recipe(world(tmp_path))).notes if "rounding" in note]


def test_the_recipe_says_it_and_the_header_holds_it(tmp_path: Path) -> None:
    text = "version: 1\nbase: a\nloras: [b]\noutput: {path: o.safetensors, rounding: stochastic}"
    rounding = parse_recipe(text, tmp_path).output.rounding
    assert (rounding.name, rounding.seed) == ("stochastic", 0)
    plain = parse_recipe(text.replace(", rounding: stochastic", ""), tmp_path)
    assert plain.normal_form() == parse_recipe(text.replace("stochastic", "nearest"), tmp_path).normal_form()
    recipe = world(tmp_path)
    out = b.run(recipe).path
    assert embedded_recipe(out).normal_form() == load_recipe(recipe).normal_form()
    assert '"rounding":{"name":"stochastic","seed":7}' in b.header(out)[1]["lorabake.recipe"]
