"""Run pieces of work in processes of this machine, each with its own interpreter.

A process is started for itself (not forked), imports what its work needs, and takes one piece after another. It ends
with its parent, even if that is killed: their socket closes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from types import TracebackType
from typing import Final, Self

from lorabake.batch.engines import Ended, Telling, Work
from lorabake.batch.engines.link import Begun, Counted, Done, Link, Warned
from lorabake.errors import SurroundingsError
from lorabake.interrupts import held
from lorabake.settings import are_options

START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from lorabake.batch.engines.worker import main; main(int(sys.argv[2]))"
)
"""What a worker's interpreter runs: it finds modules where this one does."""

THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Variables that hold how many threads a library starts. The work brings its own threads, so it is one."""

GRACE: Final = 5.0
"""Seconds that a worker has to put down its work when it is asked to stop."""

FALSE_STARTS: Final = 3
"""How many workers in a row may end before they are ready."""


class Processes:
    """Run up to `count` pieces of work side by side, each in a process that is started when it is needed.

    Raise SurroundingsError if processes cannot be started, or end before they are ready.
    """

    def __init__(self, count: int, telling: Telling) -> None:
        self.slots = count
        self._telling = telling
        self._workers: list[_Process] = []
        self._false_starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        with held():
            self.abandon()
            workers, self._workers = self._workers, []
            for worker in workers:
                worker.process.kill()
                worker.end(time.monotonic() + GRACE)

    def abandon(self) -> None:
        """End the workers that have work, and wait for that; they may put it down first."""
        with held():
            busy = [worker for worker in self._workers if worker.work is not None]
            self._workers = [worker for worker in self._workers if worker.work is None]
            for worker in busy:
                worker.process.send_signal(signal.SIGTERM)
            until = time.monotonic() + GRACE
            for worker in busy:
                worker.end(until)

    def begin(self, work: Work) -> None:
        """Give a piece of work to an idle worker, or to a new one."""
        worker = next((each for each in self._workers if each.work is None), None)
        if worker is None:
            with held():
                worker = _Process.start()
                self._workers.append(worker)
        worker.give(work)

    def wait(self, seconds: float | None) -> Sequence[Ended]:
        """Wait until a piece has ended, or the time is over; return those that have."""
        until = None if seconds is None else time.monotonic() + seconds
        ended: list[Ended] = []
        while not ended:
            left = None if until is None else max(until - time.monotonic(), 0.0)
            links = {worker.link.fileno(): worker for worker in self._workers}
            if not links and left is None:
                return ()
            for end in wait_for([*links], left):
                assert isinstance(end, int)
                ended += self._hear(links[end])
            if left == 0.0:
                break
        return ended

    def _hear(self, worker: _Process) -> Iterator[Ended]:
        """Take what a worker says; one that says nothing more has ended."""
        try:
            message = worker.link.receive()
        except EOFError:
            yield from self._lose(worker)
            return
        match message:
            case Begun():
                worker.is_ready, self._false_starts = True, 0
            case Counted(count):
                worker.counted += count
                self._telling.progress(count)
            case Warned(text):
                self._telling.warn(text)
            case Done(result, error):
                work = worker.take()
                yield Ended(work, result, error.error() if error else None)

    def _lose(self, worker: _Process) -> Iterator[Ended]:
        """Take back the work of a worker that has ended: what it had counted will be counted again."""
        self._workers.remove(worker)
        self._telling.progress(-worker.counted)
        why = worker.end(time.monotonic() + GRACE)
        if not worker.is_ready:
            self._false_starts += 1
            if self._false_starts >= FALSE_STARTS:
                raise SurroundingsError(f"worker processes end before they are ready: {why}")
        if worker.work is not None:
            yield Ended(worker.work, lost=why)


@dataclass(slots=True)
class _Process:
    """Hold a worker, the work it has, and how many bytes of that it has counted."""

    process: subprocess.Popen[bytes]
    link: Link
    work: Work | None = None
    counted: int = 0
    is_ready: bool = False

    @classmethod
    def start(cls) -> Self:
        """Start a worker. Signals must be held: until it is ready to ignore them, a Ctrl-C would end it."""
        here, there = socket.socketpair()
        with here, there:
            command = [sys.executable, "-P", "-c", START, json.dumps(sys.path), str(there.fileno())]
            environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    pass_fds=[there.fileno()],
                )
            except OSError as error:
                raise SurroundingsError(f"no worker process can be started: {error.strerror}") from None
            link = Link(here)
        worker = cls(process, link)
        with suppress(OSError):  # a worker that has ended is found out by its silence
            link.send(Begun(are_options()))
        return worker

    def give(self, work: Work) -> None:
        """Hand a piece of work to the worker."""
        self.work, self.counted = work, 0
        with suppress(OSError):
            self.link.send(work)

    def take(self) -> Work:
        """Take the finished piece of work from the worker."""
        work, self.work, self.counted = self.work, None, 0
        assert work is not None
        return work

    def end(self, until: float) -> str:
        """Wait for the worker's end, and no longer than `until`; say how it ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(until - time.monotonic(), 0.0))
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.link.close()
        code = self.process.returncode
        return f"signal {-code} ended it" if code < 0 else f"it ended with code {code}"
