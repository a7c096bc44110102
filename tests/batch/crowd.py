"""Run commands of lorabake at the same time, each in a process of its own that costs no start: they are forked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

SERVER = """
    import json, os, signal, sys, traceback
    import lorabake.execution.device, lorabake.execution.worker, lorabake.reference.survival
    import lorabake.artifacts.current, lorabake.documents.batch
    from lorabake.cli import main

    def child(job, place):
        out = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        os.chdir(job["folder"])
        os.environ.update(job["environment"])
        sys.argv = ["lorabake", *job["words"]]
        code = 99
        try:
            exec(job["before"], {})
            os.read(0, 1)  # all begin at once
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)

    for line in sys.stdin:
        jobs, told = json.loads(line)
        gates, children = [], []
        for number, job in enumerate(jobs):
            hold, gate = os.pipe()
            pid = os.fork()
            if not pid:
                os.dup2(hold, 0)
                os.close(gate)
                child(job, f"{told}.{number}")
            os.close(hold)
            gates.append(gate)
            children.append(pid)
        for gate in gates:
            os.write(gate, b".")
            os.close(gate)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        print(json.dumps(codes), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Run:
    """Say what one process does: words of the command line, in a folder; `before` is Python that it runs first."""

    words: Sequence[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    before: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """Say how a process ended, with a negative code for a signal, and what it printed."""

    code: int
    text: str


class Crowd:
    """Talk to the process that forks them."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def run(self, *runs: Run) -> list[Ended]:
        """Let processes begin at the same moment; return how each of them ended, in their order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        jobs: list[dict[str, Any]] = [
            {
                "words": [*run.words],
                "folder": str(run.folder),
                "environment": run.environment,
                "before": textwrap.dedent(run.before),
            }
            for run in runs
        ]
        told = self._folder / "told"
        self._process.stdin.write(json.dumps([jobs, str(told)]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that forks has died"
        texts = [Path(f"{told}.{number}").read_text(encoding="utf-8") for number in range(len(runs))]
        return [Ended(*pair) for pair in zip(json.loads(line), texts, strict=True)]


@contextmanager
def crowd_in(folder: Path) -> Iterator[Crowd]:
    """Run the process that forks; what the others print is kept in the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER)],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Crowd(process, folder)
    finally:
        process.kill()
        process.communicate()
