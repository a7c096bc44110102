"""The scripts for clusters on the page do what it says: they are run here as their schedulers would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.batch.crowd import ROOT, Run, crowd_in
from tests.batch.sweep import make_sweep, outputs

PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the scripts are a POSIX shell's")


def block(language: str, mark: str) -> str:
    """Return the one block of the page in a language that contains a mark."""
    (found,) = (text for text in re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S) if mark in text)
    return found


def test_the_sbatch_script_bakes_a_sweep(tmp_path: Path) -> None:
    script = block("sh", "#SBATCH")
    assert script.startswith("#!/bin/bash\n#SBATCH")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    alone = make_sweep(tmp_path / "recipes")
    programs = tmp_path / "lorabake" / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    (programs / "lorabake").write_text(f'#!/bin/sh\nexec {sys.executable} -m lorabake "$@" --no-fsync\n')
    (programs / "lorabake").chmod(0o755)
    first = int(re.findall(r"--array=(\d+)-", script)[0])
    count = 2
    nodes = []
    for number in range(count):
        told = {"ID": first + number, "COUNT": count, "MIN": first, "MAX": first + count - 1, "STEP": 1}
        environment = {
            **os.environ,
            **{f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()},
            "SLURM_PROCID": "0",
            "PYTHONPATH": str(ROOT),
        }
        text = script.replace("/shared", str(tmp_path))
        nodes.append(subprocess.Popen(["bash", "-c", text], env=environment, stderr=subprocess.PIPE, text=True))
    told_by = [node.communicate()[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0] * count, told_by
    assert outputs(tmp_path / "recipes") == alone


def test_the_indexed_job_bakes_a_sweep(tmp_path: Path) -> None:
    spec = yaml.safe_load(block("yaml", "completionMode"))["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    given = {each["name"]: each["value"] for each in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert given == {"LORABAKE_SHARDS": str(spec["completions"])}
    assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"] for volume in pod["volumes"]]
    assert pod["restartPolicy"] == "Never"  # backoffLimitPerIndex and podFailurePolicy want it
    assert {rule["onExitCodes"]["containerName"] for rule in spec["podFailurePolicy"]["rules"]} == {container["name"]}

    alone = make_sweep(tmp_path / "models")
    program, *words = container["command"]
    assert program == "lorabake"
    words = [word.replace("/models", str(tmp_path / "models")) for word in words]
    pods = [
        Run([*words, "--no-fsync"], tmp_path, {**given, "JOB_COMPLETION_INDEX": str(index)})
        for index in range(spec["completions"])
    ]
    with crowd_in(tmp_path) as crowd:
        ended = crowd.run(*pods)
    assert [each.code for each in ended] == [0] * len(pods), ended
    assert sum("nothing to do" in each.text for each in ended) == len(pods) - len(alone)
    assert outputs(tmp_path / "models") == alone
