"""Which ranges of a file are as they stay, so that whoever follows it reads nothing that is written again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from lorabake.writing.ranges import Ranges

FOLLOWED: Final = 4 << 20
"""Bytes that are followed at a time."""


class Finished:
    """Keep track of the finished ranges of one file, and of how far they reach without a gap."""

    def __init__(self) -> None:
        self._ranges = Ranges()
        self._news = threading.Condition()

    def add(self, start: int, stop: int) -> None:
        """Note a range; raise RuntimeError if any of it is noted already: what follows the file may have read it."""
        with self._news:
            reach = self._ranges.reach
            try:
                self._ranges.add(start, stop)
            except ValueError:
                raise RuntimeError(f"bytes {start} to {stop} of an output are finished twice") from None
            if self._ranges.reach > reach:
                self._news.notify_all()

    def check(self, size: int) -> None:
        """Raise RuntimeError unless all bytes below `size` are finished, and no others."""
        with self._news:
            ranges = [*self._ranges]
        if ranges != ([(0, size)] if size else []):
            raise RuntimeError(f"an output of {size} bytes was written in these ranges alone: {ranges[:9]}")

    def follow(self, size: int, stop: threading.Event, step: int = FOLLOWED) -> Iterator[tuple[int, int]]:
        """Yield consecutive ranges, about `step` bytes each, as they are finished, up to `size`."""
        position = 0
        while position < size:
            with self._news:
                while self._ranges.reach < min(position + step, size) and not stop.is_set():
                    self._news.wait(0.1)
                reach = self._ranges.reach
            if stop.is_set():
                return
            yield position, reach
            position = reach
