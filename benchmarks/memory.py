"""Show that a bake's memory grows neither with the base nor with the LoRAs.

    python -m benchmarks.memory --inputs DIR [--bases sparse_2gb sparse_7gb sparse_20gb]

The bases are holes (`benchmarks.inputs DIR --only sparse`), the outputs are real: a kernel that copies a
range writes a hole as zeros, so 22 GB of disk must be free for the largest.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.inputs import MEMORY_LORAS, SPARSE_BASES
from benchmarks.measure import Cost, FailedError, measure
from benchmarks.run import SIZE_SLACK, split, write_recipe

# MiB, from PERFORMANCE's goals.
LIMITS = {"one r32": 300, "three r128": 400}
# The same LoRAs on the same tensors: a base three times the size may cost its longer header, no more (MiB).
GROWTH = ("sparse_7gb", "sparse_20gb")
GROWTH_LIMIT = 32.0


@dataclass(frozen=True, slots=True)
class Bake:
    """One base with one set of LoRAs."""

    base: str
    loras: str

    def files(self) -> tuple[str, ...]:
        """Name the LoRAs' files."""
        arch, _ = SPARSE_BASES[self.base]
        return {"one r32": (f"{arch}_r32a",), "three r128": MEMORY_LORAS[arch]}[self.loras]


def bake(lorabake: tuple[str, ...], inputs: Path, work: Path, one: Bake) -> Cost:
    """Run one bake, check that the output is whole, and delete it."""
    base, output = inputs / f"{one.base}.safetensors", work / "baked.safetensors"
    loras = [(inputs / f"{name}.safetensors", 0.5) for name in one.files()]
    for path in (base, *(path for path, _ in loras)):
        if not path.exists():
            raise FailedError(f"{path.name} is missing; python -m benchmarks.inputs DIR --only sparse")
    if shutil.disk_usage(work).free < base.stat().st_size * 1.1:
        raise FailedError(f"no room for an output of {base.stat().st_size / 1e9:.1f} GB")
    recipe = write_recipe(work / "recipe.yaml", base, loras, hashed=False)
    command = [
        *lorabake,
        "bake",
        str(recipe),
        "--output",
        str(output),
        "--overwrite",
        "--no-fsync",
        "--quiet",
    ]
    cost = measure(command)
    if abs(output.stat().st_size - base.stat().st_size) > SIZE_SLACK:
        raise FailedError(f"lorabake wrote {output.stat().st_size} bytes from {base.stat().st_size}")
    output.unlink()
    return cost


def verdicts(peaks: dict[Bake, float]) -> list[tuple[bool, str]]:
    """Judge the peaks by the goals."""
    found = [
        (peak <= LIMITS[one.loras], f"{one.base}, {one.loras}: {peak:.0f} MiB, at most {LIMITS[one.loras]}")
        for one, peak in peaks.items()
    ]
    for loras in LIMITS:
        small, large = (peaks.get(Bake(base, loras)) for base in GROWTH)
        if small is not None and large is not None:
            text = f"{GROWTH[0]} to {GROWTH[1]}, {loras}: {large - small:+.0f} MiB, at most {GROWTH_LIMIT:.0f}"
            found.append((large - small <= GROWTH_LIMIT, text))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, bake, print the table; exit with 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=Path, required=True, metavar="DIR", help="made by benchmarks.inputs")
    parser.add_argument("--bases", nargs="+", choices=tuple(SPARSE_BASES), default=list(SPARSE_BASES))
    parser.add_argument("--work", type=Path, metavar="DIR", help="for outputs; default: beside the inputs")
    parser.add_argument("--lorabake", type=split, default=(sys.executable, "-m", "lorabake"), metavar="CMD")
    options = parser.parse_args(arguments)
    inputs = options.inputs.resolve()
    peaks: dict[Bake, float] = {}
    try:
        torch = measure([sys.executable, "-c", "import torch"])
        print("| base | LoRAs | anonymous MiB | wall s | CPU s |\n|---|---|---|---|---|")
        print(f"| none | `import torch` alone | {torch.anonymous:.0f} | {torch.wall:.1f} | {torch.cpu:.1f} |")
        with tempfile.TemporaryDirectory(prefix="run-", dir=options.work or inputs) as work:
            for one in (Bake(base, loras) for base in options.bases for loras in LIMITS):
                cost = bake(options.lorabake, inputs, Path(work), one)
                peaks[one] = cost.anonymous
                size = (inputs / f"{one.base}.safetensors").stat().st_size / 1e9
                cells = f"{cost.anonymous:.0f} | {cost.wall:.1f} | {cost.cpu:.1f}"
                print(f"| {size:.1f} GB | {one.loras} | {cells} |", flush=True)
    except FailedError as error:
        sys.exit(str(error))
    found = verdicts(peaks)
    print()
    for reached, text in found:
        print(f"{'ok' if reached else 'MISSED'}: {text}")
    sys.exit(not all(reached for reached, _ in found))


if __name__ == "__main__":
    main()
