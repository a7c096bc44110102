"""Bakes on the simulated device: memory, streams, what it cannot do. `test_device.py` runs this file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabake.errors import SurroundingsError
from lorabake.execution import device, tiles
from lorabake.execution.device import Buffer, choose_device
from lorabake.execution.emitting import Emitter
from lorabake.execution.rows import ByRows
from lorabake.execution.wholes import Wholes
from lorabake.planning.steps import Step
from lorabake.results import BakeResult
from tests import builders as b

ROWS, COLUMNS, LAYERS = 512, 384, 10
TALL = "model.layers.3.mlp.up_proj.weight"
TILE_ROWS = 64
WORKSPACE = 256 << 10
PLACE = "simulated"


@pytest.fixture(autouse=True)
def unlimited() -> Iterator[None]:
    assert torch.accelerator.current_accelerator() == torch.device(PLACE), "start this by test_device.py"
    torch.accelerator.synchronize()  # a test that does not wait for its copies leaves some
    torch.simulated.empty_cache()
    torch.simulated.limit(None)
    yield
    torch.simulated.limit(None)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut as at full size, where a tensor is many tiles of an accelerator and more of the CPU."""
    monkeypatch.setattr(tiles, "DEVICE_TILE_VALUES", TILE_ROWS * COLUMNS)
    monkeypatch.setattr(tiles, "TILE_VALUES", TILE_ROWS // 4 * COLUMNS)


def model(dtype: torch.dtype = torch.float16) -> b.Tensors:
    """Make layers of which one is four times as tall."""
    values = b.Values(7)
    shapes = {f"model.layers.{n}.mlp.up_proj.weight": (ROWS, COLUMNS) for n in range(LAYERS)}
    shapes[TALL] = (4 * ROWS, COLUMNS)
    return {key: values(*shape, dtype=dtype) for key, shape in shapes.items()}


KINDS = {"lora": {}, "dora by rows": {"dora": "magnitude"}, "dora by columns": {"dora": "column"}}


def prepared(folder: Path, kind: str = "lora", dtype: torch.dtype = torch.float16, **fields: object) -> Path:
    base = model(dtype)
    b.save(folder / "base.safetensors", base)
    modules = {
        key.removesuffix(".weight"): b.lora(tuple(weight.shape), rank=6, seed=n, size=0.1, **KINDS[kind])  # type: ignore[arg-type]
        for n, (key, weight) in enumerate(base.items())
    }
    if kind == "dora by columns":
        b.kohya(folder / "lora.safetensors", modules)
    else:
        b.peft(folder / "lora", modules, r=6, lora_alpha=6)
        fields = {"loras": ["lora"], **fields}
    return b.recipe(folder, **fields)


def data(result: BakeResult) -> bytes:
    return b.header(result.path)[2]


def keys(result: BakeResult, kind: str) -> set[str]:
    return set(result.computed.get(kind, ()))


def by_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU compute something else, so that its rows can be told from the device's."""
    apply, combine = ByRows._apply, Wholes._combine

    def marked(self: ByRows, weight: torch.Tensor, *arguments: Any) -> None:
        apply(self, weight, *arguments)
        if self.loader.lane.device.is_cpu:
            weight.fill_(1.0)

    def marked_whole(self: Wholes, deltas: Any, baked: dict[str, torch.Tensor]) -> None:
        combine(self, deltas, baked)
        for tensor in baked.values() if self.loader.lane.device.is_cpu else ():
            tensor.fill_(1.0)

    monkeypatch.setattr(ByRows, "_apply", marked)
    monkeypatch.setattr(Wholes, "_combine", marked_whole)


def of_devices(warnings: list[str]) -> list[str]:
    """Leave out what is said of marked rows, of which no LoRA's change arrives."""
    return [warning for warning in warnings if not warning.startswith("LoRA ")]


def marked_in(result: BakeResult) -> set[str]:
    """Return the tensors that the CPU computed; none may be its own in part."""
    parts = {key: (tensor == 1.0).float().mean().item() for key, tensor in load_file(result.path).items()}
    assert all(part == 1 or part < 0.1 for part in parts.values()), parts
    return {key for key, part in parts.items() if part == 1}


# -- The path ----------------------------------------------------------------------------------------------


def test_the_accelerator_is_the_default_and_the_header_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = prepared(tmp_path)
    before = torch.simulated.figures()["copies_postponed"]
    result = b.run(recipe)
    assert b.header(result.path)[1]["lorabake.device"] == result.device == PLACE
    assert torch.simulated.figures()["copies_postponed"] > before + 2 * 4 * ROWS // TILE_ROWS
    assert torch.simulated.figures()["used"] == 0
    here = choose_device(None, precision=torch.float64, warn=pytest.fail)
    assert (here.kind, here.is_async, here.pins) == (PLACE, True, True)
    monkeypatch.setenv("LORABAKE_DEVICE", "cpu")
    assert b.run(recipe).device == "cpu"
    assert b.run(recipe, device=PLACE).device == PLACE


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_formula(tmp_path: Path, kind: str) -> None:
    recipe = prepared(tmp_path, kind, compute_dtype="float64")
    exact = load_file(b.run(recipe, device="cpu").path)
    out = load_file(b.run(prepared(tmp_path, kind)).path)
    for key, base in model().items():
        off = (out[key].double() - exact[key].double()).abs()
        assert bool((off <= b.ulp(exact[key], torch.float16)).all())
        assert float((off > 0).double().mean()) < 0.02
        assert not torch.equal(out[key], base)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_zero_change_keeps_bytes_and_is_told(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    """Of one layer nothing changes, of another half of the rows does; with DoRA the zeros stay what they are."""
    recipe = prepared(tmp_path, kind, dtype)
    base = load_file(tmp_path / "base.safetensors")
    for tensor in base.values():
        tensor.view(-1)[::7] = -0.0
    b.save(tmp_path / "base.safetensors", base)
    lora = next(
        path for path in tmp_path.rglob("*.safetensors") if path.name not in ("base.safetensors", "out.safetensors")
    )
    slots = load_file(lora)
    ups = [key for key in slots if key.endswith(("lora_up.weight", "lora_B.weight")) and "layers.3." not in key]
    slots[ups[0]].zero_()
    slots[ups[1]][: ROWS // 2].zero_()
    b.save(lora, slots, b.header(lora)[1])
    warnings: list[str] = []
    result = b.run(recipe, warn=warnings.append)
    assert result.device == PLACE
    after = load_file(result.path)
    whole = {torch.float16: torch.int16, torch.float32: torch.int32}[dtype]
    for number, rows in ((0, ROWS), (1, ROWS // 2)):
        (key,) = [key for key in base if key.removesuffix(".weight") in ups[number]]
        now, before = after[key][:rows], base[key][:rows]
        still = before == 0 if "dora" in kind else torch.ones_like(before, dtype=torch.bool)
        assert torch.equal(now.view(whole)[still], before.view(whole)[still])
    on_cpu = b.run(recipe, device="cpu")
    assert on_cpu.survival.keys() == result.survival.keys()
    assert [each.check for each in on_cpu.cautions] == [each.check for each in result.cautions]
    assert ("zero" in {each.check for each in result.cautions}) == ("dora" not in kind)


@pytest.mark.parametrize("mutation", ["to_fill", "to_read"])
def test_whoever_does_not_wait_for_a_copy_gets_wrong_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutation: str
) -> None:
    """A buffer that is filled too soon, or read too soon: each is seen every time, so the tests here see both."""
    recipe = prepared(tmp_path, dtype=torch.float32)
    right = data(b.run(recipe))
    assert right == data(b.run(recipe))
    monkeypatch.setattr(Buffer, mutation, lambda self: self._memory)
    assert data(b.run(recipe)) != right


def test_a_bake_onto_the_same_bytes_of_another_class_is_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE_VALUES", TILE_ROWS * COLUMNS)
    recipe = prepared(tmp_path)
    first = b.run(recipe, device="cpu")
    again = b.run(recipe, overwrite=False)
    assert data(first) == data(again)
    assert b.header(again.path)[1]["lorabake.device"] == PLACE


# -- Memory ------------------------------------------------------------------------------------------------


def one_needs(recipe: Path) -> int:
    """Measure the bytes that one worker takes."""
    torch.simulated.limit(None, WORKSPACE)
    b.run(recipe, workers=1)
    peak: int = torch.simulated.figures()["peak"]
    return peak


@pytest.mark.parametrize("kind", KINDS)
def test_memory_for_one_is_enough_for_eight_and_changes_no_byte(tmp_path: Path, kind: str) -> None:
    recipe = prepared(tmp_path, kind)
    need = one_needs(recipe)
    plenty = b.sha256(b.run(recipe, workers=4).path)
    for share in (1.0, 1.4, 2.5):
        for workers in (1, 2, 4, 8):
            torch.simulated.empty_cache()
            torch.simulated.limit(int(share * need), WORKSPACE)
            result = b.run(recipe, workers=workers, warn=pytest.fail, fsync=workers == 4)
            assert b.sha256(result.path) == plenty, (share, workers)
            assert result.device == PLACE
            figures = torch.simulated.figures()
            assert figures["peak"] <= share * need
            assert figures["refused"] <= 2 * workers, "more is done twice than workers are there"


@pytest.mark.parametrize("kind", KINDS)
def test_what_one_alone_cannot_hold_goes_to_the_cpu_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    recipe = prepared(tmp_path, kind)
    need = one_needs(recipe)
    on_device = load_file(b.run(recipe).path)
    by_cpu(monkeypatch)
    seen: dict[float, set[str]] = {}
    for share in (0.97, 0.6, 0.02):
        digests = set()
        for workers in (1, 3, 8):
            torch.simulated.empty_cache()
            torch.simulated.limit(max(int(share * need), WORKSPACE + 80_000), WORKSPACE)
            warnings: list[str] = []
            result = b.run(recipe, workers=workers, warn=warnings.append, fsync=workers == 3)
            digests.add(b.sha256(result.path))
            seen[share] = keys(result, "cpu")
            assert seen[share] == marked_in(result)
            (warning,) = of_devices(warnings) or ["nothing was said"]
            assert warning.startswith(f"the CPU computed {len(seen[share])} of {LAYERS} tensors")
        assert len(digests) == 1, share
        out = load_file(result.path)
        assert all(torch.equal(out[key], on_device[key]) for key in keys(result, PLACE))
    assert TALL in seen[0.97]
    assert len(seen[0.97]) < LAYERS or kind == "lora"
    assert len(seen[0.02]) == LAYERS
    assert b.header(result.path)[1]["lorabake.device"] == result.device


def shortage(
    monkeypatch: pytest.MonkeyPatch, times: int, at: int, error: Callable[[], Exception] | None = None
) -> Counter[int]:
    """Let the device find no memory for one tile of the tall tensor, so many times; count the rows that it writes."""
    apply, emit, left, written = ByRows._apply, Emitter.emit, iter(range(times)), Counter[int]()

    def failing(self: ByRows, weight: torch.Tensor, parts: Any, first: int) -> None:
        if not self.loader.lane.device.is_cpu and first == at and next(left, None) is not None:
            raise (error or partial(torch.OutOfMemoryError, "Tried to allocate 20.00 GiB"))()
        apply(self, weight, parts, first)

    def counting(self: Emitter, step: Step, target: Any, weight: torch.Tensor, start: int, before: Any) -> Any:
        if target.key == TALL and not weight.is_cpu:
            written[start] += 1
        return emit(self, step, target, weight, start, before)

    monkeypatch.setattr(ByRows, "_apply", failing)
    monkeypatch.setattr(Emitter, "emit", counting)
    return written


AT = 2 * ROWS  # which only the tall one has


@pytest.mark.parametrize("workers", [1, 4])
def test_work_goes_on_from_the_row_that_was_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    recipe = prepared(tmp_path)
    right = b.sha256(b.run(recipe).path)
    written = shortage(monkeypatch, 1, AT)
    told: list[int] = []
    result = b.run(recipe, workers=workers, progress=told.append, warn=pytest.fail, fsync=True)
    assert b.sha256(result.path) == right
    assert written == dict.fromkeys(range(0, 4 * ROWS, TILE_ROWS), 1)
    assert sum(told) == result.plan.baked_bytes + result.plan.copied_bytes


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, NotImplementedError, TypeError], ids=lambda e: e.__name__)
def test_rows_that_are_written_are_written_again_by_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, error: type[Exception]
) -> None:
    recipe = prepared(tmp_path)
    shortage(monkeypatch, 9, AT, partial(error, "not here"))
    by_cpu(monkeypatch)
    told: list[int] = []
    warnings: list[str] = []
    result = b.run(recipe, workers=workers, progress=told.append, warn=warnings.append, fsync=True)
    assert keys(result, "cpu") == marked_in(result) == {TALL}
    assert b.header(result.path)[1]["lorabake.device"] == result.device == f"cpu+{PLACE}"
    assert result.report()["left_to_cpu"] == [TALL]
    assert sum(told) == result.plan.baked_bytes + result.plan.copied_bytes
    (warning,) = of_devices(warnings)
    assert warning.startswith(
        f"the CPU computed 1 of {LAYERS} tensors, whose last bits are the CPU's: {PLACE} cannot"
    )
    assert TALL in warning


def test_a_device_that_fails_ends_the_bake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = prepared(tmp_path)
    shortage(monkeypatch, 1, AT, partial(RuntimeError, "simulated error: the bus is on fire\nmore"))
    with pytest.raises(SurroundingsError) as raised:
        b.run(recipe, workers=3)
    assert str(raised.value) == (
        f'{PLACE} failed while baking {TALL}: simulated error: the bus is on fire\nTry device="cpu".'
    )
    assert not list(tmp_path.glob("out*"))


def test_dtypes_that_a_device_lacks_are_the_cpus_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holds = device._holds
    monkeypatch.setattr(
        device, "_holds", lambda place, dtype: dtype is not torch.float8_e4m3fn and holds(place, dtype)
    )
    recipe = prepared(tmp_path)
    base = model()
    base[TALL] = base[TALL].to(torch.float8_e4m3fn)
    b.save(tmp_path / "base.safetensors", base)
    warnings: list[str] = []
    result = b.run(recipe, warn=warnings.append)
    assert result.computed == {"cpu": (TALL,), PLACE: tuple(key for key in base if key != TALL)}
    assert len(of_devices(warnings)) == 1


def test_without_streams_or_pinned_memory_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = prepared(tmp_path)
    right = b.sha256(b.run(recipe).path)
    before = torch.simulated.figures()["copies_postponed"]
    for lacking in ("_has_streams", "_pins"):
        with monkeypatch.context() as patched:
            patched.setattr(device, lacking, lambda *_: False)
            assert b.sha256(b.run(recipe, workers=3).path) == right
    empty = torch.empty

    def unpinned(*arguments: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory and arguments != (1,):
            raise RuntimeError("no such memory is left")
        return empty(*arguments, **options, pin_memory=pin_memory)

    monkeypatch.setattr(torch, "empty", unpinned)
    assert b.sha256(b.run(recipe, workers=3).path) == right
    assert torch.simulated.figures()["copies_postponed"] == before


def test_the_command_line_says_what_computed(tmp_path: Path) -> None:
    recipe = prepared(tmp_path)
    need = one_needs(recipe)
    for memory, ending in ((need, f"computed on {PLACE}"), (1, "computed on cpu")):
        done = subprocess.run(
            [sys.executable, "-m", "lorabake", "bake", str(recipe), "--overwrite", "--force", "--workers", "3"],
            env={**os.environ, "SIMULATED_MEMORY": str(memory * 64 if memory > 1 else memory)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith(ending)
        assert ("cannot be used: simulated: out of memory" in done.stderr) is (memory == 1)
