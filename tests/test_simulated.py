"""Run tests on an accelerator that this machine does not have: `simulated/` says what it is.

Each run is a process of its own, whose torch has that device; a bake there takes it, as it would take a GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import simulated

ROOT = Path(__file__).resolve().parent.parent

RUNS = {
    "bakes": (("simulated/bakes.py",), ""),
    "kinds": (("test_kinds.py",), "not bfloat16"),  # what the output is rounded to makes no difference there
    "others": (
        tuple(
            f"test_{name}.py" for name in ("packing", "compose", "methods", "rounding", "embeddings", "reproducible")
        ),
        "not the_first_bake_of_a_process",  # which is about the CPU
    ),
}
"""Files of tests, and which of theirs run: all, or those that pytest's -k selects."""


@pytest.fixture(scope="session")
def backend() -> Path:
    try:
        return simulated.build()
    except simulated.UnavailableError as error:
        pytest.skip(f"no simulated device: {error}")


@pytest.mark.parametrize(("files", "selected"), RUNS.values(), ids=RUNS)
def test_on_the_simulated_device(backend: Path, files: tuple[str, ...], selected: str) -> None:
    own = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    path = os.pathsep.join([str(backend), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", selected]
    done = subprocess.run(
        [*command, *(f"tests/{file}" for file in files)],
        cwd=ROOT,
        env={**own, "PYTHONPATH": path, "LORABAKE_DEVICE": "auto"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = re.search(r"^simulated device: (\d+) copies postponed$", done.stdout, re.MULTILINE)
    assert counts, done.stdout
    assert int(counts[1]) > 100, "hardly anything was computed there"
