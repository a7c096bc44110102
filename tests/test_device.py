"""Devices: pieces that do not fit are halved, then computed on the CPU; what is not there is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabake import execute
from lorabake.errors import SurroundingsError
from tests import builders as b
from tests.builders import SD1_KEYS


class Fake:
    """Stand for a device with little memory."""

    type = "fake"

    def __str__(self) -> str:
        return "fake:0"


def cramped(rows: int) -> type[execute.Executor]:
    """Make an executor whose device holds so many rows at a time; what it computes stays on the CPU."""

    class Cramped(execute.Executor):
        def _read_rows(self, *arguments: Any, **options: Any) -> torch.Tensor:
            device, self.device = self.device, torch.device("cpu")
            try:
                weight = super()._read_rows(*arguments, **options)
            finally:
                self.device = device
            return weight

        def _fits(self, weight: torch.Tensor) -> None:
            if self.device.type == "fake" and weight.shape[0] > rows:
                raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

        def _apply(self, weight: torch.Tensor, *arguments: Any) -> None:
            self._fits(weight)
            super()._apply(weight, *arguments)

        def _combine(self, step: Any, deltas: Any, baked: dict[str, torch.Tensor]) -> None:
            self._fits(next(iter(baked.values())))
            super()._combine(step, deltas, baked)

    return Cramped


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.recipe(tmp_path)
    return tmp_path


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def arrange(rows: int) -> None:
        monkeypatch.setattr(execute, "Executor", cramped(rows))
        monkeypatch.setattr(execute, "choose_device", lambda *_, **__: Fake())

    return arrange


@pytest.mark.parametrize("dora", [None, "row"])
@pytest.mark.parametrize("rows", [1, 3, 5, 1000])
def test_pieces_are_halved_until_they_fit(
    folder: Path, little_memory: Callable[[int], None], rows: int, dora: str | None
) -> None:
    made = b.sd1_lora(folder / "lora.safetensors", dora=dora)
    little_memory(rows)
    warnings: list[str] = []
    out = load_file(b.run(folder / "recipe.yaml", warn=warnings.append).path)
    base = b.sd1()
    for name, slots in made.items():
        weight = base[SD1_KEYS[name]]
        exact = b.dora(weight, slots) if dora else weight.double() + b.delta(slots, tuple(weight.shape))
        b.assert_rounded_once(out[SD1_KEYS[name]], exact, terms=[4 * weight])
    assert warnings == []


@pytest.mark.parametrize("dora", [None, "row", "column"])
def test_what_never_fits_is_computed_on_the_cpu_with_a_warning(
    folder: Path, little_memory: Callable[[int], None], dora: str | None
) -> None:
    made = b.sd1_lora(folder / "lora.safetensors", dora=dora)
    plain = b.sha256(b.run(folder / "recipe.yaml").path)
    little_memory(0)
    warnings: list[str] = []
    result = b.run(folder / "recipe.yaml", warn=warnings.append)
    assert b.sha256(result.path) == plain
    assert sorted(warnings) == sorted(
        f"{SD1_KEYS[name]}: does not fit into the memory of fake:0; computed on the CPU" for name in made
    )
    assert result.stages["compute"] > 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Tried to allocate 20.00 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1000 bytes."),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("dora", [None, "column"])
def test_a_cpu_out_of_memory_ends_the_bake(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, dora: str | None
) -> None:
    b.sd1_lora(folder / "lora.safetensors", dora=dora)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(execute.Executor, "_apply", fail)
    monkeypatch.setattr(execute.Executor, "_combine", fail)
    with pytest.raises(SurroundingsError, match=r"out of memory.*fewer --workers"):
        b.run(folder / "recipe.yaml")
    assert {path.name for path in folder.iterdir()} == {"base.safetensors", "lora.safetensors", "recipe.yaml"}


def test_mps_and_float64_fall_back_with_a_warning() -> None:
    warnings: list[str] = []
    device = execute.choose_device("mps", float64=True, warn=warnings.append)
    assert device.type == "cpu"
    assert warnings == ["mps cannot compute in float64; computed on the CPU"]


@pytest.mark.parametrize("name", ["banana", "meta", "cpu:banana", "cuda:4711", "xla"])
def test_devices_that_cannot_be_used(name: str) -> None:
    with pytest.raises(SurroundingsError, match=f"device '{name}'.*\nTry --device cpu"):
        execute.choose_device(name, float64=False, warn=lambda message: None)


def test_no_name_means_the_cpu() -> None:
    assert execute.choose_device(None, float64=True, warn=lambda message: None).type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dora", [None, "row", "column"])
def test_a_gpu_agrees_with_the_formula_and_with_itself(tmp_path: Path, dtype: torch.dtype, dora: str | None) -> None:
    base = b.sd1(dtype=dtype)
    b.save(tmp_path / "base.safetensors", base)
    made = b.sd1_lora(tmp_path / "lora.safetensors", dora=dora, rank=6)
    recipe = b.recipe(tmp_path)
    digests = {b.sha256(b.run(recipe, device="cuda", workers=workers).path) for workers in (1, 4)}
    assert len(digests) == 1
    out = load_file(tmp_path / "out.safetensors")
    for name, slots in made.items():
        weight = base[SD1_KEYS[name]]
        exact = b.dora(weight, slots) if dora else weight.double() + b.delta(slots, tuple(weight.shape))
        b.assert_rounded_once(out[SD1_KEYS[name]], exact, terms=[8 * weight])
    untouched = base.keys() - {SD1_KEYS[name] for name in made}
    assert all(torch.equal(out[key], base[key]) for key in untouched)
