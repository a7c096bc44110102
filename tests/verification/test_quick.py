"""The quick stage: no false alarm whatever rounding does, and what it finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from lorabake import load_recipe, plan
from lorabake.cli.verify import verify as command
from lorabake.reference.arrays import Files
from lorabake.reference.recompute import Recomputation
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Finding, Status, Verification
from lorabake.verification.weights.limits import FALSE_ALARM
from lorabake.verification.weights.projections import VECTORS, Projector, Sums, signs
from tests import builders as b
from tests.test_kinds import FAULTS, LINEAR, cases
from tests.test_kinds import write as write_kind

QUICK = VerifyOptions(stages=("structure", "quick"))
SHAPE = (96, 160)
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8": torch.float8_e4m3fn}


def found(verification: Verification, status: Status = Status.FAIL) -> dict[str, Finding]:
    return {each.check: each for each in verification.findings if each.status is status}


def world(
    folder: Path,
    shape: tuple[int, int] = SHAPE,
    *,
    base: torch.dtype = torch.float16,
    loras: int = 1,
    size: float = 0.3,
    **fields: object,
) -> Path:
    """Bake LoRAs of several ranks into one weight; return the recipe."""
    b.save(folder / "base.safetensors", {"fc.weight": b.Values(1)(*shape, dtype=base)})
    for number in range(loras):
        slots = b.lora(shape, seed=number + 2, rank=4 << number, alpha=3.0, size=size)
        b.kohya(folder / f"{number}.safetensors", {"lora_unet_fc": slots})
    entries = [{"path": f"{number}.safetensors", "strength": 0.7 - 0.4 * number} for number in range(loras)]
    recipe = b.recipe(folder, loras=entries, **fields)
    b.run(recipe)
    return recipe


def sums_of(recipe: Path, tests: int = 1000) -> Sums:
    """Take the sums of the one tensor that is baked."""
    made, files = plan(load_recipe(recipe)), Files()
    projector = Projector(Recomputation(files), files, tests)
    sums = projector.sums(made.steps[0], open_checkpoint(made.path).tensors["fc.weight"])
    assert sums is not None
    return sums


# -- right files are right -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loras", [1, 3])
@pytest.mark.parametrize("output", ["keep", "float32", "bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize("base", DTYPES)
def test_every_dtype_is_true(base: str, output: str, loras: int, tmp_path: Path) -> None:
    recipe = world(tmp_path, base=DTYPES[base], loras=loras, output={"dtype": output, "allow_loss": True})
    verification = verify(load_recipe(recipe), options=QUICK)
    assert verification.status in (Status.PASS, Status.WARN), verification.findings
    assert "quick.sums" in found(verification, Status.PASS)


@pytest.mark.parametrize("fields", [{"compute_dtype": "float64"}, {"compose": "sequential"}], ids=str)
def test_other_ways_to_compute_are_true(fields: dict[str, object], tmp_path: Path) -> None:
    assert verify(load_recipe(world(tmp_path, loras=2, **fields)), options=QUICK).status is Status.PASS


def test_drawn_values_are_true(tmp_path: Path) -> None:
    rounding = {"name": "stochastic", "seed": 3}
    recipe = world(tmp_path, output={"dtype": "bfloat16", "rounding": rounding, "allow_loss": True})
    assert verify(load_recipe(recipe), options=QUICK).is_true


@pytest.mark.parametrize("name", cases(LINEAR))
def test_every_kind_is_true_and_says_how_it_was_compared(name: str, tmp_path: Path) -> None:
    write_kind(tmp_path, cases(LINEAR)[name], b.Values(7)(*LINEAR, dtype=torch.float16))
    b.bake_sd1(tmp_path)
    verification = verify(load_recipe(tmp_path / "recipe.yaml"), options=QUICK)
    assert verification.is_true, verification.findings
    assert found(verification, Status.PASS).keys() & {"quick.sums", "quick.rows"}


def test_fused_transposed_scaled_and_whole_tensors_are_true(tmp_path: Path) -> None:
    b.save(tmp_path / "base" / "model.safetensors", b.gpt2(dtype=torch.float16), metadata={"format": "pt"})
    b.peft(tmp_path / "lora", {"h.0.attn.c_attn": b.lora((24, 8))}, fan_in_fan_out=True)
    recipe = b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})
    b.run(recipe)
    verification = verify(load_recipe(recipe), options=QUICK)
    assert verification.is_true
    assert found(verification, Status.PASS)["quick.sums"].subject == "1 baked tensors"

    weight = b.Values(1)(16, 24).to(torch.float8_e4m3fn)
    b.save(tmp_path / "base.safetensors", {"layer.weight": weight, "layer.weight_scale": torch.tensor(0.5)})
    b.kohya(tmp_path / "lora.safetensors", {"lora_unet_layer": b.lora((16, 24))})
    b.run(b.recipe(tmp_path, output={"allow_loss": True}))
    verification = verify(load_recipe(tmp_path / "recipe.yaml"), options=QUICK)
    assert verification.is_true, verification.findings
    assert "all" in found(verification, Status.PASS)["quick.rows"].note


def test_a_change_that_rounding_swallows_is_true_and_told(tmp_path: Path) -> None:
    """Every value is off by what is due: rounding errors of the worst sort, which follow the change itself."""
    recipe = world(tmp_path, base=torch.bfloat16, size=0.0001, output={"allow_loss": True})
    assert torch.equal(*(load_file(tmp_path / f"{name}.safetensors")["fc.weight"] for name in ("base", "out")))
    verification = verify(load_recipe(recipe), options=QUICK)
    assert verification.is_true
    warned = found(verification, Status.WARN)["quick.lora"]
    assert warned.measured.startswith("×0.00")
    assert "rows that were recomputed are right: beside rounding it is too faint" in warned.note


def test_a_change_of_which_rounding_keeps_a_part_is_true_and_told(tmp_path: Path) -> None:
    recipe = world(tmp_path, (800, 160), base=torch.bfloat16, size=0.03, output={"allow_loss": True})
    verification = verify(load_recipe(recipe), options=QUICK)
    assert verification.is_true
    warned = found(verification, Status.WARN)["quick.lora"]
    assert "keeps no more of it" in warned.note
    exact = verify(load_recipe(recipe), options=VerifyOptions(stages=("weights",)))
    share = float(found(exact, Status.WARN)["weights.resolution"].measured.rstrip("%")) / 100
    factor, deviation = map(float, warned.measured.removeprefix("×").split(" ± "))
    assert factor == pytest.approx(share, abs=0.01 + 4 * deviation)


@pytest.mark.parametrize("direction", ["up", "down", "away", "to zero"])
def test_errors_of_half_a_unit_in_one_direction_are_within_the_bound(direction: str, tmp_path: Path) -> None:
    """The bound does not ask that errors be random: here all are as large as they may be, and alike."""
    recipe = world(tmp_path)
    tensors = load_file(tmp_path / "out.safetensors")
    weight = tensors["fc.weight"].double()
    half = b.ulp(weight, torch.float16) / 2 * 0.999
    sign = {"up": 1.0, "down": -1.0, "away": weight.sign(), "to zero": -weight.sign()}[direction]
    delta = 0.7 * b.delta(b.lora(SHAPE, seed=2, rank=4, alpha=3.0, size=0.3), SHAPE)
    b.save(tmp_path / "base.safetensors", {"fc.weight": (weight - delta + sign * half).float()})
    made = load_recipe(
        b.recipe(tmp_path, loras=[{"path": "0.safetensors", "strength": 0.7}], output={"dtype": "float16"})
    )
    assert recipe.exists()
    verification = verify(made, options=VerifyOptions(stages=("quick",)))
    assert not [each for each in found(verification) if each.startswith("quick.")], verification.findings


# -- what is found -------------------------------------------------------------------------------------------


def test_signs_are_drawn_by_the_name_and_fair() -> None:
    one, again, other = signs("a.weight", 4000), signs("a.weight", 4000), signs("b.weight", 4000)
    assert one.shape == (2, 4000, VECTORS // 2)
    assert np.array_equal(one, again)
    assert set(np.unique(one)) == {-1.0, 1.0}
    flat = np.concatenate([*one, *other], axis=1)
    correlation = flat.T @ flat / 4000 - np.eye(2 * VECTORS)
    assert np.abs(correlation).max() < 0.1  # six deviations


def test_one_value_beyond_the_bound_escapes_as_seldom_as_promised(tmp_path: Path) -> None:
    """In each row one value is off by a little more than the bound: one vector misses at most half of the rows."""
    recipe = world(tmp_path)
    bounds = sums_of(recipe).bounds
    tensors = load_file(tmp_path / "out.safetensors")
    weight = tensors["fc.weight"].double()
    columns = torch.arange(SHAPE[0]) * 7 % SHAPE[1]
    weight[torch.arange(SHAPE[0]), columns] += torch.from_numpy(bounds) * 1.1
    tensors["fc.weight"] = weight.half()
    b.save(tmp_path / "out.safetensors", tensors)
    sums = sums_of(recipe)
    missed = np.abs(sums.arrived - sums.due) <= sums.bounds[:, None]
    assert missed.mean() <= 0.5
    assert len(sums.wrong) >= SHAPE[0] * (1 - 2.0**-VECTORS) - 4


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda weight, base: base, "quick.missing"),
        (lambda weight, base: base - (weight - base), "quick.sign"),
        (lambda weight, base: base + 2 * (weight - base), "quick.twice"),
        (lambda weight, base: base + 0.9 * (weight - base), "quick.strength"),
        (lambda weight, base: base + 0.99 * (weight - base), "quick.strength"),
        (lambda weight, base: base + (weight - base).roll(1, 0), "quick.shifted"),
        (lambda weight, base: torch.cat([weight[:-1], base[-1:]]), "quick.missing"),
    ],
    ids=["missing", "sign", "twice", "0.9", "0.99", "shifted", "one row"],
)
@pytest.mark.parametrize("loras", [1, 2])
def test_faults_are_found_and_named(
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], check: str, loras: int, tmp_path: Path
) -> None:
    recipe = world(tmp_path, loras=loras, size=1.0)
    tensors = load_file(tmp_path / "out.safetensors")
    base = load_file(tmp_path / "base.safetensors")["fc.weight"].double()
    tensors["fc.weight"] = change(tensors["fc.weight"].double(), base).half()
    b.save(tmp_path / "out.safetensors", tensors)
    assert check in found(verify(load_recipe(recipe), options=QUICK))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_what_is_no_number_is_named(dtype: str, value: float, tmp_path: Path) -> None:
    recipe = world(tmp_path, base=DTYPES[dtype])
    tensors = load_file(tmp_path / "out.safetensors")
    tensors["fc.weight"][11, 3] = value
    b.save(tmp_path / "out.safetensors", tensors)
    assert "[11, 3]" in found(verify(load_recipe(recipe), options=QUICK))["quick.nonfinite"].note


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_kind_is_found(fault: str, tmp_path: Path) -> None:
    name, change, check = FAULTS[fault]
    write_kind(tmp_path, cases(LINEAR)[name], b.Values(7)(*LINEAR, dtype=torch.float16))
    right = load_file(tmp_path / "lora.safetensors")
    b.save(tmp_path / "lora.safetensors", change(right))
    wrong = load_file(b.bake_sd1(tmp_path))
    b.save(tmp_path / "lora.safetensors", right)
    b.save(b.bake_sd1(tmp_path), wrong)
    assert check.replace("weights.", "quick.") in found(verify(load_recipe(tmp_path / "recipe.yaml"), options=QUICK))


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_takes_quick_for_weights_and_the_report_shows_it(tmp_path: Path) -> None:
    recipe = world(tmp_path)
    arguments = [str(recipe), "--stage", "quick", "--report", str(tmp_path / "report")]
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert result.exception is None
    assert "quick (" in result.output
    assert "weights (" not in result.output
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert record["verdict"] == "verified"
    assert {each["what"] for each in record["tensors"]} == {"applied"}
    assert "quick.sums" in (tmp_path / "report" / "index.html").read_text()


def test_the_probabilities_that_are_told_are_those_of_the_constants(tmp_path: Path) -> None:
    told = found(verify(load_recipe(world(tmp_path)), options=QUICK), Status.PASS)["quick.sums"]
    assert f"{VECTORS} random sums" in told.note
    assert f"once in {2**VECTORS}" in told.note
    assert f"{1 / FALSE_ALARM:.0e}" in told.note
    text = (Path(__file__).parents[2] / "docs" / "verification.md").read_text()
    assert f"{VECTORS} vectors" in text
    assert f"once in {2**VECTORS}" in text
    assert FALSE_ALARM == 1e-9
    assert "one in a billion" in text
