"""Compare what proving a bake costs with what the bake did, in CPU seconds and in interleaved pairs.

    python -m benchmarks.verify --inputs DIR [--pairs 5] [--cases sd15+3 sdxl+1] [--json FILE]

Each pair bakes (hashed, without fsync), then verifies structure and weights, and structure and quick. The ratios are
taken within a pair, of user and system seconds of whole processes. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import FailedError, measure
from benchmarks.run import CASES, MODES, Row, Setting, check_inputs, judged, machine, split, spread, write_recipe

STAGES = ("weights", "quick")
GOALS = {"weights": 2.0, "quick": 0.5}


def run_pair(setting: Setting, name: str) -> Row:
    """Bake once, and prove it by each stage; every command must say that all is well."""
    case, output = CASES[name], setting.work / "baked.safetensors"
    loras = [(setting.file(lora), strength) for lora, strength in case.loras]
    recipe = write_recipe(setting.work / "recipe.yaml", setting.file(case.base), loras, hashed=True)
    bake = [*setting.lorabake, "bake", str(recipe), "--output", str(output), "--overwrite", "--quiet", "--no-fsync"]
    row = {"bake": measure(bake)}
    for stage in STAGES:
        command = [*setting.lorabake, "verify", str(recipe), "--baked", str(output), "--stage", "structure"]
        row[stage] = measure([*command, "--stage", stage, "--quiet"])
    output.unlink()
    return row


def table(results: dict[str, list[Row]]) -> list[str]:
    """Write one Markdown row a case; ratios that miss their goal are bold."""
    head = ["case", "bake CPU s", *(f"{stage} CPU s" for stage in STAGES)]
    for stage in STAGES:
        head += [f"{stage} / bake", "goal"]
    head += ["bake s", *(f"{stage} s" for stage in STAGES), *(f"{stage} MiB" for stage in STAGES)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, rows in results.items():
        cells = [name, *(spread([row[part].cpu for row in rows], ".2f") for part in ("bake", *STAGES))]
        for stage in STAGES:
            ratios = [row[stage].cpu / row["bake"].cpu for row in rows]
            reached = statistics.median(ratios) <= GOALS[stage]
            cells += [judged(spread(ratios, ".2f"), reached), f"≤ {GOALS[stage]:g}"]
        cells += [spread([row[part].wall for row in rows]) for part in ("bake", *STAGES)]
        cells += [f"{max(row[stage].anonymous for row in rows):.0f}" for stage in STAGES]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=Path, required=True, metavar="DIR", help="made by benchmarks.inputs")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=["sd15+3", "sdxl+1"])
    parser.add_argument("--work", type=Path, metavar="DIR", help="for outputs; default: beside the inputs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement")
    parser.add_argument("--lorabake", type=split, default=(sys.executable, "-m", "lorabake"), metavar="CMD")
    options = parser.parse_args(arguments)
    results: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="verify-", dir=options.work or options.inputs) as work:
        setting = Setting(options.inputs.resolve(), Path(work), MODES["hash"], options.lorabake, peer=False)
        check_inputs(setting, options.cases)
        try:
            for name in options.cases:
                run_pair(setting, name)  # unmeasured: it reads the inputs
                rows = results.setdefault(name, [])
                for number in range(options.pairs):
                    rows.append(run_pair(setting, name))
                    told = ", ".join(f"{part} {cost.cpu:.2f}" for part, cost in rows[-1].items())
                    print(f"{name}, pair {number + 1}: {told}", file=sys.stderr, flush=True)
        except FailedError as error:
            sys.exit(str(error))
    print("\n".join(table(results)))
    if options.json:
        pairs = {
            name: [{part: cost.as_json() for part, cost in row.items()} for row in rows]
            for name, rows in results.items()
        }
        text = json.dumps({"mode": "verify", "machine": machine(), "pairs": pairs}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
