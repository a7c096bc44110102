"""Run a process to its end and say what it cost: wall time, CPU time, peak anonymous memory."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

INTERVAL = 0.005
ROOT = Path(__file__).resolve().parent.parent


class FailedError(Exception):
    """A measured command that did not exit with 0."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took; `anonymous` is the largest sum over the process tree, in MiB.

    `read` are the bytes that system calls of the process and its ended children gave or copied, wherever they came
    from; `fetched` those that came from a disk, and not from the page cache.
    """

    wall: float
    cpu: float
    anonymous: float
    read: int = 0
    fetched: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Add a run that follows: times and bytes add up, the peak is the higher one."""
        anonymous = max(self.anonymous, other.anonymous)
        read, fetched = self.read + other.read, self.fetched + other.fetched
        return Cost(self.wall + other.wall, self.cpu + other.cpu, anonymous, read, fetched)

    def as_json(self) -> dict[str, float]:
        """Name and round the numbers."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Floor:
    """Hold the seconds that each part of the work takes on all cores; `copying` takes one."""

    arithmetic: float
    conversion: float
    reading: float
    writing: float
    copying: float
    cores: int

    def seconds(self, importing: float) -> float:
        """Add up the least time of a bake whose process needs so many seconds, on one core, to import torch.

        Copying goes on beside the import; computing begins after it, and takes all cores.
        """
        computing = self.arithmetic + self.conversion + self.reading + self.writing
        shared = (importing + self.copying) / self.cores + computing
        return max(importing + computing, shared, self.copying)


def environment() -> dict[str, str]:
    """Let a child import lorabake and the benchmarks from this checkout."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def descendants(pid: int) -> list[int]:
    """List a process and all that it started, by the kernel's list of each thread's children."""
    found = [pid]
    for parent in found:
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
        except OSError:  # it has ended
            continue
        for task in tasks:
            try:
                found += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
            except OSError:
                continue
    return found


def anonymous_kib(pid: int) -> int:
    """Read RssAnon: private pages without the page cache and without shared memory."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def bytes_read(pid: int) -> tuple[int, int]:
    """Return the bytes that an ended process read, and those of them that came from a disk; zeros if nobody tells."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    counts = {name: int(count) for name, _, count in (line.partition(":") for line in lines)}
    return counts.get("rchar", 0), counts.get("read_bytes", 0)


class Sampler(threading.Thread):
    """Watch a process tree's anonymous memory until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak_kib = 0
        self.over = threading.Event()

    def run(self) -> None:
        """Sample every few milliseconds."""
        while not self.over.wait(INTERVAL):
            total = sum(anonymous_kib(pid) for pid in descendants(self.pid))
            self.peak_kib = max(self.peak_kib, total)


def measure(command: Sequence[str], env: Mapping[str, str] | None = None) -> Cost:
    """Run a command, its output kept for the error message, and return its cost."""
    start = time.perf_counter()
    # The pipes are small talk only: a command that fills one would hang, so both go to one temporary file.
    log = os.memfd_create("log")
    try:
        process = subprocess.Popen(
            command, env=dict(env or environment()), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        sampler = Sampler(process.pid)
        sampler.start()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall = time.perf_counter() - start
        read = bytes_read(process.pid)  # before the system forgets it
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # keeps Popen from waiting again
        sampler.over.set()
        sampler.join()
        if process.returncode:
            with open(log, "rb", closefd=False) as file:
                file.seek(0)
                tail = file.read()[-2000:].decode(errors="replace")
            raise FailedError(f"exit code {process.returncode} from {' '.join(command)}\n{tail}")
    finally:
        os.close(log)
    return Cost(wall, usage.ru_utime + usage.ru_stime, sampler.peak_kib / 1024, *read)
