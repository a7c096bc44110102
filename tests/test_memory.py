"""Memory does not grow with the model: anonymous memory of a bake, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests import builders as b

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")

MIB = 1 << 20
ROWS, COLUMNS = 4096, 2560  # 20 MiB as float16

CHILD = """
    import sys, threading
    from pathlib import Path

    peak, done = 0, threading.Event()

    def watch():
        global peak
        while not done.wait(0.003):
            for line in open("/proc/self/status"):
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]) * 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    from lorabake.baking import bake
    from lorabake.options import RunOptions
    from lorabake.recipe import load_recipe

    result = bake(load_recipe(Path(sys.argv[1])), RunOptions(workers=2, fsync=False))
    done.set()
    watcher.join()
    print(peak, result.peak_memory, result.plan.peak_memory(2))
"""


def big_base(path: Path, layers: int) -> int:
    """Write layers of random float16 weights without holding them all; return the file's size."""
    layer = np.random.default_rng(0).standard_normal(ROWS * COLUMNS, dtype=np.float32).astype(np.float16).tobytes()
    entries = {
        f"model.layers.{n}.mlp.up_proj.weight": {
            "dtype": "F16",
            "shape": [ROWS, COLUMNS],
            "data_offsets": [n * len(layer), (n + 1) * len(layer)],
        }
        for n in range(layers)
    }
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(layers):
            file.write(layer)
    return path.stat().st_size


def measure(folder: Path, layers: int) -> tuple[int, int, int, int]:
    """Bake every second layer; return the base's size, the peak seen, the peak told and the one foretold."""
    folder.mkdir()
    size = big_base(folder / "base.safetensors", layers)
    b.peft(
        folder / "lora",
        {f"model.layers.{n}.mlp.up_proj": b.lora((ROWS, COLUMNS), rank=8, size=0.01) for n in range(0, layers, 2)},
        r=8,
    )
    recipe = b.recipe(folder, loras=["lora"])
    child = [sys.executable, "-c", textwrap.dedent(CHILD), recipe]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen, told, foretold = map(int, done.stdout.split())
    for path in folder.glob("*.safetensors"):
        path.unlink()
    return size, seen, told, foretold


def test_peak_memory_stays_below_the_base_and_does_not_follow_it(tmp_path: Path) -> None:
    small = measure(tmp_path / "small", 5)
    large = measure(tmp_path / "large", 15)
    assert small[0] >= 100 * MIB
    assert large[0] >= 300 * MIB
    assert large[1] < 260 * MIB
    assert abs(large[1] - small[1]) < 40 * MIB
    for _, seen, told, foretold in (small, large):
        assert abs(seen - told) < 40 * MIB
        assert seen < foretold + 40 * MIB
