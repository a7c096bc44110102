"""Measure bakes on a GPU in at most eight minutes: speed, agreement with the CPU, repeatability, limited memory.

    python -m benchmarks.gpu [--work DIR] [--json FILE] [--only NAME …] [--small] [--device NAME]

It needs what the checkout installs, and about 30 GB of disk. It makes its own inputs, then works through `JOBS`, the
most telling ones first. Each is a process of its own with a limit of time: whatever fails, hangs or finds no time is
said below the table, and the rest is measured. Any accelerator of torch will do; without one it says so and ends.

The columns of the table:
- bake: seconds of the whole process; warm: of a bake in a process that has baked before; GB/s: output over that;
- of write: that rate, as a share of the rate at which the storage's page cache takes bytes;
- cp, CPU, diffusers: copying the base, the same bake on the CPU, and diffusers on the same GPU, as whole processes;
- read, transfer, compute, write: GB/s of each stage alone, by one worker that waits for each to end; compute counts
  the bytes of float32 weights;
- ulp, differ: the largest distance from the CPU's bake, in units of the last place of the stored dtype, and how many
  of the baked values differ at all; the CPU's bake is what the tests prove;
- repeats: whether bakes with other numbers of workers, or less memory, gave the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import environment
from benchmarks.run import write_recipe

MINUTES = 8.0
# What a bake imports; where more is missing, the jobs that need it say so.
NEEDED = ("click", "numpy", "pydantic", "torch", "yaml")
GB = 1e9


@dataclass(frozen=True, slots=True)
class Case:
    """A base with LoRAs."""

    base: str
    loras: tuple[tuple[str, float], ...]


CASES = {
    "sd15+1": Case("sd15", (("sd15_r32a", 0.8),)),
    "sd15+3": Case("sd15", (("sd15_r32a", 0.8), ("sd15_r128", 0.6), ("sd15_locon", 0.5))),
    "sd15 dora": Case("sd15", (("sd15_dora", 0.8),)),
    "sd15 loha": Case("sd15", (("sd15_loha", 0.8),)),
    "sd15 fp8": Case("sd15_fp8", (("sd15_r128", 3.0),)),
    "sd15 int8": Case("sd15_int8", (("sd15_r128", 3.0),)),
    "sdxl+1": Case("sdxl", (("sdxl_r32a", 0.8),)),
    "sdxl+3": Case("sdxl", (("sdxl_r32a", 0.8), ("sdxl_r32b", 0.6), ("sdxl_r128", 0.5))),
    "sdxl dora": Case("sdxl", (("sdxl_dora", 0.8),)),
    "sdxl loha": Case("sdxl", (("sdxl_loha", 0.8),)),
    "sdxl fp8": Case("sdxl_fp8", (("sdxl_r128", 3.0),)),
    "sdxl int8": Case("sdxl_int8", (("sdxl_r128", 3.0),)),
}
COLUMNS = (
    "bake s", "warm s", "GB/s", "of write", "cp s", "CPU s", "diffusers s", "read", "transfer", "compute", "write",
    "ulp", "differ", "repeats",
)  # fmt: skip


@dataclass(slots=True)
class Setting:
    """All that jobs share: where inputs and outputs are, on which device, and what was found out so far."""

    inputs: Path
    work: Path
    device: str
    small: bool
    deadline: float
    rows: dict[str, dict[str, object]] = field(default_factory=dict)
    machine: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def recipe(self, name: str) -> Path:
        """Write a case's recipe."""
        case = CASES[name]
        loras = [(self.inputs / f"{lora}.safetensors", strength) for lora, strength in case.loras]
        path = self.work / f"{name.replace(' ', '_')}.yaml"
        return write_recipe(path, self.inputs / f"{case.base}.safetensors", loras, hashed=False)

    def output(self, name: str, device: str) -> Path:
        """Name the output of a case on "gpu" or "cpu"."""
        return self.work / f"{name.replace(' ', '_')}_{device}.safetensors"

    def row(self, name: str) -> dict[str, object]:
        """Return the row of a case, or of a part of it."""
        return self.rows.setdefault(name, {})

    def child(self, *arguments: object, limit: float, **more: str) -> str:
        """Run Python with arguments and return what it prints; raise FailedError, also when time is over."""
        return run_child([sys.executable, *map(str, arguments)], min(limit, self.deadline - time.monotonic()), more)

    def ask(self, job: str, *arguments: object, limit: float) -> dict[str, Any]:
        """Run one of this file's own `CHILDREN`, and return what it found."""
        told = self.child("-m", "benchmarks.gpu", "--child", job, self.device, *arguments, limit=limit)
        found: dict[str, Any] = json.loads(told.splitlines()[-1])
        return found


class FailedError(Exception):
    """Say why a job has no result."""


def run_child(command: Sequence[str], limit: float, more: dict[str, str]) -> str:
    """Run a command to its end, or to its limit: then it is killed with all that it started."""
    if limit <= 0:
        raise FailedError("no time was left")
    process = subprocess.Popen(
        command,
        env={**environment(), **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        told, errors = process.communicate(timeout=limit)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise FailedError(f"took longer than {limit:.0f} s") from None
        raise
    if process.returncode:
        lines = [line for line in errors.splitlines() if line.strip()] or ["nothing was said"]
        raise FailedError(f"exit code {process.returncode}: {lines[-1].strip()[:300]}")
    return told


# -- jobs, in this process: each fills in cells ------------------------------------------------------------


def prepare(kind: str) -> Callable[[Setting], None]:
    """Make a set of inputs."""

    def job(setting: Setting) -> None:
        small = ["--small"] if setting.small else []
        setting.child("-m", "benchmarks.inputs", setting.inputs, "--only", kind, *small, limit=150)

    return job


def measure_machine(setting: Setting) -> None:
    """Measure the device's and the storage's rates."""
    setting.machine |= setting.ask("machine", setting.work, limit=60)


def bake_process(name: str) -> Callable[[Setting], None]:
    """Bake on the device in a process of its own, as a user would."""

    def job(setting: Setting) -> None:
        setting.row(name)["bake s"] = command_line(setting, name, "gpu", setting.device)

    return job


def bake_on_cpu(name: str) -> Callable[[Setting], None]:
    """Bake on the CPU, and compare."""

    def job(setting: Setting) -> None:
        setting.row(name)["CPU s"] = command_line(setting, name, "cpu", "cpu")
        setting.row(name).update(
            setting.ask("compare", setting.output(name, "cpu"), setting.output(name, "gpu"), limit=90)
        )
        setting.output(name, "cpu").unlink()

    return job


def command_line(setting: Setting, name: str, which: str, device: str) -> float:
    """Run `lorabake bake`, and return the seconds that it takes."""
    recipe, output = setting.recipe(name), setting.output(name, which)
    output.unlink(missing_ok=True)
    began = time.perf_counter()
    arguments = ("-m", "lorabake", "bake", recipe, "--output", output, "--no-fsync", "--quiet", "--device", device)
    setting.child(*arguments, limit=120)
    return time.perf_counter() - began


def bake_warm(name: str) -> Callable[[Setting], None]:
    """Bake several times in one process, with other numbers of workers."""

    def job(setting: Setting) -> None:
        found = setting.ask("warm", setting.recipe(name), setting.output(name, "gpu"), limit=90)
        row = setting.row(name)
        row |= found
        if "page cache write GB/s" in setting.machine:
            row["of write"] = row["GB/s"] / setting.machine["page cache write GB/s"]  # type: ignore[operator]

    return job


def bake_in_stages(name: str) -> Callable[[Setting], None]:
    """Time each stage of one worker alone."""

    def job(setting: Setting) -> None:
        setting.row(name).update(setting.ask("stages", setting.recipe(name), setting.work, limit=60))

    return job


def copy(name: str) -> Callable[[Setting], None]:
    """Copy the base with cp."""

    def job(setting: Setting) -> None:
        target = setting.work / "copy"
        began = time.perf_counter()
        base = setting.inputs / f"{CASES[name].base}.safetensors"
        run_child(["cp", str(base), str(target)], min(60, setting.deadline - time.monotonic()), {})
        setting.row(name)["cp s"] = time.perf_counter() - began
        target.unlink()

    return job


def run_diffusers(name: str) -> Callable[[Setting], None]:
    """Run diffusers on the same device, as benchmarks.run does on the CPU."""

    def job(setting: Setting) -> None:
        if importlib.util.find_spec("diffusers") is None or importlib.util.find_spec("peft") is None:
            raise FailedError("diffusers or peft is not installed")
        case, output = CASES[name], setting.work / "peer"
        loras = [f"{setting.inputs / lora}.safetensors={strength}" for lora, strength in case.loras]
        began = time.perf_counter()
        base = setting.inputs / f"{case.base}.safetensors"
        arguments = ("-m", "benchmarks.peer_diffusers", base, *loras, "--output", output, "--device", setting.device)
        setting.child(*arguments, limit=120)
        setting.row(name)["diffusers s"] = time.perf_counter() - began
        shutil.rmtree(output)

    return job


def limit_memory(name: str) -> Callable[[Setting], None]:
    """Bake with the memory that one worker needs, with one to eight workers; and with less."""

    def job(setting: Setting) -> None:
        found = setting.ask("memory", setting.recipe(name), setting.work, limit=100)
        for part, row in found["rows"].items():
            setting.rows[f"{name}, {part}"] = row
        setting.notes += [f"{name}: {note}" for note in found["notes"]]

    return job


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement of a case, or what comes before."""

    name: str
    what: str
    run: Callable[[Setting], None]


def jobs() -> Iterator[Job]:
    """Yield all jobs, the most telling first."""
    yield Job("machine", "rates", measure_machine)
    yield Job("sd15", "inputs", prepare("sd15"))
    yield from of_case("sd15+3", "bake", "warm", "cpu", "cp", "memory", "stages")
    yield Job("sdxl", "inputs", prepare("sdxl"))
    yield from of_case("sdxl+3", "bake", "warm", "cpu", "cp", "stages")
    yield Job("sd15 kinds", "inputs", prepare("sd15_kinds"))
    for kind in ("fp8", "int8", "dora", "loha"):
        yield from of_case(f"sd15 {kind}", "bake", "warm", "cpu")
    yield from of_case("sd15+1", "bake", "warm", "cpu", "stages")
    yield from of_case("sd15+3", "diffusers")
    yield from of_case("sdxl+1", "bake", "warm", "cpu")
    yield Job("sdxl kinds", "inputs", prepare("sdxl_kinds"))
    for kind in ("fp8", "dora", "loha", "int8"):
        yield from of_case(f"sdxl {kind}", "bake", "warm", "cpu")
    yield from of_case("sdxl+3", "diffusers")


def with_inputs(names: Sequence[str]) -> set[str]:
    """Add the jobs that make the inputs of cases."""
    archs = {name[:4] for name in names if name in CASES}
    return {*names, *archs, *(f"{name[:4]} kinds" for name in names if " " in name)}


MEASUREMENTS = {
    "bake": bake_process,
    "warm": bake_warm,
    "cpu": bake_on_cpu,
    "cp": copy,
    "stages": bake_in_stages,
    "memory": limit_memory,
    "diffusers": run_diffusers,
}


def of_case(name: str, *what: str) -> Iterator[Job]:
    """Yield measurements of one case."""
    for each in what:
        yield Job(name, each, MEASUREMENTS[each](name))


def work_through(setting: Setting, chosen: Sequence[Job]) -> None:
    """Run jobs until time is over; whatever one fails of is noted, and said at once."""
    before = ""
    for job in chosen:
        if before and before != job.name:
            for device in ("gpu", "cpu"):
                if before in CASES:
                    setting.output(before, device).unlink(missing_ok=True)
            say("\n".join(table(setting)))
        before = job.name
        began = time.monotonic()
        try:
            job.run(setting)
            say(f"{job.name}: {job.what} done in {time.monotonic() - began:.1f} s")
        except (FailedError, OSError, ValueError, KeyError) as error:
            setting.notes.append(f"{job.name}: {job.what} is not measured: {error}")
            say(setting.notes[-1])


def say(text: str) -> None:
    """Print at once: whoever ends this process has what was measured so far."""
    print(text, flush=True)


# -- the table ---------------------------------------------------------------------------------------------


def shown(column: str, value: object) -> str:
    """Write one cell; a dash for what was not measured."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "**NO**"
        case float() if column in ("of write", "differ"):
            return f"{value:.2%}" if column == "differ" else f"{value:.0%}"
        case float():
            return f"{value:.2f}"
        case _:
            return str(value)


def table(setting: Setting) -> list[str]:
    """Write the machine's rates, one Markdown row a case, and what was not measured."""
    lines = [", ".join(f"{name} {shown(name, value)}" for name, value in setting.machine.items()), ""]
    lines += [f"| case | {' | '.join(COLUMNS)} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    for name, row in setting.rows.items():
        lines.append(f"| {name} | {' | '.join(shown(column, row.get(column)) for column in COLUMNS)} |")
    return [*lines, "", *setting.notes]


# -- jobs, in a process of their own: each prints JSON -------------------------------------------------------


def child_device(name: str, _: Sequence[str]) -> dict[str, object]:
    """Say what would compute."""
    import torch

    from lorabake.execution.device import choose_device

    said: list[str] = []
    device = choose_device(name, precision=torch.float32, warn=said.append)
    return {"kind": device.kind, "place": str(device.place), "said": said}


def child_machine(name: str, arguments: Sequence[str]) -> dict[str, object]:
    """Measure a device's products and copies, and what the page cache and the storage take."""
    import torch

    from lorabake.execution.device import Lane, choose_device
    from lorabake.machine import default_workers
    from lorabake.planning.cost import DEVICE_TILE_VALUES

    device = choose_device(name, precision=torch.float32, warn=lambda message: None)
    module = torch.get_device_module(device.place)
    title = getattr(module, "get_device_name", lambda device: "the CPU")(device.place)
    found: dict[str, object] = {"device": title, "torch": torch.__version__, "cores": os.cpu_count()}
    found["workers"] = default_workers()
    lane = Lane(device, 1 << 30)
    lane.enter()
    columns = 1280
    rows = (1 << 22 if device.is_cpu or device.kind == "simulated" else DEVICE_TILE_VALUES) // columns
    buffer = lane.buffer("in", rows * columns * 2)

    def seconds(task: Callable[[], object], least: float = 0.3) -> float:
        task()
        lane.settle()
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < least:
            task()
            count += 1
        lane.settle()
        return (time.perf_counter() - began) / count

    size = rows * columns * 2
    there = lane.send(buffer, rows * columns, torch.float16)
    found["to device GB/s"] = size / seconds(lambda: lane.send(buffer, rows * columns, torch.float16)) / GB
    flat = there.reshape(-1)
    found["from device GB/s"] = size / seconds(lambda: lane.fetch(flat, torch.float16)) / GB
    weight = torch.zeros(rows, columns, device=device.place)
    for rank in (32, 192):
        up, down = torch.ones(rows, rank, device=device.place), torch.ones(rank, columns, device=device.place)
        taken = seconds(lambda up=up, down=down: weight.addmm_(up, down))  # type: ignore[misc]
        found[f"addmm r{rank} TFLOP/s"] = 2 * rows * rank * columns / taken / 1e12
    storage(Path(arguments[0]), found)
    return found


def storage(folder: Path, found: dict[str, object], size: int = 1 << 30) -> None:
    """Measure writing to the page cache by all cores, reading from it, and writing to the disk."""
    from lorabake.machine import default_workers

    chunk, workers = memoryview(bytearray(8 << 20)), default_workers()
    path = folder / "rates"

    def in_parts(task: Callable[[int], object]) -> float:
        def run(number: int) -> None:
            for start in range(number * len(chunk), size, workers * len(chunk)):
                task(start)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(workers)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return size / (time.perf_counter() - began) / GB

    with path.open("w+b") as file:
        os.truncate(file.fileno(), size)
        began = time.perf_counter()
        found["page cache write GB/s"] = in_parts(lambda start: os.pwrite(file.fileno(), chunk, start))
        os.fsync(file.fileno())
        found["disk write GB/s"] = size / (time.perf_counter() - began) / GB
        found["page cache read GB/s"] = in_parts(lambda start: os.pread(file.fileno(), len(chunk), start))
    path.unlink()


def baked(recipe: Path, output: Path, device: str, workers: int | None) -> Any:
    """Bake in this process."""
    from lorabake import RunOptions, bake, load_recipe
    from lorabake import plan as make_plan
    from lorabake.machine import default_workers

    options = RunOptions(device=device, workers=workers or default_workers(), fsync=False, overwrite=True)
    return bake(make_plan(load_recipe(recipe), output), options)


def digest(path: Path) -> str:
    """Digest a file's data, without the header: that names what computed."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "blake2b").hexdigest()


def child_warm(device: str, arguments: Sequence[str]) -> dict[str, object]:
    """Bake, bake again, and again with other numbers of workers."""
    recipe, output = map(Path, arguments)
    baked(recipe, output, device, None)
    digests = {digest(output)}
    result = baked(recipe, output, device, None)
    digests.add(digest(output))
    for workers in (1, 3):
        baked(recipe, output, device, workers)
        digests.add(digest(output))
    return {"warm s": result.seconds, "GB/s": result.size / result.seconds / GB, "repeats": len(digests) == 1}


def child_stages(device: str, arguments: Sequence[str]) -> dict[str, object]:
    """Bake with one worker that waits for each copy to end, so that each stage's seconds are its own."""
    from lorabake.execution import executor
    from lorabake.execution.device import Buffer, Lane
    from lorabake.tensors.dtypes import DTYPES

    transfer = [0.0, 0.0]  # bytes, seconds

    class Timed(Lane):
        def send(self, buffer: Buffer, count: int, dtype: Any) -> Any:
            self.settle()
            began = time.perf_counter()
            sent = super().send(buffer, count, dtype)
            self.settle()
            transfer[0] += sent.nbytes
            transfer[1] += time.perf_counter() - began
            return sent

        def fetch(self, values: Any, dtype: Any) -> Any:
            self.settle()
            began = time.perf_counter()
            fetched = super().fetch(values, dtype)
            if not self.device.is_cpu:
                transfer[0] += fetched.nbytes
                transfer[1] += time.perf_counter() - began
            return fetched

    executor.Lane = Timed  # type: ignore[misc]
    recipe, output = Path(arguments[0]), Path(arguments[1]) / "stages.safetensors"
    result = baked(recipe, output, device, 1)
    output.unlink()
    targets = [target for step in result.plan.steps for target in step.targets]
    values = sum(target.nbytes * 8 // DTYPES[target.dtype].bits for target in targets)
    loras = sum(info.nbytes for patch in result.plan.patches for info in patch.tensors.values())
    read = sum(target.weight.nbytes for target in targets) + loras
    seconds = result.stages
    return {
        "read": read / max(seconds["read"], 1e-9) / GB,
        "transfer": transfer[0] / transfer[1] / GB if transfer[1] else None,
        "compute": 4 * values / max(seconds["compute"] - transfer[1], 1e-9) / GB,
        "write": result.plan.baked_bytes / max(seconds["write"], 1e-9) / GB,
    }


def child_memory(name: str, arguments: Sequence[str]) -> dict[str, object]:
    """Bake with the memory that one worker needs, and with less."""
    import torch

    from lorabake.execution.device import choose_device

    device = choose_device(name, precision=torch.float32, warn=lambda message: None)
    module = torch.get_device_module(device.place)
    missing = [
        function
        for function in ("set_per_process_memory_fraction", "max_memory_reserved", "mem_get_info")
        if not hasattr(module, function)
    ]
    if missing:
        return {"rows": {}, "notes": [f"memory cannot be limited: torch.{device.kind} has no {', '.join(missing)}"]}
    recipe, output = Path(arguments[0]), Path(arguments[1]) / "memory.safetensors"
    baked(recipe, output, name, 1)  # the first one sets things up
    right = digest(output)
    need = module.max_memory_reserved(device.place)
    total = module.mem_get_info(device.place)[1]
    rows: dict[str, object] = {}
    notes: list[str] = []
    alone = 0.0
    for share in (1.05, 0.5):
        below: set[str] = set()
        for workers in (1, 2, 4, 8):
            device.let_go()
            module.set_per_process_memory_fraction(share * need / total, device.place)
            result = baked(recipe, output, name, workers)
            part = f"{share * need / 1e6:.0f} MB, {workers} workers"
            alone = result.seconds if workers == 1 else alone
            row: dict[str, object] = {"warm s": result.seconds, "GB/s": result.size / result.seconds / GB}
            below.add(digest(output))
            row["repeats"] = below == {right} if share > 1 else len(below) == 1
            rows[part] = row
            if result.left_to_cpu or share < 1:
                notes.append(f"{part}: {len(result.left_to_cpu)} tensors are the CPU's, and the header says so")
            if share > 1 and result.seconds > 1.3 * alone:
                notes.append(f"{part}: {result.seconds / alone:.2f} times the time of one worker")
        module.set_per_process_memory_fraction(1.0, device.place)
    output.unlink()
    return {"rows": rows, "notes": notes}


def child_compare(_: str, arguments: Sequence[str]) -> dict[str, object]:
    """Measure how far two bakes are apart."""
    import numpy as np
    import torch

    from lorabake.tensors.safetensors import read_header

    right, other = (read_header(Path(path)) for path in arguments)
    worst, different, count = 0, 0, 0
    widths = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for key, info in right.tensors.items():
        there = other.tensors[key]
        left, second = (
            np.fromfile(str(each.file), np.uint8, each.nbytes, offset=each.start) for each in (info, there)
        )
        if not len(left):
            continue
        count += info.nbytes * 8 // bits(info.dtype)
        if np.array_equal(left, second):
            continue
        whole = widths[bits(info.dtype) // 8]
        wide = torch.int32 if bits(info.dtype) < 32 else torch.int64
        steps = [torch.from_numpy(raw).view(whole).to(wide) for raw in (left, second)]
        if info.dtype[0] in "FB":  # a float's bits count from zero, on either side of it
            most = (1 << bits(info.dtype) - 1) - 1
            steps = [torch.where(step < 0, -(step & most), step) for step in steps]
        off = (steps[0] - steps[1]).abs()
        worst, different = max(worst, int(off.max())), different + int((off > 0).sum())
    return {"ulp": worst, "differ": different / max(count, 1)}


def bits(dtype: str) -> int:
    """Count the bits of a value."""
    from lorabake.tensors.dtypes import DTYPES

    return DTYPES[dtype].bits


CHILDREN = {
    "device": child_device,
    "machine": child_machine,
    "warm": child_warm,
    "stages": child_stages,
    "memory": child_memory,
    "compare": child_compare,
}


# -- the command line --------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, work through the jobs, print the table."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["--child"]:
        print(json.dumps(CHILDREN[given[1]](given[2], given[3:])))
        return
    names = list(dict.fromkeys(job.name for job in jobs()))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="for inputs and outputs; default: a temporary folder"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--only", nargs="+", choices=names, help="these alone, with the inputs that they need")
    parser.add_argument("--device", default="auto", help="default: the accelerator")
    parser.add_argument("--small", action="store_true", help="small inputs, to try this out")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    options = parser.parse_args(given)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing or sys.version_info < (3, 11):
        lacks = f"it lacks {', '.join(missing)}" if missing else "lorabake needs 3.11 or later"
        sys.exit(f"Python {sys.version.split()[0]}: {lacks}; set it up with pip install -c constraints.txt .")
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=options.work) as folder:
        inputs = Path(folder) / "inputs"
        inputs.mkdir()
        setting = Setting(inputs, Path(folder), options.device, options.small, deadline)
        try:
            found = setting.ask("device", limit=90)
        except FailedError as error:
            say(f"the device {options.device} cannot be used: {error}; nothing is measured")
            return
        if found["kind"] == "cpu" and options.device != "cpu":
            cause = "; ".join(found["said"]) or "torch has no accelerator"
            say(f"{cause}: nothing is measured (--device cpu measures the CPU)")
            return
        setting.device = found["place"]
        chosen = [job for job in jobs() if options.only is None or job.name in with_inputs(options.only)]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            work_through(setting, chosen)
        finally:
            say("\n".join(["", *table(setting)]))
            if options.json:
                figures = {"machine": setting.machine, "rows": setting.rows, "notes": setting.notes}
                options.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
