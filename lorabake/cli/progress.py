"""Show how far long work is, on stderr."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from typing import Any

from lorabake.cli.heartbeat import Heartbeat
from lorabake.interrupts import held
from lorabake.progress import Progress

REDRAWN = 1.0
"""Seconds after which a bar is drawn again, whether or not something was finished."""


class Bar(Progress):
    """Show how far the work is: a bar in a terminal, elsewhere a line now and then; nothing unless `shown` is set.

    A thread draws the bar again each second, so that its time and estimate go on while a large tensor takes long.
    """

    def __init__(self, *, shown: bool = True) -> None:
        super().__init__(shown=shown and sys.stderr.isatty())
        self._heartbeat = Heartbeat() if shown and not self._is_shown else None
        self._removed = threading.Event()

    def begin(self, what: str, total: int, unit: str = "B") -> None:
        """Start a new bar in place of the last one; a total of 0 shows none."""
        if self._heartbeat is not None:
            self._heartbeat.begin(what, total)
        super().begin(what, total, unit)

    def step(self, done: int, total: int, label: str) -> None:
        """Show that `done` of `total` steps are finished, and what is being made."""
        if self._heartbeat is not None:
            self._heartbeat.reach(label, done, total)
        else:
            super().step(done, total, label)

    def remove(self) -> None:
        """Take the bar away, so that lines can be printed; the next part of the work has a new one."""
        self._removed.set()
        super().remove()

    def close(self) -> None:
        """Remove the bar, and print no more lines."""
        super().close()
        if self._heartbeat is not None:
            self._heartbeat.stop()

    def _drawn(self, **settings: Any) -> Any:
        from tqdm import tqdm

        # Without smoothing, the estimate is by the average rate, which falls while nothing is finished.
        bar = tqdm(**settings, smoothing=0, miniters=1)
        self._removed = threading.Event()
        thread = threading.Thread(target=self._redraw, args=(bar, self._removed), daemon=True)
        with held(), suppress(RuntimeError):  # a machine without a thread to spare still works
            thread.start()
        return bar

    def _count(self, count: int) -> None:
        super()._count(count)
        if self._bar is not None and self._bar.n >= self._bar.total:
            self._bar.set_description("finishing")
        if self._heartbeat is not None:
            self._heartbeat.advance(count)

    def _redraw(self, bar: Any, removed: threading.Event) -> None:
        while not removed.wait(REDRAWN):
            with self._lock:
                if self._bar is bar:
                    bar.refresh()
