"""Say how a batch scales: measure one machine, simulate many, and compare the simulation with real runs here.

    python -m benchmarks.scale --inputs DIR --calibrate rates.json   # measure this machine's rates
    python -m benchmarks.scale --inputs DIR --rates rates.json --check [--jobs 1 2 4]
    python -m benchmarks.scale --rates rates.json                    # the clusters on paper

Rates of cores are measured. Everything about a cluster is assumed, and printed: nodes, storage, network, losses. The
clusters are simulated (`benchmarks.simulation`), never run. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import rates as measured
from benchmarks.measure import FailedError, environment
from benchmarks.measure import measure as run
from benchmarks.rates import Rates
from benchmarks.run import machine, split, write_recipe
from benchmarks.simulation import Cluster, Outcome, Unit, simulate

MIB = 1 << 20
PARTS = tuple(size * MIB for size in (32, 64, 128, 256, 512, 1024))
"""Sizes of parts that are compared, in bytes of the base."""

MOST_TOGETHER = 64
"""Most outputs of a pass, as lorabake has it."""

DEFAULT_PART = 256 * MIB


@dataclass(frozen=True, slots=True)
class Load:
    """Count the work of one output: bytes of its base, how many are computed, its LoRAs, and the arithmetic."""

    name: str
    base: float
    touched: float
    loras: float
    flops: float
    tensors: int

    @property
    def converted(self) -> float:
        """Count the values that change between float16 and float32: to and fro, and those of the LoRAs."""
        return (2 * self.touched + self.loras) / 2


SDXL = Load("SDXL, one LoRA of rank 32", 6.94e9, 5.84e9, 0.228e9, 187e9, 2515)
LARGE = Load("a model of 600 GB, one LoRA of rank 32", 600e9, 500e9, 6e9, 16e12, 2000)
"""As `benchmarks.floor` counts SDXL; the large one has the same arithmetic for each byte, in larger tensors."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Say what is baked, and how: so many outputs of a load, in passes of `together`, cut into parts.

    With `ahead`, a pass does not wait for the one before to be complete. With `spread`, workers hash complete
    outputs, each on one core; otherwise the driver's machine does. Without `hashed` nobody does.
    """

    load: Load
    outputs: int
    together: int
    part: float
    ahead: bool = False
    spread: bool = False
    hashed: bool = True

    @property
    def parts(self) -> int:
        """Count the parts of a pass."""
        return max(1, round(self.load.base / self.part))

    @property
    def passes(self) -> list[int]:
        """List how many outputs each pass has."""
        whole, rest = divmod(self.outputs, self.together)
        return [self.together] * whole + [rest] * (rest > 0)


def work_of_output(load: Load, rates: Rates) -> float:
    """Add up the core seconds of an output whose base has been read: arithmetic and writing, without digests."""
    return (
        load.loras / rates.read
        + load.flops / rates.flops
        + load.converted / rates.convert
        + load.touched / rates.write
        + (load.base - load.touched) / rates.copy
    )


def units_of(batch: Batch, rates: Rates, *, landing: float) -> Iterator[Unit]:
    """List the units of a batch; `landing` are the seconds in which one receipt gets to where it is safe.

    Passes have even numbers, and the completion of each the odd one behind it.
    """
    load, parts = batch.load, batch.parts
    size = load.base
    for number, outputs in enumerate(batch.passes):
        digests = size / rates.read + size / rates.hash
        each = load.touched / rates.read + outputs * (work_of_output(load, rates) + digests)
        told = outputs * rates.told * parts / 2  # what is finished is read before each part
        untouched = size - load.touched
        group, before = 2 * number, 2 * number - 1
        joining = outputs * rates.plan * load.tensors / 1000
        for _ in range(parts):
            yield Unit(
                read=(load.touched + outputs * (load.loras + untouched)) / parts,
                write=outputs * size / parts,
                cpu=rates.overhead * each / parts + told,
                landing=outputs * landing,
                group=group,
                joining=joining,
                after=None if batch.ahead or not number else before,
            )
        for _ in range(outputs):
            hashing = rates.overhead * digests if batch.hashed else 0.0
            yield Unit(
                read=size if batch.hashed else 0.0,
                cpu=hashing + parts * rates.told,
                landing=landing,
                group=group + 1,
                after=group,
                driver=not batch.spread,
                serial=True,
            )


def least_seconds(cluster: Cluster, units: Sequence[Unit]) -> float:
    """Return the seconds that the busiest of storage, network cards and cores takes, were the work shared evenly."""
    read, write = sum(unit.read for unit in units), sum(unit.write for unit in units)
    cpu = sum(unit.cpu for unit in units)
    return max(
        read / cluster.storage_read,
        write / cluster.storage_write,
        (read + write) / (cluster.nic * cluster.nodes),
        cpu / (cluster.cores * cluster.nodes),
    )


# -- on paper ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scenario:
    """Put a batch on a cluster; `landing` as in `units_of`."""

    title: str
    cluster: Cluster
    batch: Batch
    landing: float = 0.02

    def run(self, rates: Rates, **others: object) -> Outcome:
        """Simulate it, with other settings of the cluster."""
        started = replace(self.cluster, opening=rates.start, **others)  # type: ignore[arg-type]
        return simulate(started, list(units_of(self.batch, rates, landing=self.landing)))


NODE = Cluster(
    workers=4, threads=8, cores=32, nic=3.1e9, storage_read=20e9, storage_write=10e9, dispatch=0.005, repair=300.0
)
"""Assumed: 32 cores, 4 processes of 8 threads, 25 Gbit/s a node; storage that reads 20 and writes 10 GB/s for all."""

SLOW = {"slow": 0.05, "slowness": 2.0}
"""Assumed: one node in twenty is half as fast."""


def scenarios(part: float) -> list[Scenario]:
    """List what is simulated, for one size of parts."""
    catalogue = Batch(SDXL, 2000, MOST_TOGETHER, part)
    large = Batch(LARGE, 1, 1, part)
    driven, dealt = replace(NODE, nodes=64), replace(NODE, nodes=64, dealing="shards")
    return [
        Scenario("2,000 recipes, 64 nodes, shards", dealt, replace(catalogue, ahead=True, spread=True)),
        Scenario("2,000 recipes, 64 nodes, a driver", driven, catalogue),
        Scenario("600 GB, 32 nodes, shards", replace(dealt, nodes=32), replace(large, ahead=True, spread=True)),
        Scenario("600 GB, 32 nodes, a driver", replace(driven, nodes=32), large),
    ]


def paper_table(rates: Rates, parts: Sequence[float]) -> list[str]:
    """Simulate all scenarios with parts of these sizes; one Markdown row each."""
    head = ["what", "part MiB", "parts a pass", "baked s", "complete s", "least s", "busiest", "slow nodes"]
    head += ["lost node", "moved again"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for number in range(len(scenarios(DEFAULT_PART))):
        for part in parts:
            one = scenarios(part)[number]
            plain = one.run(rates)
            baked = max(at for group, at in plain.done_at.items() if group % 2 == 0)
            slow, lost = one.run(rates, **SLOW), one.run(rates, lost=(baked / 2,))
            least = least_seconds(one.cluster, list(units_of(one.batch, rates, landing=one.landing)))
            cells = [one.title, f"{part / MIB:.0f}", str(one.batch.parts), f"{baked:,.0f}", f"{plain.seconds:,.0f}"]
            cells += [f"{least:,.0f}", f"{plain.bottleneck} {plain.busy[plain.bottleneck]:.0%}"]
            cells += [f"{slow.seconds - plain.seconds:+,.0f} s", f"{lost.seconds - plain.seconds:+,.0f} s"]
            cells += [f"{lost.wasted / 1e9:.1f} GB"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def assumptions() -> list[str]:
    """Say what is assumed of the clusters."""
    node, gbit = NODE, NODE.nic * 8 / 1e9
    return [
        f"Assumed: {node.cores} cores a node, {node.workers} processes of {node.threads} threads, {gbit:.0f} Gbit/s;",
        f"storage for all that reads {node.storage_read / 1e9:.0f} and writes {node.storage_write / 1e9:.0f} GB/s;",
        f"a receipt lands in 20 ms, a driver hands out a unit in {node.dispatch * 1000:.0f} ms; a node is lost",
        f"halfway, which is noticed after {node.notice:.0f} s, and is back after {node.repair:.0f} s; where some are",
        "slow, one in twenty has half the speed. Measured: what a core reads, copies, computes and hashes, and what",
        "starting and planning take. Simulated: all that the table says.",
    ]


# -- against this machine ------------------------------------------------------------------------------------------


def load_of(recipe: Path) -> Load:
    """Count the work of a recipe of plain LoRAs."""
    from benchmarks.floor import work_of
    from lorabake import load_recipe
    from lorabake import plan as make_plan

    plan = make_plan(load_recipe(recipe))
    work = work_of(plan)
    size, tensors = plan.size, sum(len(file.targets) for file in plan.files)
    return Load(recipe.stem, size, work.written, work.read - work.written, work.flops, tensors)


def here(jobs: int, cores: int, rates: Rates) -> Cluster:
    """Describe this machine with so many processes: its page cache has no bandwidth but that of its cores."""
    return Cluster(
        1, workers=jobs, threads=max(1, cores // jobs), cores=cores, opening=rates.start, dispatch=rates.hand_out
    )


def predicted(batch: Batch, jobs: int, cores: int, rates: Rates) -> Outcome:
    """Simulate a batch on this machine; one process hashes on the way, beside its workers."""
    batch = replace(batch, spread=jobs == 1)
    return simulate(here(jobs, cores, rates), list(units_of(batch, rates, landing=rates.noted)))


def check(options: argparse.Namespace, rates: Rates) -> list[str]:
    """Run a batch here with several numbers of processes, and print what was predicted beside it."""
    cores = len(os.sched_getaffinity(0))
    lines = [
        "| outputs | jobs | predicted s | measured s | measured / predicted | predicted CPU s | measured CPU s |"
    ]
    lines.append(f"|{'---|' * 7}")
    inputs = options.inputs.resolve()
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.work or inputs) as work:
        folder = Path(work, "in")
        folder.mkdir()
        base, lora = inputs / f"{options.base}.safetensors", inputs / f"{options.base}_r32a.safetensors"
        for number in range(options.outputs):
            path = write_recipe(folder / f"o{number}.yaml", base, [(lora, 0.3 + number / 10)], hashed=True)
            path.write_text(path.read_text().replace("path: out.", f"path: ../out/{path.stem}."))
        load = load_of(next(folder.glob("*.yaml")))
        batch = Batch(load, options.outputs, MOST_TOGETHER, DEFAULT_PART)
        found: dict[int, list[tuple[float, float]]] = {jobs: [] for jobs in options.jobs}
        for _ in range(options.rounds):
            for jobs in options.jobs:
                more = ["--jobs", str(jobs)] if jobs > 1 else []
                command = [*options.lorabake, "batch", str(folder), "--quiet", "--no-fsync", *more]
                cost = run(command, {**environment(), "LORABAKE_DEVICE": "cpu"})
                shutil.rmtree(Path(work, "out"))
                found[jobs].append((cost.wall, cost.cpu))
        for jobs, costs in found.items():
            outcome = predicted(batch, jobs, cores, rates)
            wall, cpu = (statistics.median(each) for each in zip(*costs, strict=True))
            due = sum(unit.cpu for unit in units_of(batch, rates, landing=0)) + outcome.joining + jobs * rates.start
            lines.append(
                f"| {options.outputs} × {options.base} | {jobs} | {outcome.seconds:.1f} | {wall:.1f} "
                f"| {wall / outcome.seconds:.2f} | {due:.1f} | {cpu:.1f} |"
            )
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line; calibrate, check, or print the clusters on paper."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=Path, metavar="DIR", help="made by benchmarks.inputs")
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="measure this machine, write its rates")
    parser.add_argument("--rates", type=Path, metavar="FILE", help="rates that were measured before")
    parser.add_argument("--check", action="store_true", help="compare with real runs here")
    parser.add_argument("--jobs", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--outputs", type=int, default=4)
    parser.add_argument("--base", default="sd15", choices=("sd15", "sdxl"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, metavar="DIR", help="for outputs; default: beside the inputs")
    parser.add_argument("--lorabake", type=split, default=(sys.executable, "-m", "lorabake"), metavar="CMD")
    options = parser.parse_args(arguments)
    if options.inputs is None and (options.calibrate or options.check):
        parser.error("--calibrate and --check need --inputs")
    if options.calibrate is not None:
        options.calibrate.write_text(calibrated(options), encoding="utf-8")
        print(options.calibrate.read_text(encoding="utf-8"), end="")
        return
    if options.rates is None:
        parser.error("give --rates, which --calibrate writes")
    rates = Rates.load(options.rates)
    try:
        print("\n".join(check(options, rates) if options.check else [*assumptions(), "", *paper_table(rates, PARTS)]))
    except FailedError as error:
        sys.exit(str(error))


def calibrated(options: argparse.Namespace) -> str:
    """Measure this machine, and write what it is and its rates."""
    inputs = options.inputs.resolve()
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.work or inputs) as work:
        base, lora = inputs / f"{options.base}.safetensors", inputs / f"{options.base}_r32a.safetensors"
        recipe = write_recipe(Path(work, "recipe.yaml"), base, [(lora, 0.8)], hashed=True)
        found = measured.measure(recipe, Path(work))
        load = load_of(recipe)
        command = [*options.lorabake, "bake", str(recipe), "--quiet", "--no-fsync", "--overwrite", "--force"]
        costs = [run(command, {**environment(), "LORABAKE_DEVICE": "cpu"}).cpu for _ in range(options.rounds)]
    due = load.touched / found.read + work_of_output(load, found) + load.base * (1 / found.read + 1 / found.hash)
    own = statistics.median(costs) - found.start - found.plan * load.tensors / 1000
    found = replace(found, overhead=max(1.0, own / due))
    return json.dumps({"machine": machine(), "rates": found.as_json()}, indent=1) + "\n"


if __name__ == "__main__":
    main()
