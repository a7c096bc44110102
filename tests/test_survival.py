"""How much of a LoRA survives a coarse dtype: the estimate against all values, the warning, and the stop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake import load_recipe, plan
from lorabake.errors import ValueTooLargeError
from lorabake.verification.survival import survival
from tests import builders as b

FC = "lora_unet_fc"


def cli(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "lorabake", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def world(folder: Path, size: float, dtype: torch.dtype = torch.bfloat16) -> Path:
    b.save(folder / "base.safetensors", {"fc.weight": b.Values(1)(64, 48, dtype=dtype)})
    b.kohya(folder / "lora.safetensors", {FC: b.lora((64, 48), seed=2, size=size)})
    return b.recipe(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("size", [0.01, 0.1, 1.0])
def test_the_estimate_is_what_arrives(size: float, dtype: torch.dtype, tmp_path: Path) -> None:
    world(tmp_path, size, dtype)
    recipe = b.recipe(tmp_path, output={"allow_loss": True})
    (share,) = survival(plan(load_recipe(recipe))).values()
    before = load_file(tmp_path / "base.safetensors")["fc.weight"].double()
    after = load_file(b.run(recipe).path)["fc.weight"].double()
    due = b.delta(b.lora((64, 48), seed=2, size=size), (64, 48))
    assert share == pytest.approx(float(((after - before) * due).sum() / (due * due).sum()), abs=1e-4)


def test_a_lora_that_fades_is_told_and_one_that_vanishes_stops_the_bake(tmp_path: Path) -> None:
    recipe = world(tmp_path, 0.01, torch.float8_e4m3fn)
    code, stopped = cli("bake", recipe, "--no-fsync")
    assert code == 2
    assert "of its change would survive the output's dtype" in stopped
    assert "allow_loss" in stopped
    assert not (tmp_path / "out.safetensors").exists()
    recipe = b.recipe(tmp_path, output={"allow_loss": True})
    code, allowed = cli("bake", recipe, "--no-fsync")
    assert code == 0
    assert "warning: LoRA 'lora.safetensors': about" in allowed


def test_plan_estimates_on_demand(tmp_path: Path) -> None:
    recipe = world(tmp_path, 1.0)
    assert "of its change survives the output's dtype" in cli("plan", recipe, "--estimate")[1]
    assert json.loads(cli("plan", recipe, "--estimate", "--json")[1])["survival"]["0"] > 0.9
    assert "survival" not in json.loads(cli("plan", recipe, "--json")[1])


@pytest.mark.parametrize("rows", [slice(2048, None), slice(0, 2048), slice(1000, 1003)], ids=str)
def test_a_change_of_few_rows_is_seen(rows: slice, tmp_path: Path) -> None:
    """It may be anywhere: the second half, or three rows that no sample meets."""
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(1)(4096, 256, dtype=torch.float8_e4m3fn)})
    slots = b.lora((4096, 256), size=0.003)
    kept = torch.zeros_like(slots["up"])
    kept[rows] = slots["up"][rows]
    b.kohya(tmp_path / "lora.safetensors", {FC: slots | {"up": kept}})
    recipe = b.recipe(tmp_path)
    (share,) = survival(plan(load_recipe(recipe))).values()
    assert share < 0.1
    with pytest.raises(ValueTooLargeError, match="of its change would survive"):
        b.run(recipe)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_lora_of_zeros_has_nothing_to_lose(tmp_path: Path) -> None:
    recipe = world(tmp_path, 0.0)
    assert survival(plan(load_recipe(recipe))) == {}
    assert b.run(recipe).survival == {}


def test_the_library_tells_and_warns_as_the_command_line_does(tmp_path: Path) -> None:
    recipe = world(tmp_path, 0.1)
    warnings: list[str] = []
    result = b.run(recipe, warn=warnings.append)
    assert result.survival == survival(result.plan)
    assert result.report()["survival"] == {"0": round(result.survival[0], 4)}
    assert (warnings != []) == (result.survival[0] < 0.9)
    world(tmp_path, 0.1, torch.float16)
    assert b.run(recipe).survival == {}  # float16 holds what a LoRA does


def test_each_lora_has_its_own_share(tmp_path: Path) -> None:
    world(tmp_path, 1.0)
    b.kohya(tmp_path / "faint.safetensors", {FC: b.lora((64, 48), seed=5, size=0.02)})
    recipe = b.recipe(tmp_path, loras=["lora.safetensors", "faint.safetensors"])
    strong, faint = survival(plan(load_recipe(recipe))).values()
    assert strong == pytest.approx(1, abs=0.02)
    assert 0 < faint < 2  # beside a strong one a faint LoRA is rounded with it, not swallowed
