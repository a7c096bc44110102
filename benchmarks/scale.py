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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import rates as measured
from benchmarks.measure import FailedError, environment
from benchmarks.measure import measure as run
from benchmarks.rates import Rates
from benchmarks.run import machine, split, write_recipe
from benchmarks.simulation import NEVER, Cluster, Outcome, Unit, simulate
from benchmarks.units import LARGE, SDXL, Batch, Load, Work, opening_of, planning_all, units_of

MIB = 1 << 20
PARTS = tuple(size * MIB for size in (32, 64, 128, 256, 512, 1024))
"""Sizes of parts that are compared, in bytes of the base."""

MOST_TOGETHER = 64
"""Most outputs of a pass, as lorabake has it."""

DEFAULT_PART = 256 * MIB


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

    def units(self, rates: Rates) -> list[Unit]:
        """List its units."""
        return [*units_of(self.batch, rates, landing=self.landing)]

    def run(self, rates: Rates, **others: object) -> Outcome:
        """Simulate it, with other settings of the cluster."""
        settings = {"opening": opening_of(self.batch, rates), "beyond": rates.beyond, **others}
        return simulate(replace(self.cluster, **settings), self.units(rates))  # type: ignore[arg-type]


NODE = Cluster(workers=4, cores=32, nic=3.1e9, storage_read=20e9, storage_write=10e9, dispatch=0.005, repair=300.0)
"""Assumed: 32 cores, 4 processes, 25 Gbit/s a node; storage that reads 20 and writes 10 GB/s for all."""

THREADS = 8
"""Assumed: threads that compute in each process."""

SLOW = {"slow": 0.05, "slowness": 2.0}
"""Assumed: one node in twenty is half as fast."""


def scenarios(part: float) -> list[Scenario]:
    """List what is simulated, for one size of parts."""
    driven, dealt = replace(NODE, nodes=64), replace(NODE, nodes=64, dealing="shards")
    many = Batch(SDXL, 2000, MOST_TOGETHER, part, "shards", dealt.nodes * dealt.workers, THREADS)
    together = min(MOST_TOGETHER, -(-many.outputs // many.processes))
    parted, whole = replace(many, together=together_for(many)), replace(many, whole=True, together=together)
    large = replace(many, load=LARGE, outputs=1, together=1, processes=many.processes // 2)
    return [
        Scenario("2,000 recipes, 64 nodes, shards", dealt, parted),
        Scenario("2,000 recipes, 64 nodes, shards", dealt, whole),
        Scenario("2,000 recipes, 64 nodes, a driver", driven, replace(many, way="pool")),
        Scenario("2,000 recipes, 64 nodes, a driver", driven, replace(whole, way="pool")),
        Scenario("600 GB, 32 nodes, shards", replace(dealt, nodes=32), large),
        Scenario("600 GB, 32 nodes, a driver", replace(driven, nodes=32), replace(large, way="pool")),
    ]


def together_for(batch: Batch) -> int:
    """Return how many outputs shards bake in one pass, as lorabake has it."""
    from lorabake.batch.groups import _best_cut

    return _best_cut(batch.outputs, batch.parts, batch.processes)[0]


def paper_table(rates: Rates, parts: Sequence[float]) -> list[str]:
    """Simulate all scenarios with parts of these sizes; one Markdown row each."""
    head = ["what", "part MiB", "units", "planned s", "baked s", "complete s", "least s", "busiest", "slow nodes"]
    head += ["lost node", "moved again"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    rows: dict[str, None] = {}
    for number in range(len(scenarios(DEFAULT_PART))):
        for part in parts:
            one = scenarios(part)[number]
            units, plain = one.units(rates), one.run(rates)
            baking = [unit for unit in units if unit.write]
            baked = max(plain.done_at[unit.group] for unit in baking)
            slow, lost = one.run(rates, **SLOW), one.run(rates, lost=(baked / 2,))
            cells = [one.title, "whole passes" if one.batch.whole else f"{part / MIB:.0f}", f"{len(baking):,}"]
            cells += [f"{planning_all(one.batch, rates):,.0f}", f"{baked:,.0f}", f"{plain.seconds:,.0f}"]
            cells += [f"{least_seconds(one.cluster, units):,.0f}"]
            cells += [f"{plain.bottleneck} {plain.busy[plain.bottleneck]:.0%}"]
            cells += [f"{slow.seconds - plain.seconds:+,.0f} s", f"{lost.seconds - plain.seconds:+,.0f} s"]
            cells += [f"{lost.wasted / 1e9:.1f} GB"]
            rows[f"| {' | '.join(cells)} |"] = None
    return [*lines, *rows]


def assumptions() -> list[str]:
    """Say what is assumed of the clusters."""
    node, gbit = NODE, NODE.nic * 8 / 1e9
    return [
        f"Assumed: {node.cores} cores a node, {node.workers} processes of {THREADS} threads, {gbit:.0f} Gbit/s;",
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
    from lorabake.batch.parts import parts_of

    plan = make_plan(load_recipe(recipe))
    work = work_of(plan)
    size, tensors = plan.size, sum(len(file.targets) for file in plan.files)
    cut = tuple(
        float(sum(target.nbytes for step in part.portion[0].steps for target in step.targets))
        for part in parts_of([plan])
    )
    return Load(recipe.stem, size, work.written, work.read - work.written, work.flops, tensors, cut=cut)


def here(jobs: int, cores: int, rates: Rates, behind: float = NEVER) -> Cluster:
    """Describe this machine with so many processes; in memory, `behind` bytes may wait for the disk."""
    return Cluster(
        workers=jobs,
        cores=cores,
        beyond=rates.beyond,
        dispatch=rates.hand_out,
        storage_write=rates.durable,
        behind=behind,
    )


def predicted(batch: Batch, jobs: int, cores: int, rates: Rates, behind: float = NEVER) -> Outcome:
    """Simulate a batch on this machine."""
    batch = replace(batch, way="command" if jobs == 1 else "pool", processes=jobs, threads=max(1, cores // jobs))
    cluster = replace(here(jobs, cores, rates, behind), opening=opening_of(batch, rates))
    return simulate(cluster, [*units_of(batch, rates, landing=rates.noted)])


def unwritten_most(folder: Path) -> float:
    """Return how many bytes in a folder may wait for the disk before the system makes writers wait, too.

    That is halfway between the shares of memory at which it begins to write and at which nobody may go on. In a
    file system that lies in memory nothing waits for a disk.
    """
    mounts = (line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines())
    kinds = {Path(point): kind for point, kind in mounts}
    if next(kinds[each] for each in (folder, *folder.parents) if each in kinds) in ("tmpfs", "ramfs"):
        return NEVER
    given = (line.split()[:2] for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    free = 1024 * {name: int(count) for name, count in given}["MemAvailable:"]
    shares = (int(Path(f"/proc/sys/vm/dirty_{name}ratio").read_text()) for name in ("background_", ""))
    return sum(shares) / 2 / 100 * free


def busy_seconds() -> float:
    """Return the core seconds that this machine has worked since it began."""
    counts = [*map(int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:])]
    return (sum(counts[:3]) + sum(counts[5:7])) / os.sysconf("SC_CLK_TCK")


def check(options: argparse.Namespace, rates: Rates) -> list[str]:
    """Run a batch here with several numbers of processes, and print what was predicted beside it.

    The quickest run of each counts: what others do on the machine only adds. `others' cores` are those they had then.
    """
    cores = len(os.sched_getaffinity(0))
    head = ["outputs", "jobs", "predicted s", "measured s", "measured / predicted", "predicted CPU s"]
    head += ["measured CPU s", "others' cores"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    inputs = options.inputs.resolve()
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.work or inputs) as work:
        folder = Path(work, "in")
        folder.mkdir()
        base, lora = inputs / f"{options.base}.safetensors", inputs / f"{options.base}_r32a.safetensors"
        for number in range(options.outputs):
            path = write_recipe(folder / f"o{number}.yaml", base, [(lora, 0.3 + number / 10)], hashed=True)
            path.write_text(path.read_text().replace("path: out.", f"path: ../out/{path.stem}."))
        load = load_of(next(folder.glob("*.yaml")))
        batch = Batch(load, options.outputs, MOST_TOGETHER, DEFAULT_PART, "command")
        behind = unwritten_most(Path(work).resolve())
        found: dict[int, list[tuple[float, float, float]]] = {jobs: [] for jobs in options.jobs}
        for _ in range(options.rounds):
            for jobs in options.jobs:
                more = ["--jobs", str(jobs)] if jobs > 1 else []
                command = [*options.lorabake, "batch", str(folder), "--quiet", "--no-fsync", *more]
                before = busy_seconds()
                cost = run(command, {**environment(), "LORABAKE_DEVICE": "cpu"})
                others = max(0.0, busy_seconds() - before - cost.cpu) / cost.wall
                shutil.rmtree(Path(work, "out"))
                found[jobs].append((cost.wall, cost.cpu, others))
        for jobs, costs in found.items():
            outcome = predicted(batch, jobs, cores, rates, behind)
            wall, cpu, others = min(costs)
            cells = [f"{options.outputs} × {options.base}", f"{jobs}", f"{outcome.seconds:.1f}"]
            cells += [f"{wall:.1f} (–{max(costs)[0]:.1f})", f"{wall / outcome.seconds:.2f}"]
            cells += [f"{outcome.cpu:.1f}", f"{cpu:.1f}", f"{others:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
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
        found = measured.measure(base, recipe, Path(work))
        load = load_of(recipe)
        command = [*options.lorabake, "bake", str(recipe), "--quiet", "--no-fsync", "--overwrite", "--force"]
        costs = [run(command, {**environment(), "LORABAKE_DEVICE": "cpu"}) for _ in range(options.rounds)]
    found = fitted(found, load, statistics.median(cost.cpu for cost in costs), min(cost.wall for cost in costs))
    return json.dumps({"machine": machine(), "rates": found.as_json()}, indent=1) + "\n"


def fitted(rates: Rates, load: Load, cpu: float, wall: float) -> Rates:
    """Take from one bake's core seconds and seconds what the rates of single things cannot tell."""
    one = Work(load, 1, rates)
    alone = rates.command + one.planning + one.reserving
    own = cpu - alone - (rates.start - rates.command) - one.digesting
    overhead = max(1.0, own / (one.computing + one.copying + one.hashing))
    more = len(os.sched_getaffinity(0)) - 1
    beyond = ((cpu - alone) / (wall - alone) - 1) / more if more else 1.0
    return replace(rates, overhead=overhead, beyond=min(1.0, max(0.0, beyond)))


if __name__ == "__main__":
    main()
