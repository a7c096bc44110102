"""Run tests on an accelerator that this machine does not have: `simulated/` says what it is.

Each file runs in a process of its own, whose torch has that device; a bake there takes it, as it would take a GPU.
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

FILES = {
    "simulated/bakes.py": "",
    "test_kinds.py": "",
    "test_packing.py": "",
    "test_compose.py": "",
    "test_methods.py": "",
    "test_rounding.py": "",
    "test_embeddings.py": "",
    "test_reproducible.py": "not the_first_bake_of_a_process",  # which is about the CPU
}
"""Which tests of each file run: all, or those that pytest's -k selects."""


@pytest.fixture(scope="session")
def backend() -> Path:
    try:
        return simulated.build()
    except simulated.UnavailableError as error:
        pytest.skip(f"no simulated device: {error}")


@pytest.mark.parametrize("file", FILES)
def test_on_the_simulated_device(backend: Path, file: str) -> None:
    own = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    path = os.pathsep.join([str(backend), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", FILES[file], f"tests/{file}"],
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
