"""Measure the floor beneath a bake's time: what the machine takes for its arithmetic and its bytes alone.

    python -m benchmarks.floor RECIPE --work DIR

Everything is measured here and now, on all cores at once, as a bake uses them: one thread of torch for each worker.
- arithmetic: float32 `addmm_` at the very shapes of the recipe's tiles, in cache;
- conversion: float16 to float32 and back, a tile at a time;
- reading: the base from the page cache, a tile at a time; writing: into a fresh file of the output's length;
- copying: untouched bytes in the kernel, by one thread.
The import of torch, which a bake cannot avoid either, is measured by whoever calls this, as a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.measure import Floor
from lorabake import load_recipe
from lorabake import plan as make_plan
from lorabake.adapters.shapes import matrix
from lorabake.machine import default_workers
from lorabake.planning import Plan
from lorabake.planning.cost import TILE_VALUES

COPY = 4 << 20
TILE_BYTES = 2 * TILE_VALUES  # of float16
SECONDS = 0.25
"""How long each rate is measured, and all products together four times as long."""

MOST_BYTES = 1 << 29


@dataclass(frozen=True, slots=True)
class Work:
    """Count what a plan of plain LoRAs has to do. `products` are its tiles, by (rows, rank, columns)."""

    products: dict[tuple[int, int, int], int]
    converted: int
    read: int
    written: int
    copied: int

    @property
    def flops(self) -> int:
        """Count multiplications and additions."""
        return sum(2 * rows * rank * columns * count for (rows, rank, columns), count in self.products.items())


def work_of(plan: Plan) -> Work:
    """Count the work of a plan, as a bake on the CPU cuts it."""
    products: Counter[tuple[int, int, int]] = Counter()
    lora_values = lora_bytes = 0
    for step in plan.steps:
        (target,) = step.targets
        rows, columns = matrix(target.shape)
        rank = sum(patch.shapes["down"][0] for patch in step.patches)
        size = max(1, TILE_VALUES // columns)
        for start in range(0, rows, size):
            products[min(size, rows - start), rank, columns] += 1
        for patch in step.patches:
            factors = [info for slot, info in patch.tensors.items() if slot != "alpha"]
            lora_values += sum(matrix(info.shape)[0] * matrix(info.shape)[1] for info in factors)
            lora_bytes += sum(info.nbytes for info in factors)
    targets = [target for step in plan.steps for target in step.targets]
    values = sum(matrix(target.shape)[0] * matrix(target.shape)[1] for target in targets)
    read = sum(target.weight.nbytes for target in targets) + lora_bytes
    return Work(dict(products), 2 * values + lora_values, read, plan.baked_bytes, plan.copied_bytes)


def on_all_cores(workers: int, task: Callable[[int], Callable[[], object]], seconds: float) -> float:
    """Return the seconds that one call takes on each of several threads at once; `task` makes one thread's call."""
    rates: list[float] = []
    ready = threading.Barrier(workers)

    def run(number: int) -> None:
        torch.set_num_threads(1)
        call = task(number)
        call()
        ready.wait()
        began, calls = time.perf_counter(), 0
        while (taken := time.perf_counter() - began) < seconds or not calls:
            call()
            calls += 1
        rates.append(calls / taken)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return workers / sum(rates)


def arithmetic(work: Work, workers: int) -> float:
    """Measure each shape of product, the longer the more it counts, and add up what all of them take."""
    total = 0.0
    for (rows, rank, columns), count in work.products.items():
        if not rank:
            continue
        share = 2 * rows * rank * columns * count / work.flops

        def task(_: int, rows: int = rows, rank: int = rank, columns: int = columns) -> Callable[[], object]:
            weight, up, down = torch.zeros(rows, columns), torch.ones(rows, rank), torch.ones(rank, columns)
            return lambda: weight.addmm_(up, down)

        total += count * on_all_cores(workers, task, max(0.002, 4 * SECONDS * share)) / workers
    return total


def conversion(values: int, workers: int) -> float:
    """Measure float16 to float32 and back."""

    def task(_: int) -> Callable[[], None]:
        half, single = torch.ones(TILE_VALUES, dtype=torch.float16), torch.ones(TILE_VALUES)

        def call() -> None:
            single.copy_(half)
            half.copy_(single)

        return call

    return values / (2 * TILE_VALUES) * on_all_cores(workers, task, SECONDS) / workers


def reading(base: Path, count: int, workers: int) -> float:
    """Measure reading the base from the page cache, each thread in its own part."""
    size = base.stat().st_size
    tile = min(TILE_BYTES, size // workers)
    fd = os.open(base, os.O_RDONLY)

    def task(number: int) -> Callable[[], None]:
        buffer, part = memoryview(bytearray(tile)), size // workers
        position = 0

        def call() -> None:
            nonlocal position
            os.preadv(fd, [buffer], number * part + position)
            position = (position + tile) % max(1, part - tile)

        return call

    try:
        return count / tile * on_all_cores(workers, task, SECONDS) / workers
    finally:
        os.close(fd)


def writing(folder: Path, count: int, workers: int) -> float:
    """Measure writing into fresh pages of a file whose blocks are reserved, as a bake's are."""
    size = min(MOST_BYTES, max(count, workers * TILE_BYTES))
    part = size // workers
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        ready = threading.Barrier(workers + 1)

        def run(number: int) -> None:
            tile = memoryview(bytearray(TILE_BYTES))
            ready.wait()
            for position in range(number * part, (number + 1) * part, TILE_BYTES):
                os.pwrite(file.fileno(), tile, position)
            ready.wait()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(workers)]
        for thread in threads:
            thread.start()
        ready.wait()
        began = time.perf_counter()
        ready.wait()
        taken = time.perf_counter() - began
        for thread in threads:
            thread.join()
    return count / (part * workers) * taken


def copying(base: Path, folder: Path, count: int) -> float:
    """Measure copying in the kernel, or through a buffer where it cannot, by one thread."""
    size = min(MOST_BYTES, base.stat().st_size, max(count, COPY))
    with base.open("rb") as source, tempfile.NamedTemporaryFile(dir=folder) as target:
        os.posix_fallocate(target.fileno(), 0, size)
        began, done = time.perf_counter(), 0
        while done < size:
            try:
                done += os.copy_file_range(source.fileno(), target.fileno(), min(COPY, size - done), done, done)
            except OSError:
                done += os.pwrite(target.fileno(), os.pread(source.fileno(), min(1 << 20, size - done), done), done)
        return count / size * (time.perf_counter() - began)


def measure(plan: Plan, folder: Path) -> Floor:
    """Measure all rates, and say what the plan's work takes at them."""
    work, workers, base = work_of(plan), default_workers(), plan.sources.base.path
    return Floor(
        arithmetic=arithmetic(work, workers),
        conversion=conversion(work.converted, workers),
        reading=reading(base, work.read, workers),
        writing=writing(folder, work.written, workers),
        copying=copying(base, folder, work.copied),
        cores=workers,
    )


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where the bake writes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write there instead of printing")
    options = parser.parse_args(arguments)
    text = json.dumps(asdict(measure(make_plan(load_recipe(options.recipe)), options.work)))
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
