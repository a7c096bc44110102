"""Files that libFuzzer makes, led by the code that they reach: read, or refused by one error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.torture.conftest import Tally
from tests.torture.test_hostile_files import BINARY, RECIPE

ROOT = Path(__file__).parents[2]


def seeds(name: str, folder: Path) -> None:
    """Write right files of a sort into a folder."""
    folder.mkdir()
    if name == "pickles":
        for zipped in (True, False):
            content = {"a.weight": torch.ones(2, 3), "b": torch.ones(3, 2).mT}
            torch.save(content, folder / f"{zipped}.pt", _use_new_zipfile_serialization=zipped)
    elif name == "recipes":
        (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        (folder / "recipe.json").write_text(json.dumps(RECIPE))
    else:
        valid = folder.with_name("valid")
        valid.mkdir()
        for number, raw in enumerate(BINARY[name][0](valid)):
            (folder / str(number)).write_bytes(raw)


@pytest.mark.parametrize("name", ["SafeTensors", "NumPy", "GGUF", "pickles", "recipes"])
def test_a_reader(
    name: str, tmp_path: Path, tally: Callable[[str, str], Tally], effort: Callable[[int, int], int]
) -> None:
    pytest.importorskip("atheris")
    count = tally(f"files that libFuzzer makes: {name}", "what the file says, or one error, within seconds")
    seeds(name, tmp_path / "corpus")
    arguments = [f"-max_total_time={effort(2, 60)}", "-max_len=20000", "-timeout=10", "-rss_limit_mb=2048", "-seed=1"]
    arguments += ["-detect_leaks=0", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.fuzz", name, tmp_path / "corpus", *arguments],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]), PYTHONWARNINGS="ignore"),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    runs = re.search(r"Done (\d+) (?:runs )?in", done.stderr)
    count.hold(done.returncode == 0, done.stderr[-2000:])
    count.kept += int(runs[1]) - 1 if runs and done.returncode == 0 else 0
