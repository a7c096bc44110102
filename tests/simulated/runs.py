"""Run files of tests on the simulated device: bakes in that process take it, as they would take a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import simulated

ROOT = Path(__file__).resolve().parent.parent.parent


def check_there(*files: str, selected: str = "") -> None:
    """Run files of tests, or those of their tests that pytest's -k selects; skip where the device cannot be built."""
    try:
        backend = simulated.build()
    except simulated.UnavailableError as error:
        pytest.skip(f"no simulated device: {error}")
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
