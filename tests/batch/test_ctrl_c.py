"""Ctrl-C in the middle of a batch, as a real signal: it leaves whole files and receipts, and the next run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lorabake.batch import BatchOptions, bake_all
from lorabake.options import RunOptions
from lorabake.recipe import load_recipes
from tests.batch.pieces import FREE, noted_runs
from tests.batch.sweep import folder as folder  # a fixture
from tests.batch.sweep import made as made  # a fixture
from tests.batch.sweep import outputs

ROOT = Path(__file__).parents[2]
PART = 6000

SCRIPT = """
    import functools, signal
    import lorabake.cli.batch as command
    from lorabake.batch import restart
    from lorabake.batch.engines import spread
    from lorabake.cli import entry
    from tests.batch.pieces import HeldPart, held

    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs tests in the background ignores it
    command.BatchOptions = functools.partial(command.BatchOptions, part_bytes=6000)
    spread.PartOfPass, restart.land_all = HeldPart, held(restart.land_all)
    entry()
"""
"""Run the command line, but that a part of a batch is small, and that the parts after the first few wait."""


def begun(folder: Path, jobs: int) -> subprocess.Popen[str]:
    """Begin the sweep as a command, in a session of its own; return once all its jobs are held in the middle."""
    words = ["batch", "sweep.yaml", "--overwrite", "--jobs", str(jobs), "--workers", "1", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *words],
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while len([*(folder / "notes").glob("held*")]) < jobs:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX signals")
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_loses_nothing(
    folder: Path, made: tuple[Path, dict[str, bytes]], jobs: int, request: pytest.FixtureRequest
) -> None:
    there = {"one-0.25.safetensors": made[1]["one-0.25.safetensors"], "two-1.safetensors": b"old"}
    bake_sweep(folder, only=1)
    (folder / "out" / "two-1.safetensors").write_bytes(b"old")
    process = begun(folder, jobs)
    request.addfinalizer(process.kill)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines()[-1] == "stopped; what is finished is kept, and the same command goes on from there"
    assert "Traceback" not in told
    assert said == ""
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left

    left = outputs(folder)
    due = {*made[1]} - {"one-0.25.safetensors"}
    assert {name: content for name, content in left.items() if not name.endswith(".partial")} == there
    assert {*left} == {*there} | {f"{name}.partial" for name in due}
    receipts = [len([*(folder / "out").glob(f"{name}.partial/receipts/*.json")]) for name in due]
    assert receipts == [FREE] * len(due)

    assert bake_sweep(folder, jobs=jobs) == {folder / "out" / name for name in due}
    assert outputs(folder) == made[1]
    again = {*noted_runs(folder)} - {"held"}  # workers note what they begin
    assert again.isdisjoint(map(str, range(FREE))), "what has receipts is not done again"
    assert bool(again) == (jobs > 1)


def bake_sweep(folder: Path, only: int | None = None, jobs: int = 1) -> set[Path]:
    """Bake the sweep, or the first few of its outputs; return those of which something was finished before."""
    kept: set[Path] = set()
    run = RunOptions(device="cpu", workers=1, fsync=False, overwrite=True)
    options = BatchOptions(run=run, part_bytes=PART, jobs=jobs, kept=lambda path, size: kept.add(path))
    bake_all(load_recipes(folder / "sweep.yaml")[:only], options)
    return kept
