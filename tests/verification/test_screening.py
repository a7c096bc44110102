"""The comparison in float32 says what float64 would, of every value, or leaves it to float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lorabake import load_recipe, plan
from lorabake.reference import arrays
from lorabake.reference.arrays import Files, decode, widen
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.verification.weights.comparing import Comparer, Job
from lorabake.verification.weights.comparison import Comparison
from tests import builders as b

SHAPE = (320, 256)
NARROW = {"F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
LORAS = {
    "one": [{"rank": 4}],
    "three": [{"rank": 4, "alpha": 2.0}, {"rank": 48, "size": 0.2}, {"rank": 1}],
    "large": [{"rank": 128, "size": 2.0}],
    "faint": [{"rank": 8, "size": 0.01}],
}


@pytest.fixture
def files() -> Files:
    return Files()


def world(folder: Path, stored: torch.dtype, loras: list[dict[str, object]], **output: object) -> Comparer:
    """Bake some LoRAs into one weight; return what compares the bake with its recipe."""
    b.save(folder / "base.safetensors", {"fc.weight": b.Values(1)(*SHAPE, dtype=stored)})
    entries = []
    for number, options in enumerate(loras):
        slots = b.lora(SHAPE, seed=number + 2, **options)  # type: ignore[arg-type]
        b.kohya(folder / f"{number}.safetensors", {"lora_unet_fc": slots})
        entries.append({"path": f"{number}.safetensors", "strength": 0.7 - 0.5 * number})
    recipe = b.recipe(folder, loras=entries, output={"allow_loss": True, **output})
    b.run(recipe)
    return comparer(recipe)


def comparer(recipe: Path) -> Comparer:
    made = plan(load_recipe(recipe))
    return Comparer(made, open_checkpoint(made.path), Files(), lambda count: None)


def both(made: Comparer) -> tuple[Comparison | None, Comparison]:
    """Compare the one baked tensor in float32, and in float64."""
    (step,) = made.plan.steps
    screened = made.screen.compare(step, made.baked.tensors["fc.weight"])
    made.screen.compare = lambda step, found: None  # type: ignore[method-assign]
    (exact,) = made.compare(Job(step, False))
    return screened, exact


@pytest.mark.parametrize("loras", LORAS)
@pytest.mark.parametrize("dtype", NARROW)
def test_the_findings_are_those_of_float64(dtype: str, loras: str, tmp_path: Path) -> None:
    screened, exact = both(world(tmp_path, NARROW[dtype], LORAS[loras]))
    assert screened is not None
    assert exact.is_right
    for name in ("values", "inexact", "wrong", "rows", "nonfinite"):
        assert getattr(screened, name) == getattr(exact, name), name
    assert screened.worst == pytest.approx(exact.worst, abs=1e-4)
    assert screened.base_energy == pytest.approx(exact.base_energy, rel=1e-5)
    for number, share in exact.shares.items():
        found = screened.shares[number]
        for name in ("energy", "due", "arrived"):
            assert getattr(found, name) == pytest.approx(getattr(share, name), rel=1e-4, abs=1e-4 * share.energy)


@pytest.mark.parametrize("stored", ["F16", "BF16"])
def test_another_dtype_than_the_bases_is_compared(stored: str, tmp_path: Path) -> None:
    names = {"F16": "bfloat16", "BF16": "float16"}
    screened, exact = both(world(tmp_path, NARROW[stored], LORAS["three"], dtype=names[stored]))
    assert screened is not None
    assert (screened.inexact, screened.wrong) == (exact.inexact, exact.wrong)


def test_rows_of_a_fused_weight_and_a_transposed_one_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in blocks that cut rows and columns."""
    monkeypatch.setattr("lorabake.verification.weights.blocks.VALUES", 5000)
    monkeypatch.setattr("lorabake.verification.weights.blocks.TALL", 48)
    monkeypatch.setattr("lorabake.verification.weights.screening.WORTH", 1)
    monkeypatch.setattr(b, "W", 32)
    monkeypatch.setattr(b, "TEXT", 32)
    b.save(tmp_path / "base.safetensors", b.sdxl())
    modules = {
        "lora_te2_text_model_encoder_layers_1_self_attn_" + part: b.lora((32, 32), seed=seed, rank=6, size=0.2)
        for seed, part in enumerate(("q_proj", "k_proj", "v_proj"))
    }
    b.kohya(tmp_path / "lora.safetensors", modules)
    b.run(b.recipe(tmp_path))
    looked = comparer(tmp_path / "recipe.yaml")
    (fused,) = looked.plan.steps
    assert len(fused.patches) == 3
    screened = looked.screen.compare(fused, looked.baked.tensors[fused.targets[0].key])
    assert screened is not None
    assert sorted(screened.shares) == [0, 1, 2]

    folder = tmp_path / "gpt2"
    b.save(folder / "base" / "model.safetensors", b.gpt2(dtype=torch.float16), metadata={"format": "pt"})
    b.peft(folder / "lora", {"h.0.attn.c_attn": b.lora((24, 8))}, fan_in_fan_out=True)
    recipe = b.recipe(folder, base="base", loras=["lora"], output={"path": "out"})
    b.run(recipe)
    looked = comparer(recipe)
    (turned,) = looked.plan.steps
    assert turned.patches[0].view.transpose
    assert looked.screen.compare(turned, looked.baked.tensors[turned.targets[0].key]) is not None


def moved(path: Path, share: float, dtype: torch.dtype) -> tuple[int, int]:
    """Move one value to its other neighbour; choose one that lies `share` of a unit from the right one."""
    tensors = load_file(path)
    weight = tensors["fc.weight"]
    base = load_file(path.parent / "base.safetensors")["fc.weight"].double()
    exact = base + 0.7 * b.delta(b.lora(SHAPE, seed=2, rank=4), SHAPE)
    off = ((exact - weight.double()) / b.ulp(weight.double(), dtype)).abs()
    off[weight.double().abs() < 0.5] = 9  # where float32's own error is a large part of a unit
    place = int((off - share).abs().argmin())
    row, column = divmod(place, SHAPE[1])
    up = bool(exact[row, column] > weight.double()[row, column])
    away = up == bool(weight[row, column] > 0)
    weight.view(torch.int16)[row, column] += 1 if away else -1
    b.save(path, tensors)
    return row, column


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.45])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_value_off_by_one_neighbour_is_left_to_float64(dtype: str, share: float, tmp_path: Path) -> None:
    world(tmp_path, NARROW[dtype], LORAS["one"])
    row, _ = moved(tmp_path / "out.safetensors", share, NARROW[dtype])
    screened, exact = both(comparer(tmp_path / "recipe.yaml"))
    assert screened is None
    assert (exact.wrong, exact.rows) == (1, {row})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_what_is_no_number_is_left_to_float64(dtype: str, value: float, tmp_path: Path) -> None:
    world(tmp_path, NARROW[dtype], LORAS["three"])
    tensors = load_file(tmp_path / "out.safetensors")
    tensors["fc.weight"][7, 9] = value
    b.save(tmp_path / "out.safetensors", tensors)
    screened, exact = both(comparer(tmp_path / "recipe.yaml"))
    assert screened is None
    assert exact.nonfinite == (1, 7, 9)


def test_a_wider_checkpoint_and_double_arithmetic_take_float64(tmp_path: Path) -> None:
    looked = world(tmp_path, torch.float32, LORAS["one"])
    assert both(looked)[0] is None
    b.recipe(tmp_path, loras=["0.safetensors"], compute_dtype="float64", output={"dtype": "float16"})
    b.run(tmp_path / "recipe.yaml")
    assert both(comparer(tmp_path / "recipe.yaml"))[0] is None


@pytest.mark.parametrize("dtype", [*NARROW, "F32"])
def test_widening_is_decoding(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"F32": np.arange(0, 1 << 32, 65_537, dtype=np.uint32)}.get(dtype)
    if codes is None:
        codes = np.arange(
            1 << (8 if dtype.startswith("F8") else 16), dtype=np.uint8 if dtype.startswith("F8") else "<u2"
        )
    exact = decode(dtype, codes.tobytes())
    for tiniest in (arrays.TINIEST, np.float32(0)):  # a processor that takes the least numbers for zeros
        monkeypatch.setattr(arrays, "TINIEST", tiniest)
        found = np.empty(codes.shape, np.float32)
        with np.errstate(all="ignore"):
            widen(dtype, codes, found)
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(found[finite], exact[finite])
        assert (~(np.abs(found[~finite]) < 65_536)).all()


def test_the_margin_never_lets_more_pass_than_float64(tmp_path: Path) -> None:
    """A LoRA of opposite columns: its sums all but cancel, so that float32 loses most."""
    slots = b.lora(SHAPE, rank=64, size=3.0)
    half = slots["down"][:32]
    slots["down"] = torch.cat([half, -half * (1 + 1e-3)])
    slots["up"] = torch.cat([slots["up"][:, :32]] * 2, dim=1).contiguous()
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(1)(*SHAPE, dtype=torch.float16)})
    b.kohya(tmp_path / "lora.safetensors", {"lora_unet_fc": slots})
    b.run(b.recipe(tmp_path))
    screened, exact = both(comparer(tmp_path / "recipe.yaml"))
    assert exact.is_right
    assert screened is None or replace_shares(screened) == replace_shares(exact)


def replace_shares(result: Comparison) -> Comparison:
    return replace(result, shares={}, base_energy=0.0, worst=round(result.worst, 3))
