"""Be a worker process: take pieces of work from the parent, one at a time, and end when the parent does."""

from __future__ import annotations

import gc
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from lorabake.batch.engines import Telling, Work
from lorabake.batch.engines.link import Begun, Counted, Link, Warned, done_by
from lorabake.interrupts import STOPPING
from lorabake.machine import GARBAGE
from lorabake.settings import as_options

OFTEN = 0.05
"""Seconds between two messages about finished bytes."""


def main(descriptor: int) -> None:
    """Work for the parent process at the other end of a socket until there is no more to do.

    A terminal sends Ctrl-C to every process. It is the parent's to hear, which ends its workers with SIGTERM.
    """
    for stopping in STOPPING:
        signal.signal(stopping, _interrupt if stopping == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    gc.set_threshold(GARBAGE)
    link = Link(socket.socket(fileno=descriptor))
    begun: Begun = link.receive()
    works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
    threading.Thread(target=_take, args=(link, works), daemon=True).start()
    counts = _Counts(link)
    with ExitStack() as stack:
        stack.enter_context(_ending_by_signal())
        if begun.as_options:
            stack.enter_context(as_options())
        link.send(begun)  # it is ready
        while (work := works.get()) is not None:
            done = done_by(work, Telling(counts.add, lambda text: link.send(Warned(text))))
            counts.flush()
            link.send(done)


@contextmanager
def _ending_by_signal() -> Iterator[None]:
    """End as a process does that SIGTERM ended, once the work has been put down."""
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _take(link: Link, works: queue.SimpleQueue[Work | None]) -> None:
    """Receive work until the parent is gone, and then end this process at once, whatever it is doing.

    What a killed worker leaves is what receipts are for.
    """
    try:
        while True:
            works.put(link.receive())
    except (EOFError, OSError):
        signal.raise_signal(signal.SIGKILL)


class _Counts:
    """Gather finished bytes, and tell of them now and then."""

    def __init__(self, link: Link) -> None:
        self._link, self._lock = link, threading.Lock()
        self._count, self._told = 0, 0.0

    def add(self, count: int) -> None:
        with self._lock:
            self._count += count
            if time.monotonic() - self._told < OFTEN:
                return
        self.flush()

    def flush(self) -> None:
        with self._lock:
            count, self._count, self._told = self._count, 0, time.monotonic()
        if count:
            self._link.send(Counted(count))
