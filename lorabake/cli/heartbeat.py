"""Show that work goes on where there is no terminal: a line every half a minute, for logs that people watch."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from lorabake.cli.terminal import echo
from lorabake.interrupts import held

PERIOD = 30.0
"""Seconds between two lines."""


class Heartbeat:
    """Print what the work is at, and how long it has taken so far, from a thread of its own."""

    def __init__(self) -> None:
        self._what, self._done, self._total = "", 0, 0
        self._began = time.monotonic()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, what: str, total: int) -> None:
        """Name a new part of the work; a total of 0 is unknown."""
        self._what, self._done, self._total = what, 0, total
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            with held(), suppress(RuntimeError):  # a machine without a thread to spare still works
                self._thread.start()

    def reach(self, what: str, done: int, total: int) -> None:
        """Say what the work is at, and how much of the total is done."""
        self._what, self._done, self._total = what, done, total

    def advance(self, count: int) -> None:
        """Count what was done."""
        self._done += count

    def stop(self) -> None:
        """Print no more."""
        self._is_over.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        while not self._is_over.wait(PERIOD):
            share = f", {min(self._done / self._total, 1):.0%}" if self._total else ""
            echo(f"still at work: {self._what}{share}, {duration(time.monotonic() - self._began)} so far", err=True)


def duration(seconds: float) -> str:
    """Word a time as people say it: 45 s, 2 min 5 s, 1 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
