"""Measure what one machine does a second for a batch: reading, copying, computing, hashing, receipts, starting.

Most rates are per core second, by the thread's own clock, so that others on the machine count little. The page cache
gives what is read: no disk and no network is measured, but for the one rate that waits for the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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

    `read`, `copy` and `write` go through the page cache; `durable` is bytes a second until the disk has them, one
    after the other. `convert` are values of float16 to float32 and back. `receipt` is one receipt that the disk has,
    `noted` one that the page cache has, `told` reading one. `start` is a process that has imported all, `plan` one
    output more of a thousand tensors, `hand_out` the driver's part in one unit. `overhead` is what a real bake takes
    of core seconds, over what these rates add up to for it.
    """

    read: float
    copy: float
    write: float
    durable: float
    convert: float
    flops: float
    hash: float
    receipt: float
    noted: float
    told: float
    start: float
    plan: float
    hand_out: float
    overhead: float = 1.0

    @classmethod
    def load(cls, path: Path) -> Rates:
        """Read rates that `--calibrate` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8"))["rates"])

    def as_json(self) -> dict[str, float]:
        """Name and round the numbers."""
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}


def _median(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(REPEATS))


def _by_core(task: Callable[[], int]) -> float:
    """Return what a task counts, a second of this thread's own time."""
    task()
    return _median(lambda: _rate(task, time.thread_time))


def _rate(task: Callable[[], int], clock: Callable[[], float]) -> float:
    began, done = clock(), 0
    while (taken := clock() - began) < 0.1:
        done += task()
    return done / taken


def _files(folder: Path) -> dict[str, float]:
    """Measure reading, copying and writing; with fresh pages, as a bake's are."""
    piece = memoryview(bytearray(os.urandom(PIECE)))
    source, target = folder / "source", folder / "target"
    source.write_bytes(bytes(piece) * (SOME // PIECE))

    def read() -> int:
        with source.open("rb", buffering=0) as file:
            return sum(os.preadv(file.fileno(), [piece], at) for at in range(0, SOME, PIECE))

    def fresh(step: Callable[[int, int], object], clock: Callable[[], float], *, durable: bool = False) -> float:
        with target.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, SOME)
            began = clock()
            for at in range(0, SOME, PIECE):
                step(file.fileno(), at)
            if durable:
                os.fsync(file.fileno())
            taken = clock() - began
        target.unlink()
        return SOME / taken

    def write(fd: int, at: int) -> object:
        return os.pwrite(fd, piece, at)

    with source.open("rb") as file:

        def copy(fd: int, at: int) -> object:
            try:
                return os.copy_file_range(file.fileno(), fd, PIECE, at, at)
            except OSError:
                return os.pwrite(fd, os.pread(file.fileno(), PIECE, at), at)

        return {
            "read": _by_core(read),
            "copy": _median(lambda: fresh(copy, time.thread_time)),
            "write": _median(lambda: fresh(write, time.thread_time)),
            "durable": _median(lambda: fresh(write, time.perf_counter, durable=True)),
        }


def _arithmetic() -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    weight, up, down = torch.zeros(ROWS, COLUMNS), torch.ones(ROWS, RANK), torch.ones(RANK, COLUMNS)
    half = weight.to(torch.float16)

    def product() -> int:
        weight.addmm_(up, down)
        return 2 * ROWS * RANK * COLUMNS

    def convert() -> int:
        weight.copy_(half)
        half.copy_(weight)
        return 2 * ROWS * COLUMNS

    data = os.urandom(PIECE)

    def digest() -> int:
        hashlib.sha256(data).digest()
        return PIECE

    return {"flops": _by_core(product), "convert": _by_core(convert), "hash": _by_core(digest)}


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
    """Measure a process's start by its own core seconds, and planning outputs on one base after the first."""
    code = "import time, lorabake.batch.work, lorabake.execution.worker; print(time.process_time())"

    def ran(text: str, *words: str) -> float:
        command = [sys.executable, "-c", text, *words]
        return float(subprocess.run(command, env=environment(), check=True, capture_output=True, text=True).stdout)

    plans = (
        "import sys, time, lorabake; from lorabake.sources import resolve; from lorabake.planning import plan\n"
        "from lorabake.tensors.once import shared\n"
        "recipe = lorabake.load_recipe(sys.argv[1])\n"
        "with shared():\n"
        "    first = plan(resolve(recipe)); began = time.process_time()\n"
        "    for _ in range(4): plan(resolve(recipe))\n"
        "tensors = sum(len(file.targets) for file in first.files)\n"
        "print((time.process_time() - began) / 4 / tensors * 1000)\n"
    )
    return {"start": _median(lambda: ran(code)), "plan": _median(lambda: ran(plans, str(recipe)))}


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


def measure(recipe: Path, work: Path) -> Rates:
    """Measure all rates, with a recipe to plan and a folder to write in; about half a minute on a quiet machine."""
    with tempfile.TemporaryDirectory(prefix="rates-", dir=work) as folder:
        found = _files(Path(folder)) | _receipts(Path(folder))
    return Rates(**found, **_arithmetic(), **_starts(recipe), hand_out=_hand_out())
