"""Full and closed standard streams: no traceback, and a result that cannot be printed is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import builders as b
from tests.torture.conftest import Tally

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "inspect base.safetensors": 0,
    "plan recipe.yaml": 0,
    "bake recipe.yaml --overwrite --no-fsync": 0,
    "bake recipe.yaml --overwrite --no-fsync --json": 0,
    "verify recipe.yaml --stage structure": 0,
    "schema": 0,
    "completion bash": 0,
    "--help": 0,
    "bake --help": 0,
    "--version": 0,
    "inspect nowhere": 2,
    "frob": 2,
}
QUICK = ("inspect base.safetensors",)
WAYS = {
    ">/dev/full": {0: 3},
    ">&-": {},
    "2>/dev/full": {},
    "2>&-": {},
    "<&-": {},
    ">/dev/full 2>/dev/full": {0: 3},
    "<&- >&- 2>&-": {},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    b.save(tmp_path / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(tmp_path / "lora.safetensors")
    b.recipe(tmp_path)
    return tmp_path


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_full_and_closed_streams(
    tally: Callable[[str, str], Tally], effort: Callable[[object, object], object], folder: Path
) -> None:
    counted = tally("full and closed standard streams", "no traceback, and an exit code that is documented")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    commands = effort(dict.fromkeys(QUICK, 0), COMMANDS)
    ways = effort({way: WAYS[way] for way in (">/dev/full 2>/dev/full", "2>&-")}, WAYS)
    for command, plain in commands.items():  # type: ignore[attr-defined]
        for way, codes in ways.items():  # type: ignore[attr-defined]
            line = f'"{sys.executable}" -m lorabake {command} {way}'
            done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)
            output = done.stdout + done.stderr
            due = codes.get(plain, plain)
            kept = done.returncode == due and "Traceback" not in output
            counted.hold(kept, f"{command} {way}: {done.returncode}, not {due}: {output[-300:]}")


def test_a_baked_file_gets_no_text_of_a_closed_stream(folder: Path) -> None:
    """The number of a closed stream is not given to the output, where what a library prints would go into it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", "lorabake", "bake", "recipe.yaml", "--overwrite", "--no-fsync"]
    subprocess.run(run, cwd=folder, env=environment, check=True, capture_output=True)
    due = (folder / "out.safetensors").read_bytes()
    code = (
        "import os, sys; from lorabake import cli\n"
        "cli.open_streams()\n"
        "found = os.open('recipe.yaml', os.O_RDONLY)\n"
        "os.write(2, b'a library prints this'); os._exit(0 if found > 2 else 9)"
    )
    line = f'exec 0<&- 1>&- 2>&-; exec "{sys.executable}" -c "$0"'
    assert subprocess.run(["bash", "-c", line, code], cwd=folder, env=environment).returncode == 0
    (folder / "out.safetensors").unlink()
    line = f'exec "{sys.executable}" -m lorabake bake recipe.yaml --no-fsync <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", line], cwd=folder, env=environment).returncode == 0
    assert (folder / "out.safetensors").read_bytes() == due


def test_nobody_who_reads_is_no_error_to_tell(folder: Path) -> None:
    run = [sys.executable, "-m", "lorabake", "plan", "recipe.yaml", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, cwd=folder, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (3, "")
