"""Measure `lorabake batch`: K outputs of one base, against K bakes and K copies; and 500 small recipes in one folder.

    python -m benchmarks.many --inputs DIR [--cases sd15 sdxl] [--variants sweep apart] [--rounds 3] [--json FILE]
    python -m benchmarks.many --inputs DIR --small [--recipes 500]

Whole processes on the CPU, with the inputs in the page cache. A round runs every single bake, every copy and every
batch once, one after the other, every other round backwards, and ratios are taken within a round. See
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import inputs
from benchmarks.measure import Cost, FailedError, environment, measure
from benchmarks.run import READ_SIZE, SIZE_SLACK, machine, split, spread

COUNTS = (1, 2, 4, 8)
LIMITS = {"sd15": 8, "sdxl": 4}
"""The most outputs of a case: eight of SDXL would take 56 GB."""

RANK = 32
STARTED = 20
"""Single processes that are run, where many more are estimated from them."""


@dataclass(frozen=True, slots=True)
class Setting:
    """All that stays the same during a run."""

    inputs: Path
    work: Path
    lorabake: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def env(self) -> dict[str, str]:
        """Compute on the CPU."""
        return {**environment(), "LORABAKE_DEVICE": "cpu"}


@dataclass(frozen=True, slots=True)
class Output:
    """One output: its name, and its LoRA with a strength."""

    name: str
    lora: Path
    strength: float


Row = dict[str, Cost]


def write_recipe(setting: Setting, folder: Path, base: Path, output: Output) -> Path:
    """Write a recipe of one output."""
    path = folder / f"{output.name}.yaml"
    target = setting.work / "out" / f"{output.name}.safetensors"
    loras = f"[{{path: {json.dumps(str(output.lora))}, strength: {output.strength:.4f}}}]"
    out = f"{{path: {json.dumps(str(target))}}}"
    path.write_text(f"version: 1\nbase: {json.dumps(str(base))}\nloras: {loras}\noutput: {out}\n", encoding="utf-8")
    return path


def outputs_of(setting: Setting, case: str, variant: str, count: int) -> list[Output]:
    """List the outputs of a variant: one LoRA at several strengths, or several LoRAs of one rank."""
    strengths = [round(0.2 + 0.1 * number, 2) for number in range(count)]
    if variant == "sweep":
        return [
            Output(f"o{n}", setting.inputs / f"{case}_r32a.safetensors", each) for n, each in enumerate(strengths)
        ]
    layout = inputs.read_layout(case)
    paths = []
    for number in range(count):
        lora = inputs.Lora(case, RANK, 16, seed=100 + number)
        path = setting.work / "loras" / f"{case}_{number}.safetensors"
        path.parent.mkdir(exist_ok=True)
        inputs.write(
            path, inputs.lora_tensors(lora, layout), inputs.lora_metadata(lora), inputs.lora_values(lora, layout)
        )
        paths.append(path)
    return [Output(f"o{n}", path, 0.8) for n, path in enumerate(paths)]


# -- what is run -------------------------------------------------------------------------------------------------


def clear(setting: Setting) -> None:
    """Remove all outputs."""
    shutil.rmtree(setting.work / "out", ignore_errors=True)
    (setting.work / "out").mkdir()


def check_outputs(setting: Setting, base: Path, count: int) -> None:
    """Raise FailedError unless there are so many outputs of the base's size."""
    sizes = [path.stat().st_size for path in (setting.work / "out").glob("*.safetensors")]
    if len(sizes) != count or any(abs(size - base.stat().st_size) > SIZE_SLACK for size in sizes):
        raise FailedError(f"{len(sizes)} outputs of {sizes} bytes, {count} of {base.stat().st_size} are due")


def run_batch(setting: Setting, recipes: Path, base: Path, count: int) -> Cost:
    """Bake a folder of recipes in one process; check and remove the outputs."""
    clear(setting)
    cost = measure([*setting.lorabake, "batch", str(recipes), "--quiet", *setting.options], setting.env)
    check_outputs(setting, base, count)
    clear(setting)
    return cost


def run_single(setting: Setting, recipe: Path, base: Path) -> Cost:
    """Bake one recipe in a process of its own; the output stays, as those of a batch do."""
    cost = measure([*setting.lorabake, "bake", str(recipe), "--quiet", *setting.options], setting.env)
    size = (setting.work / "out" / f"{recipe.stem}.safetensors").stat().st_size
    if abs(size - base.stat().st_size) > SIZE_SLACK:
        raise FailedError(f"an output of {size} bytes, {base.stat().st_size} are due")
    return cost


def run_round(setting: Setting, base: Path, folders: dict[int, Path], number: int) -> Row:
    """Run everything once; K copies and K bakes are the first K of those that the largest K needs.

    Outputs stay until the last of them is made: a system lets a few gigabytes wait for the disk, and no more.
    """
    singles = sorted(folders[max(folders)].glob("*.yaml"))
    costs: Row = {}

    def bakes() -> None:
        clear(setting)
        for n, recipe in enumerate(singles):
            costs[f"bake {n}"] = run_single(setting, recipe, base)

    def copies() -> None:
        clear(setting)
        for n in range(len(singles)):
            costs[f"cp {n}"] = measure(["cp", str(base), str(setting.work / "out" / f"copy{n}.safetensors")])

    def batches() -> None:
        for count, folder in folders.items():
            costs[f"batch {count}"] = run_batch(setting, folder, base, count)

    parts = [bakes, copies, batches]
    for part in parts if number % 2 == 0 else reversed(parts):
        part()
    clear(setting)
    return costs


def warm_up(paths: Iterable[Path]) -> None:
    """Read files, so that they are in the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(READ_SIZE):
                pass


# -- bytes of the base ---------------------------------------------------------------------------------------------


def count_reads(figures: Path, words: Sequence[str]) -> None:
    """Run lorabake in this process, and write how many bytes it read or copied of each file."""
    counts: Counter[str] = Counter()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(fd: int, *rest: Any) -> Any:
            result = call(fd, *rest)
            name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
            counts[name] += result if isinstance(result, int) else len(result)
            return result

        return counting

    for name in ("preadv", "pread", "copy_file_range"):
        setattr(os, name, counted(getattr(os, name)))
    from lorabake.cli import main as run  # after the calls are counted

    try:
        run([*words])
    finally:
        figures.write_text(json.dumps(counts), encoding="utf-8")


def forget(path: Path) -> None:
    """Drop a file from the page cache, but for what another process uses."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_of_base(setting: Setting, recipes: Path, base: Path, count: int) -> tuple[int, int]:
    """Count what a batch reads and copies of the base, by counting in the system calls, in a run of its own.

    The base is not in the page cache before. Return also what the run read from the disk.
    """
    clear(setting)
    figures = setting.work / "counts.json"
    words = ["batch", str(recipes), "--quiet", *setting.options]
    forget(base)
    cost = measure([sys.executable, "-m", "benchmarks.many", "--count", str(figures), *words], setting.env)
    check_outputs(setting, base, count)
    clear(setting)
    return int(json.loads(figures.read_text(encoding="utf-8")).get(base.name, 0)), cost.fetched


# -- K outputs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Series:
    """The rounds of one case and variant, and the bytes of the base that a batch of each K reads.

    `from_disk` is what it reads from the disk, with the base not in the page cache before.
    """

    size: int
    rounds: list[Row]
    of_base: dict[int, int]
    from_disk: dict[int, int]

    def ratios(self, count: int, other: str) -> list[float]:
        """Divide the batch's seconds by those of `count` bakes or copies, in each round."""
        return [
            row[f"batch {count}"].wall / sum(row[f"{other} {n}"].wall for n in range(count)) for row in self.rounds
        ]


def run_series(setting: Setting, case: str, variant: str, counts: Sequence[int], rounds: int) -> Series:
    """Measure one case and variant."""
    base = setting.inputs / f"{case}.safetensors"
    made = outputs_of(setting, case, variant, max(counts))
    folders: dict[int, Path] = {}
    for count in counts:
        folders[count] = setting.work / f"{case}-{variant}-{count}"
        folders[count].mkdir(exist_ok=True)
        for output in made[:count]:
            write_recipe(setting, folders[count], base, output)
    warm_up({base, *(output.lora for output in made)})
    counted = {count: bytes_of_base(setting, folder, base, count) for count, folder in folders.items()}
    of_base, from_disk = ({count: each[which] for count, each in counted.items()} for which in (0, 1))
    warm_up([base])
    series = Series(base.stat().st_size, [], of_base, from_disk)
    for number in range(rounds):
        series.rounds.append(run_round(setting, base, folders, number))
        told = ", ".join(f"{name} {cost.wall:.1f}" for name, cost in series.rounds[-1].items())
        print(f"{case}, {variant}, round {number + 1}: {told}", file=sys.stderr, flush=True)
    return series


def table(results: dict[tuple[str, str], Series]) -> list[str]:
    """Write one Markdown row for each case, variant and K."""
    head = ["case", "LoRAs", "K", "batch s", "/ K bakes", "/ (K × `cp`)", "CPU s", "CPU / K bakes", "MiB"]
    head += ["base read and copied, in bases", "cold, from the disk, in bases", "all bytes read, GB"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for (case, variant), series in results.items():
        for count in series.of_base:
            own = [row[f"batch {count}"] for row in series.rounds]
            cpu = [
                row[f"batch {count}"].cpu / sum(row[f"bake {n}"].cpu for n in range(count)) for row in series.rounds
            ]
            cells = [case, {"sweep": "one, K strengths", "apart": "K different"}[variant], str(count)]
            cells += [spread([cost.wall for cost in own]), spread(series.ratios(count, "bake"), ".2f")]
            cells += [spread(series.ratios(count, "cp"), ".2f"), spread([cost.cpu for cost in own])]
            cells += [spread(cpu, ".2f"), f"{max(cost.anonymous for cost in own):.0f}"]
            cells += [f"{each[count] / series.size:.2f}" for each in (series.of_base, series.from_disk)]
            cells += [f"{statistics.median(cost.read for cost in own) / 1e9:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


# -- many small recipes ------------------------------------------------------------------------------------------


def write_small(folder: Path) -> tuple[Path, list[Path]]:
    """Write a base of some megabytes, a few blocks of SD1.5 half as wide, with four LoRAs."""

    def narrow(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(size // 2 if size % 320 == 0 else size for size in shape)

    whole = inputs.read_layout("sd15", small=True)
    layout = inputs.Layout(
        {key: inputs.Tensor(each.dtype, narrow(each.shape)) for key, each in whole.tensors.items()},
        {name: inputs.Module(each.kind, narrow(each.shape)) for name, each in whole.modules.items()},
    )
    folder.mkdir(exist_ok=True)
    base = folder / "base.safetensors"
    inputs.write(base, layout.tensors, {"format": "pt"}, inputs.base_values(1, layout.tensors))
    loras = []
    for number in range(4):
        lora = inputs.Lora("sd15", 8, 4.0, seed=50 + number)
        loras.append(folder / f"style{number}.safetensors")
        values = inputs.lora_values(lora, layout)
        inputs.write(loras[-1], inputs.lora_tensors(lora, layout), inputs.lora_metadata(lora), values)
    return base, loras


def run_some(setting: Setting, recipes: Sequence[Path], base: Path) -> Cost:
    """Bake recipes, each in a process of its own, and remove the outputs."""
    clear(setting)
    cost = sum((run_single(setting, recipe, base) for recipe in recipes), Cost(0, 0, 0))
    clear(setting)
    return cost


def run_small(setting: Setting, count: int, rounds: int) -> list[tuple[Cost, Cost]]:
    """Bake many small recipes in one process, and some of them each in its own; return both costs of each round."""
    base, loras = write_small(setting.work / "loras")
    folder = setting.work / "recipes"
    folder.mkdir(exist_ok=True)
    for number in range(count):
        output = Output(f"o{number:03}", loras[number % len(loras)], 0.1 + 0.005 * (number // len(loras)))
        write_recipe(setting, folder, base, output)
    recipes = sorted(folder.glob("*.yaml"))[:: max(1, count // STARTED)][:STARTED]
    found = []
    for number in range(rounds):
        parts = [
            lambda: run_batch(setting, folder, base, count),
            lambda: run_some(setting, recipes, base),
        ]
        costs = [part() for part in (parts if number % 2 == 0 else parts[::-1])]
        own, others = costs if number % 2 == 0 else costs[::-1]
        found.append((own, others))
        print(f"round {number + 1}: batch {own.wall:.1f}, {len(recipes)} bakes {others.wall:.1f}", file=sys.stderr)
    return found


def small_table(found: Sequence[tuple[Cost, Cost]], count: int) -> list[str]:
    """Write what many small recipes took, and what as many processes would have."""
    scale = count / min(count, STARTED)
    rows = [
        ("one `lorabake batch`", [own.wall for own, _ in found], [own.cpu for own, _ in found]),
        (
            f"{count} × `lorabake bake`, estimated from {min(count, STARTED)}",
            [other.wall * scale for _, other in found],
            [other.cpu * scale for _, other in found],
        ),
    ]
    lines = ["| what | s | CPU s | s an output | peak MiB |", "|---|---|---|---|---|"]
    peaks = [max(pair[which].anonymous for pair in found) for which in (0, 1)]
    for (name, walls, cpus), peak in zip(rows, peaks, strict=True):
        each = statistics.median(walls) / count
        lines.append(f"| {name} | {spread(walls)} | {spread(cpus)} | {each:.3f} | {peak:.0f} |")
    ratios = [other.wall * scale / own.wall for own, other in found]
    lines += ["", f"One process is {spread(ratios)} times as fast."]
    return lines


# -- the command -------------------------------------------------------------------------------------------------


def counts_of(setting: Setting, case: str, asked: Sequence[int]) -> list[int]:
    """Leave out what the disk has no room for."""
    base = setting.inputs / f"{case}.safetensors"
    if not base.exists():
        sys.exit(f"missing: {base.name}; make it with python -m benchmarks.inputs DIR")
    room = int(shutil.disk_usage(setting.work).free * 0.9 / base.stat().st_size)
    counts = [count for count in asked if count <= min(room, LIMITS[case])]
    for count in sorted({*asked} - {*counts}):
        print(f"{case}: K = {count} is left out: there is room for {room}, and at most {LIMITS[case]} are asked for")
    return counts


def as_json(results: dict[tuple[str, str], Series]) -> str:
    """Write every single measurement."""
    series = {
        f"{case} {variant}": {
            "base_read": each.of_base,
            "from_disk": each.from_disk,
            "rounds": [{name: cost.as_json() for name, cost in row.items()} for row in each.rounds],
        }
        for (case, variant), each in results.items()
    }
    return json.dumps({"machine": machine(), "series": series}, indent=1) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run, print the table."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["--count"]:  # a process of its own, which counts what it reads
        count_reads(Path(words[1]), words[2:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=Path, required=True, metavar="DIR", help="made by benchmarks.inputs")
    parser.add_argument("--cases", nargs="+", choices=tuple(LIMITS), default=list(LIMITS))
    parser.add_argument("--variants", nargs="+", choices=("sweep", "apart"), default=["sweep", "apart"])
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS), metavar="K")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="many small recipes instead")
    parser.add_argument("--recipes", type=int, default=500, help="how many of them")
    parser.add_argument("--fsync", action="store_true", help="wait for the disk, as users do")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for outputs; default: beside the inputs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement")
    parser.add_argument("--lorabake", type=split, default=(sys.executable, "-m", "lorabake"), metavar="CMD")
    options = parser.parse_args(words)
    inputs_there = options.inputs.resolve()
    fsync = () if options.fsync else ("--no-fsync",)
    with tempfile.TemporaryDirectory(prefix="run-", dir=options.work or inputs_there) as work:
        setting = Setting(inputs_there, Path(work), options.lorabake, fsync)
        try:
            if options.small:
                print("\n".join(small_table(run_small(setting, options.recipes, options.rounds), options.recipes)))
                return
            results = {
                (case, variant): run_series(
                    setting, case, variant, counts_of(setting, case, options.counts), options.rounds
                )
                for case in options.cases
                for variant in options.variants
            }
        except FailedError as error:
            sys.exit(str(error))
    print("\n".join(table(results)))
    if options.json:
        options.json.write_text(as_json(results), encoding="utf-8")


if __name__ == "__main__":
    main()
