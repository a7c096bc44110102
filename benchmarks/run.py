"""Time lorabake against the machine's floor, against copying the file, and against diffusers, in interleaved pairs.

    python -m benchmarks.run --inputs DIR [--mode plain|hash|fsync] [--peer] [--pairs 5] [--json FILE]

Whole processes, imports included, with the inputs in the page cache, computed on the CPU. A disk's and a shared
machine's speed drift by more than what is to be shown, so each pair runs everything once, one after the other, and
the ratios are taken within a pair. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

from benchmarks.measure import Cost, FailedError, Floor, environment, measure

READ_SIZE = 1 << 24
# The bake may add or drop a few header bytes, and nothing else.
SIZE_SLACK = 1 << 20
PEER_GOAL = 4.0
# How much of the machine's speed a bake is to reach: its floor, over its time.
FLOOR_GOAL = 0.6
LIBRARIES = ("torch", "numpy", "safetensors", "diffusers", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class Case:
    """A base with LoRAs, and the most MiB of memory that it may take."""

    base: str
    loras: tuple[tuple[str, float], ...]
    memory: float


CASES = {
    "sd15+1": Case("sd15", (("sd15_r32a", 0.8),), 300),
    "sd15+3": Case("sd15", (("sd15_r32a", 0.8), ("sd15_r128", 0.6), ("sd15_locon", 0.5)), 400),
    "sdxl+1": Case("sdxl", (("sdxl_r32a", 0.8),), 300),
    "sdxl+3": Case("sdxl", (("sdxl_r32a", 0.8), ("sdxl_r32b", 0.6), ("sdxl_r128", 0.5)), 400),
}


# SHA-256 by OpenSSL: some builds of sha256sum take several times as long.
DIGEST = "import hashlib, sys; print(hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256').hexdigest())"


@dataclass(frozen=True, slots=True)
class Mode:
    """What lorabake does besides baking, and commands that do it to the copy (the quickest counts)."""

    hash: bool
    options: tuple[str, ...]
    extras: dict[str, tuple[str, ...]]


MODES = {
    "plain": Mode(False, ("--no-fsync",), {}),
    "hash": Mode(True, ("--no-fsync",), {"sha256sum": ("sha256sum",), "hashlib": (sys.executable, "-c", DIGEST)}),
    "fsync": Mode(False, (), {"sync": ("sync",)}),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """All that stays the same during a run."""

    inputs: Path
    work: Path
    mode: Mode
    lorabake: tuple[str, ...]
    peer: bool

    def file(self, name: str) -> Path:
        """Locate an input."""
        return self.inputs / f"{name}.safetensors"


Row = dict[str, Cost]


@dataclass(frozen=True, slots=True)
class Pair:
    """What one pair cost, process by process, and the floor that was measured in it; a mode's extras have none."""

    costs: Row
    floor: Floor | None = None

    @property
    def least(self) -> float:
        """Return the seconds that a bake takes at least on this machine, at this moment."""
        assert self.floor is not None
        return self.floor.seconds(self.costs["import torch"].wall)


def write_recipe(path: Path, base: Path, loras: Iterable[tuple[Path, float]], hashed: bool) -> Path:
    """Write a recipe; JSON strings are YAML strings."""
    lines = [
        "version: 1",
        f"base: {json.dumps(str(base))}",
        "loras:",
        *(f"  - {{path: {json.dumps(str(file))}, strength: {strength}}}" for file, strength in loras),
        f"output: {{path: out.safetensors, hash: {json.dumps(hashed)}}}",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recipe_of(setting: Setting, case: Case) -> Path:
    """Write the recipe of a case."""
    loras = [(setting.file(name), strength) for name, strength in case.loras]
    return write_recipe(setting.work / "recipe.yaml", setting.file(case.base), loras, setting.mode.hash)


def bake(setting: Setting, case: Case) -> Cost:
    """Run lorabake and check that the result has the base's size."""
    output, base = setting.work / "baked.safetensors", setting.file(case.base)
    command = [*setting.lorabake, "bake", str(recipe_of(setting, case)), "--output", str(output), "--overwrite"]
    cost = measure([*command, "--quiet", *setting.mode.options], {**environment(), "LORABAKE_DEVICE": "cpu"})
    if abs(output.stat().st_size - base.stat().st_size) > SIZE_SLACK:
        raise FailedError(f"lorabake wrote {output.stat().st_size} bytes from {base.stat().st_size}")
    output.unlink()
    return cost


def copy(setting: Setting, case: Case) -> Row:
    """Copy the base, do the mode's extra to the copy, and import torch."""
    output = setting.work / "copy.safetensors"
    row = {"cp": measure(["cp", str(setting.file(case.base)), str(output)])}
    for name, command in setting.mode.extras.items():
        row[name] = measure([*command, str(output)])
    output.unlink()
    row["import torch"] = measure([sys.executable, "-c", "import torch"])
    return row


def measure_floor(setting: Setting, case: Case) -> Floor:
    """Measure the machine in a process of its own."""
    figures = setting.work / "floor.json"
    command = [sys.executable, "-m", "benchmarks.floor", str(recipe_of(setting, case)), "--work", str(setting.work)]
    measure([*command, "--json", str(figures)])
    return Floor(**json.loads(figures.read_text(encoding="utf-8")))


def run_peer(setting: Setting, case: Case) -> Cost:
    """Run diffusers on the same inputs."""
    output = setting.work / "peer"
    loras = [f"{setting.file(name)}={strength}" for name, strength in case.loras]
    command = [sys.executable, "-m", "benchmarks.peer_diffusers", str(setting.file(case.base)), *loras]
    cost = measure([*command, "--output", str(output)])
    shutil.rmtree(output)
    return cost


def run_pair(setting: Setting, case: Case, number: int) -> Pair:
    """Run everything once; every other pair goes backwards, so that no one always follows the same one."""
    parts: list[Callable[[], Row]] = [
        lambda: {"lorabake": bake(setting, case)},
        lambda: copy(setting, case),
    ]
    if setting.peer:
        parts.append(lambda: {"peer": run_peer(setting, case)})
    costs: Row = {}
    for part in parts if number % 2 == 0 else reversed(parts):
        if "sync" in setting.mode.extras:
            os.sync()  # so that nobody's fsync waits for pages that others left
        costs |= part()
    return Pair(costs, None if setting.mode.extras else measure_floor(setting, case))


def warm_up(setting: Setting, case: Case) -> None:
    """Read the inputs and run every program once, unmeasured."""
    for name in (case.base, *(name for name, _ in case.loras)):
        with setting.file(name).open("rb", buffering=0) as file:
            while file.read(READ_SIZE):
                pass
    bake(setting, case)
    measure([sys.executable, "-c", "import torch"])
    if setting.peer:
        imports = "from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline; import peft"
        measure([sys.executable, "-c", imports])


def reference(costs: Row, mode: Mode) -> float:
    """Add up the seconds of the copy that lorabake's are compared with."""
    extra = min((costs[name].wall for name in mode.extras), default=0.0)
    return costs["cp"].wall + costs["import torch"].wall + extra


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Write a median with its range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def judged(value: str, reached: bool) -> str:
    """Mark a value that misses its goal."""
    return value if reached else f"**{value}**"


def table(results: dict[str, list[Pair]], mode: Mode, peer: bool) -> list[str]:
    """Write one Markdown row a case; values that miss their goal are bold."""
    steps = ["cp", *mode.extras, "import torch"]
    against = " + ".join(["cp", *filter(None, [" or ".join(mode.extras)]), "import torch"])
    floored = not mode.extras
    head = ["case", "lorabake s"]
    head += ["floor s", "floor / lorabake", "goal"] if floored else []
    head += [*(f"{step} s" for step in steps), f"lorabake / ({against})"]
    head += ["peer s", "peer / lorabake", "goal"] if peer else []
    head += ["anonymous MiB", "goal", "CPU s"] + (["peer MiB", "peer CPU s"] if peer else [])
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, pairs in results.items():
        case, rows = CASES[name], [pair.costs for pair in pairs]
        own = [row["lorabake"] for row in rows]
        ratios = [row["lorabake"].wall / reference(row, mode) for row in rows]
        memory = max(cost.anonymous for cost in own)
        cells = [name, spread([cost.wall for cost in own])]
        if floored:
            shares = [pair.least / pair.costs["lorabake"].wall for pair in pairs]
            cells += [spread([pair.least for pair in pairs])]
            cells += [judged(spread(shares, ".0%"), statistics.median(shares) >= FLOOR_GOAL), f"≥ {FLOOR_GOAL:.0%}"]
        cells += [spread([row[step].wall for row in rows]) for step in steps]
        cells.append(spread(ratios, ".2f"))
        peers = [row["peer"] for row in rows] if peer else []
        if peer:
            faster = [other.wall / cost.wall for other, cost in zip(peers, own, strict=True)]
            cells.append(spread([cost.wall for cost in peers]))
            cells.append(judged(spread(faster), statistics.median(faster) >= PEER_GOAL))
            cells.append(f"≥ {PEER_GOAL:.0f}")
        cells += [judged(f"{memory:.0f}", memory <= case.memory), f"≤ {case.memory:.0f}"]
        cells.append(spread([cost.cpu for cost in own]))
        if peer:
            cells.append(f"{max(cost.anonymous for cost in peers):.0f}")
            cells.append(spread([cost.cpu for cost in peers]))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def floors(results: dict[str, list[Pair]]) -> list[str]:
    """Write what each case's floor is made of: medians, on all cores but for copying and the import."""
    parts = [field.name for field in fields(Floor) if field.name != "cores"]
    lines = [
        f"| case | {' | '.join(f'{part} s' for part in parts)} | import torch s |",
        f"|{'---|' * (len(parts) + 2)}",
    ]
    for name, pairs in results.items():
        if any(pair.floor is None for pair in pairs):
            return []
        medians = [statistics.median(getattr(pair.floor, part) for pair in pairs) for part in parts]
        medians.append(statistics.median(pair.costs["import torch"].wall for pair in pairs))
        lines.append(f"| {name} | {' | '.join(f'{seconds:.2f}' for seconds in medians)} |")
    return ["", *lines]


def machine() -> dict[str, object]:
    """Say what the figures were taken on, without names or paths."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def as_json(results: dict[str, list[Pair]], mode: str) -> str:
    """Write every single measurement."""
    pairs = {
        name: [
            {part: cost.as_json() for part, cost in pair.costs.items()}
            | ({"floor": asdict(pair.floor) | {"seconds": pair.least}} if pair.floor else {})
            for pair in rows
        ]
        for name, rows in results.items()
    }
    return json.dumps({"mode": mode, "machine": machine(), "pairs": pairs}, indent=1) + "\n"


def check_inputs(setting: Setting, cases: Sequence[str]) -> None:
    """Stop before the first run if a file or the room for an output is missing."""
    names = {name for case in cases for name in (CASES[case].base, *dict(CASES[case].loras))}
    missing = sorted(name for name in names if not setting.file(name).exists())
    if missing:
        sys.exit(f"missing: {', '.join(missing)}; make them with python -m benchmarks.inputs DIR")
    largest = max(setting.file(CASES[case].base).stat().st_size for case in cases)
    if shutil.disk_usage(setting.work).free < largest * 1.1:
        sys.exit(f"no room for an output of {largest / 1e9:.1f} GB")


def run(setting: Setting, cases: Sequence[str], pairs: int) -> dict[str, list[Pair]]:
    """Run every case, warm-up first."""
    results: dict[str, list[Pair]] = {}
    for name in cases:
        warm_up(setting, CASES[name])
        rows = results.setdefault(name, [])
        for number in range(pairs):
            rows.append(run_pair(setting, CASES[name], number))
            walls = ", ".join(f"{part} {cost.wall:.2f}" for part, cost in rows[-1].costs.items())
            walls += f", floor {rows[-1].least:.2f}" if rows[-1].floor else ""
            print(f"{name}, pair {number + 1}: {walls}", file=sys.stderr, flush=True)
    return results


def split(text: str) -> tuple[str, ...]:
    """Split a command as a shell would."""
    return tuple(shlex.split(text))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=Path, required=True, metavar="DIR", help="made by benchmarks.inputs")
    parser.add_argument("--mode", choices=tuple(MODES), default="plain")
    parser.add_argument("--peer", action="store_true", help="run diffusers in each pair, too")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--work", type=Path, metavar="DIR", help="for outputs; default: beside the inputs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement")
    parser.add_argument("--lorabake", type=split, default=(sys.executable, "-m", "lorabake"), metavar="CMD")
    options = parser.parse_args(arguments)
    inputs = options.inputs.resolve()
    with tempfile.TemporaryDirectory(prefix="run-", dir=options.work or inputs) as work:
        setting = Setting(inputs, Path(work), MODES[options.mode], options.lorabake, options.peer)
        check_inputs(setting, options.cases)
        try:
            results = run(setting, options.cases, options.pairs)
        except FailedError as error:
            sys.exit(str(error))
    print("\n".join([*table(results, setting.mode, options.peer), *floors(results)]))
    if options.json:
        options.json.write_text(as_json(results, options.mode), encoding="utf-8")


if __name__ == "__main__":
    main()
