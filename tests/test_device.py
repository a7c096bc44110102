"""Which device computes, what the file says of it, and how workers share its memory. All on the CPU.

`simulated` bakes on an accelerator.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, load_recipe, verify
from lorabake import plan as make_plan
from lorabake.errors import SurroundingsError, TargetError
from lorabake.execution import crew, device, executor, worker
from lorabake.execution.device import CPU, Turns, choose_device
from lorabake.execution.rows import ByRows
from lorabake.execution.wholes import Wholes
from lorabake.storage.fields import DATA_HASHES
from lorabake.writing.finished import Finished
from lorabake.writing.weights import Weights
from tests import builders as b
from tests.builders import SD1_KEYS


def silent(message: str) -> None:
    raise AssertionError(message)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    b.recipe(tmp_path)
    return tmp_path


# -- Which device ----------------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch say that it is built for an accelerator which then does not work."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.delenv("LORABAKE_DEVICE", raising=False)


@pytest.mark.parametrize("name", ["banana", "meta", "cpu:banana", "cuda:4711", "xla"])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_named_device_that_cannot_be_used_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, by: str) -> None:
    origin = ""
    if by == "environment":
        monkeypatch.setenv("LORABAKE_DEVICE", name)
        origin = r" \(LORABAKE_DEVICE in the environment\)"
    with pytest.raises(SurroundingsError, match=f"device '{name}'{origin} cannot be used: .*\n(Try|Give) device="):
        choose_device(name if by == "argument" else None, precision=torch.float32, warn=silent)


@pytest.mark.parametrize("name", [None, "auto"])
def test_without_an_accelerator_the_cpu_computes_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    monkeypatch.delenv("LORABAKE_DEVICE", raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert choose_device(name, precision=torch.float64, warn=silent) == CPU


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("name", [None, "auto"])
def test_an_accelerator_that_does_not_work_falls_back_with_a_warning(name: str | None) -> None:
    warnings: list[str] = []
    assert choose_device(name, precision=torch.float32, warn=warnings.append) == CPU
    (warning,) = warnings
    assert warning.startswith("xpu cannot be used: ")
    assert warning.endswith("; computed on the CPU")
    with pytest.raises(SurroundingsError, match="device 'xpu' cannot be used"):
        choose_device("xpu", precision=torch.float32, warn=silent)


@pytest.mark.usefixtures("broken")
def test_naming_the_cpu_asks_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu", precision=torch.float32, warn=silent) == CPU
    monkeypatch.setenv("LORABAKE_DEVICE", "cpu")
    assert choose_device(None, precision=torch.float32, warn=silent) == CPU


def test_an_argument_counts_more_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORABAKE_DEVICE", "banana")
    assert choose_device("cpu", precision=torch.float32, warn=silent) == CPU


@pytest.mark.parametrize("how", ["compute_dtype", "a base in float64", "neither"])
def test_a_plan_says_the_precision_that_it_takes(tmp_path: Path, how: str) -> None:
    base = b.sd1()
    if how == "a base in float64":
        base[SD1_KEYS[b.Q]] = base[SD1_KEYS[b.Q]].double()
    b.save(tmp_path / "base.safetensors", base)
    b.sd1_lora(tmp_path / "lora.safetensors")
    more = {"compute_dtype": "float64"} if how == "compute_dtype" else {}
    plan = make_plan(load_recipe(b.recipe(tmp_path, **more)))
    assert {step.precision for step in plan.steps} == {"float32" if how == "neither" else "float64"}
    assert executor.precision(plan.steps) is (torch.float32 if how == "neither" else torch.float64)


def test_a_device_without_the_precision_leaves_it_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's GPUs have no float64. The meta device stands for one here: it works, as far as that is asked."""
    monkeypatch.setattr(device, "_holds", lambda place, dtype: dtype is not torch.float64)
    monkeypatch.setattr(device, "call_first", lambda *_, **__: None)
    warnings: list[str] = []
    assert choose_device("mps", precision=torch.float64, warn=warnings.append) == CPU
    assert warnings == ["mps cannot compute in float64; computed on the CPU"]


# -- What the file and the summary say ---------------------------------------------------------------------


def test_the_header_names_the_class_that_computed(folder: Path) -> None:
    result = b.run(folder / "recipe.yaml", device="cpu")
    assert b.header(result.path)[1]["lorabake.device"] == "cpu"
    assert (result.device, result.report()["device"], result.report()["left_to_cpu"]) == ("cpu", "cpu", [])
    assert set(result.computed["cpu"]) == {SD1_KEYS[name] for name in (b.Q, b.FF, b.CONV, b.TE_Q)}


def test_what_is_only_copied_needs_no_device(folder: Path) -> None:
    result = b.run(b.recipe(folder, loras=[], output={"dtype": "float16"}), device="cuda:4711")
    assert result.computed == {}
    assert b.header(result.path)[1]["lorabake.device"] == "cpu"


@pytest.mark.parametrize("name", ["", "cpu", "cuda", "cpu+privateuseone"])
def test_the_header_is_as_long_whatever_computed(folder: Path, name: str) -> None:
    (file,) = make_plan(load_recipe(folder / "recipe.yaml")).files
    assert len(file.header(device=name)) == len(file.header())


def said(path: Path, name: str | None) -> None:
    """Let a baked file say another device, or none as bakes once did."""
    plan = make_plan(load_recipe(path.parent / "recipe.yaml"))
    (file,) = plan.files
    _, metadata, data = b.header(path)
    hashes = {key: metadata[key] for key in DATA_HASHES if key in metadata}
    digests = {place: b.sha256(source) for place, source in plan.digests.items()}
    path.write_bytes(file.header(digests, hashes, name) + data)


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("name", ["cpu", "cuda", None])
def test_a_bake_onto_its_own_result_is_let_through_whatever_computed_the_same_bytes(
    folder: Path, name: str | None, *, hashed: bool
) -> None:
    recipe = b.recipe(folder, output={"hash": hashed})
    path = b.run(recipe).path
    said(path, name)
    assert verify(load_recipe(recipe), path, VerifyOptions(stages=("structure", "weights"))).is_true
    b.run(recipe, overwrite=False)
    assert b.header(path)[1]["lorabake.device"] == "cpu"


@pytest.mark.parametrize("hashed", [True, False])
def test_other_last_bits_of_another_device_are_not_replaced(folder: Path, *, hashed: bool) -> None:
    recipe = b.recipe(folder, output={"hash": hashed})
    path = b.run(recipe).path
    raw = path.read_bytes()
    start = raw.find(b.tensor_bytes(path)[SD1_KEYS[b.Q]])
    path.write_bytes(raw[:start] + bytes([raw[start] ^ 1]) + raw[start + 1 :])
    if hashed:
        digest = hashlib.sha256(b.header(path)[2]).hexdigest()
        path.write_bytes(path.read_bytes().replace(b.header(path)[1]["sshs_model_hash"].encode(), digest.encode()))
    said(path, "cuda")
    before = path.read_bytes()
    with pytest.raises(
        TargetError, match="exists, computed on cuda, and cpu computed other last bits\nGive RunOptions"
    ):
        b.run(recipe, overwrite=False)
    assert path.read_bytes() == before
    b.run(recipe)


def test_a_base_that_a_device_baked_does_not_say_so_of_its_own_bakes(folder: Path) -> None:
    first = b.run(b.recipe(folder, output={"path": "first.safetensors"})).path
    b.recipe(folder, output={"path": "first.safetensors"})
    said(first, "cuda")
    second = b.run(b.recipe(folder, base="first.safetensors")).path
    assert b.header(second)[1]["lorabake.device"] == "cpu"


# -- Memory ------------------------------------------------------------------------------------------------


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

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ByRows, "_apply", fail)
    monkeypatch.setattr(Wholes, "_combine", fail)
    with pytest.raises(SurroundingsError, match=r"out of memory.*fewer workers"):
        b.run(folder / "recipe.yaml")
    assert {path.name for path in folder.iterdir()} == {"base.safetensors", "lora.safetensors", "recipe.yaml"}


class Crowd:
    """Run workers that take turns, and note the most that were at work beside each other, and beside one alone."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.at_work, self.most, self.most_beside_one_alone = turns, 0, 0, 0
        self.lock = threading.Lock()

    def work(self, *, alone: bool) -> None:
        with self.turns.take(alone=alone):
            with self.lock:
                self.at_work += 1
                self.most = max(self.most, self.at_work)
            time.sleep(0.001)
            with self.lock:
                if alone:
                    self.most_beside_one_alone = max(self.most_beside_one_alone, self.at_work)
                self.at_work -= 1

    def run(self, workers: int, times: int, alone: Callable[[int, int], bool]) -> None:
        def one(worker: int) -> None:
            for number in range(times):
                self.work(alone=alone(worker, number))

        threads = [threading.Thread(target=one, args=(worker,)) for worker in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()


def test_one_alone_has_the_device_for_itself_and_all_others_get_their_turns() -> None:
    crowd = Crowd(Turns(6))
    crowd.run(6, 12, lambda worker, number: (worker + number) % 4 == 0)
    assert crowd.most > 1
    assert crowd.most_beside_one_alone == 1


def test_fewer_work_side_by_side_where_that_helped_and_in_the_end_each_comes_alone() -> None:
    turns = Turns(4)
    turns.allow_fewer()
    crowd = Crowd(turns)
    crowd.run(4, 12, lambda *_: False)
    assert crowd.most == 3
    for fewer, alone in ((2, False), (9, True)):
        for _ in range(fewer):
            turns.allow_fewer()
        crowd = Crowd(turns)
        crowd.run(4, 4, lambda worker, _: worker == 0)
        assert crowd.most == 1
        with turns.take(alone=False) as granted:
            assert granted is alone


@pytest.mark.parametrize("alone", [True, False])
def test_whoever_fails_gives_the_turn_back(*, alone: bool) -> None:
    turns = Turns(3)
    with pytest.raises(ValueError, match="mine"), turns.take(alone=alone):
        raise ValueError("mine")
    Crowd(turns).run(3, 2, lambda worker, _: worker == 1)


# -- Whatever fails ends ---------------------------------------------------------------------------------


def test_a_range_that_is_finished_twice_is_an_error() -> None:
    for start, stop in ((0, 1), (2, 4), (5, 6), (3, 9), (0, 99), (9, 10), (10, 11), (11, 13), (19, 21)):
        finished = Finished()
        for each in ((4, 6), (0, 3), (12, 20), (3, 4), (9, 11)):
            finished.add(*each)
        with pytest.raises(RuntimeError, match=f"bytes {start} to {stop} of an output are finished twice"):
            finished.add(start, stop)
        for each in ((6, 9), (11, 12), (7, 7)):
            finished.add(*each)
        finished.check(20)
        with pytest.raises(RuntimeError, match="an output of 21 bytes was written in these ranges"):
            finished.check(21)


def test_ranges_are_followed_as_far_as_they_reach() -> None:
    finished, stop = Finished(), threading.Event()
    ranges = [(start, start + 10) for start in range(0, 1000, 10)]
    order = ranges[::3] + ranges[1::3][::-1] + ranges[2::3]

    def add() -> None:
        for each in order:
            finished.add(*each)

    thread = threading.Thread(target=add)
    thread.start()
    seen = list(finished.follow(1000, stop, step=25))
    thread.join()
    assert seen[0][0] == 0
    assert seen[-1][1] == 1000
    assert all(one[1] == other[0] for one, other in itertools.pairwise(seen))
    finished.check(1000)


@pytest.mark.parametrize("fault", ["lost", "twice"])
@pytest.mark.parametrize("options", [{"fsync": True}, {"fsync": False}], ids=str)
def test_a_range_lost_or_told_twice_ends_the_bake_instead_of_being_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str, options: dict[str, bool]
) -> None:
    finish, faults = Weights.finish, iter([fault])

    def faulty(self: Weights, file: int, start: int, stop: int) -> None:
        now = next(faults, "")
        if now != "lost":
            finish(self, file, start, stop)
        if now == "twice":
            finish(self, file, start, stop)

    monkeypatch.setattr(Weights, "finish", faulty)
    with pytest.raises(RuntimeError, match="finished twice" if fault == "twice" else "in these ranges alone"):
        b.run(folder / "recipe.yaml", **options)
    assert not list(folder.glob("out*"))


def test_workers_that_cannot_be_started_end_the_bake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for all before they begin."""
    start, work = crew.Crew.start, worker.work
    started: list[object] = []

    def failing(self: object, task: Callable[[], object], place: Path) -> threading.Thread:
        if getattr(task, "func", None) is work:
            started.append(task)
            if len(started) == 3:
                raise RuntimeError("can't start new thread")
        return start(self, task, place)  # type: ignore[arg-type]

    monkeypatch.setattr(crew.Crew, "start", failing)
    with pytest.raises(SurroundingsError, match="no thread can be started"):
        b.run(folder / "recipe.yaml", workers=4)
    assert not list(folder.glob("out*"))


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
