"""Measure what one machine does a second for a batch: reading, copying, computing, hashing, receipts, starting.

Rates are per core second while all cores do the same, as in a bake: cores share memory, caches, and some even more.
They are taken by the threads' own clocks, so that others on the machine count little. The page cache gives what is
read: no disk and no network is measured, but for the one rate that waits for the disk.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measure import environment

PIECE = 4 << 20
REPEATS = 5
SOME = 256 << 20
"""Bytes that are written and copied for a measurement."""

RANK, ROWS, COLUMNS = 32, 204, 1280
"""A tile of SDXL's width with a common rank."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Hold what one core does: bytes, multiplications and additions, or values a second; and seconds of fixed work.

    `read`, `copy` and `write` go through the page cache, `reserve` gives a new file its length; `durable` is bytes a
    second that the disk takes. `convert` are values of float16 to float32 and back. `receipt` is one receipt that the
    disk has, `noted` one that the page cache has, `told` reading one. `start` is a process that has imported all,
    `command` one that has imported what it needs to plan. `first` is planning one output, `plan` planning one more of
    a thousand tensors, `hand_out` the driver's part in one unit. `overhead` is what a real bake takes of core
    seconds, over what these rates add up to for it. Each core but the first is busy for the share `beyond` of its
    time, as threads of one process wait for one another.
    """

    read: float
    copy: float
    write: float
    reserve: float
    durable: float
    convert: float
    flops: float
    hash: float
    receipt: float
    noted: float
    told: float
    command: float
    start: float
    first: float
    plan: float
    hand_out: float
    overhead: float = 1.0
    beyond: float = 1.0

    @classmethod
    def load(cls, path: Path) -> Rates:
        """Read rates that `--calibrate` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8"))["rates"])

    def as_json(self) -> dict[str, float]:
        """Name and round the numbers."""
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}


def _median(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(REPEATS))


def _on_all_cores(task: Callable[[], Callable[[], float]]) -> float:
    """Return the mean of what one call gives on each core while all others do the same; `task` makes a thread's."""
    cores = len(os.sched_getaffinity(0))
    ready = threading.Barrier(cores)

    def run(_: int) -> float:
        call = task()
        call()
        ready.wait()
        return _median(call)

    with ThreadPoolExecutor(cores) as pool:
        return statistics.fmean(pool.map(run, range(cores)))


def _by_core(task: Callable[[], Callable[[], int]]) -> float:
    """Return what a task counts, a second of a thread's own time."""

    def timed() -> Callable[[], float]:
        once = task()
        return lambda: _rate(once)

    return _on_all_cores(timed)


def _rate(task: Callable[[], int]) -> float:
    began, done = time.thread_time(), 0
    while (taken := time.thread_time() - began) < 0.1:
        done += task()
    return done / taken


def _files(source: Path, folder: Path) -> dict[str, float]:
    """Measure reading, copying and writing; with fresh pages, as a bake's are."""
    size = min(SOME, source.stat().st_size) // PIECE * PIECE
    names = itertools.count()

    def read() -> Callable[[], int]:
        piece = memoryview(bytearray(PIECE))

        def once() -> int:
            with source.open("rb", buffering=0) as file:
                return sum(os.preadv(file.fileno(), [piece], at) for at in range(0, size, PIECE))

        return once

    def fresh(
        step: Callable[[int, int], object], clock: Callable[[], float], *, durable: bool = False
    ) -> Callable[[], float]:
        target = folder / f"target{next(names)}"

        def once() -> float:
            with target.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
                began = clock()
                for at in range(0, size, PIECE):
                    step(file.fileno(), at)
                if durable:
                    os.fsync(file.fileno())
                taken = clock() - began
            target.unlink()
            return size / taken

        return once

    def reserve() -> float:
        with (folder / "reserved").open("wb") as file:
            began = time.thread_time()
            os.posix_fallocate(file.fileno(), 0, size)
            taken = time.thread_time() - began
        return size / max(taken, 1e-6)

    with source.open("rb") as file:

        def copy(fd: int, at: int) -> object:
            try:
                return os.copy_file_range(file.fileno(), fd, PIECE, at, at)
            except OSError:
                return os.pwrite(fd, os.pread(file.fileno(), PIECE, at), at)

        piece = os.urandom(PIECE)

        def write(fd: int, at: int) -> object:
            return os.pwrite(fd, piece, at)

        return {
            "read": _by_core(read),
            "copy": _on_all_cores(lambda: fresh(copy, time.thread_time)),
            "write": _on_all_cores(lambda: fresh(write, time.thread_time)),
            "reserve": _median(reserve),
            "durable": _median(fresh(write, time.perf_counter, durable=True)),
        }


def _arithmetic() -> dict[str, float]:
    import torch

    data = os.urandom(PIECE)

    def product() -> Callable[[], int]:
        torch.set_num_threads(1)
        weight, up, down = torch.zeros(ROWS, COLUMNS), torch.ones(ROWS, RANK), torch.ones(RANK, COLUMNS)

        def once() -> int:
            weight.addmm_(up, down)
            return 2 * ROWS * RANK * COLUMNS

        return once

    def convert() -> Callable[[], int]:
        torch.set_num_threads(1)
        weight = torch.zeros(ROWS, COLUMNS)
        half = weight.to(torch.float16)

        def once() -> int:
            weight.copy_(half)
            half.copy_(weight)
            return 2 * ROWS * COLUMNS

        return once

    def digest() -> int:
        hashlib.sha256(data).digest()
        return PIECE

    return {"flops": _by_core(product), "convert": _by_core(convert), "hash": _by_core(lambda: digest)}


def _receipts(folder: Path) -> dict[str, float]:
    """Measure landing a receipt, by the wall's clock, and reading one."""
    ranges = [[0, number, number + 1, "0" * 64] for number in range(8)]
    steps = {str(n): {"kind": "cpu", "asked": "cpu", "tallies": {}} for n in range(40)}
    text = json.dumps({"ranges": ranges, "steps": steps}).encode()
    fd = os.open(folder, os.O_RDONLY)
    place = folder / "receipt.json"

    def land(durable: bool) -> float:
        began = time.perf_counter()
        with (folder / "new").open("wb") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(folder / "new", place)
        if durable:
            os.fsync(fd)
        return time.perf_counter() - began

    def told() -> float:
        began = time.thread_time()
        hashlib.sha256(json.dumps(json.loads(place.read_bytes()), sort_keys=True).encode()).hexdigest()
        return time.thread_time() - began

    try:
        return {
            "receipt": _median(lambda: land(True)),
            "noted": _median(lambda: land(False)),
            "told": _median(told),
        }
    finally:
        os.close(fd)


def _starts(recipe: Path) -> dict[str, float]:
    """Measure a process's start by its own core seconds, and planning outputs on one base."""

    def ran(text: str, *words: str) -> list[float]:
        command = [sys.executable, "-c", text, *words]
        said = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True).stdout
        return [*map(float, said.split())]

    imports = "import time, {}; print(time.process_time())"
    plans = (
        "import sys, time, lorabake, lorabake.batch; from lorabake.sources import resolve\n"
        "from lorabake.planning import plan; from lorabake.tensors.once import shared\n"
        "recipe = lorabake.load_recipe(sys.argv[1])\n"
        "with shared():\n"
        "    began = time.process_time(); first = plan(resolve(recipe)); planned = time.process_time()\n"
        "    for _ in range(8): plan(resolve(recipe))\n"
        "tensors = sum(len(file.targets) for file in first.files)\n"
        "print(planned - began, (time.process_time() - planned) / 8 / tensors * 1000)\n"
    )
    command, start, planned = (
        [ran(text, str(recipe)) for _ in range(REPEATS)]
        for text in (
            imports.format("lorabake.cli.batch, lorabake.batch"),
            imports.format("lorabake.batch.work, lorabake.execution.worker"),
            plans,
        )
    )
    figures = {"command": command, "start": start, "first": planned, "plan": [[each[1]] for each in planned]}
    return {name: statistics.median(each[0] for each in found) for name, found in figures.items()}


def _hand_out() -> float:
    """Measure what it takes to give a process a small message and to hear that it is done."""
    code = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def once() -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            began = time.perf_counter()
            process.stdin.write("x" * 4096 + "\n")
            process.stdin.flush()
            process.stdout.readline()
            return time.perf_counter() - began

        once()
        taken = statistics.median(once() for _ in range(50))
        process.stdin.close()
    return taken


def measure(base: Path, recipe: Path, work: Path) -> Rates:
    """Measure all rates, with a base to read, a recipe to plan and a folder to write in; about half a minute."""
    with tempfile.TemporaryDirectory(prefix="rates-", dir=work) as folder:
        found = _files(base, Path(folder)) | _receipts(Path(folder))
    return Rates(**found, **_arithmetic(), **_starts(recipe), hand_out=_hand_out())
