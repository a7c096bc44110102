"""Which ranges of a file are as they stay, so that whoever follows it reads nothing that is written again."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

FOLLOWED: Final = 4 << 20
"""Bytes that are followed at a time."""


class Finished:
    """Keep track of the finished ranges of one file, and of how far they reach without a gap."""

    def __init__(self) -> None:
        self._starts: list[int] = []  # of ranges without a gap, in order
        self._stops: list[int] = []
        self._news = threading.Condition()

    @property
    def _reach(self) -> int:
        return self._stops[0] if self._starts[:1] == [0] else 0

    def add(self, start: int, stop: int) -> None:
        """Note a range; raise RuntimeError if any of it is noted already: what follows the file may have read it."""
        if start == stop:
            return
        with self._news:
            place = bisect_right(self._starts, start)
            before = self._stops[place - 1] if place else 0
            after = self._starts[place] if place < len(self._starts) else stop
            if start < before or after < stop:
                raise RuntimeError(f"bytes {start} to {stop} of an output are finished twice")
            reach = self._reach
            joins_before, joins_after = place > 0 and before == start, place < len(self._starts) and after == stop
            if joins_before and joins_after:
                self._stops[place - 1] = self._stops.pop(place)
                del self._starts[place]
            elif joins_before:
                self._stops[place - 1] = stop
            elif joins_after:
                self._starts[place] = start
            else:
                self._starts.insert(place, start)
                self._stops.insert(place, stop)
            if self._reach > reach:
                self._news.notify_all()

    def check(self, size: int) -> None:
        """Raise RuntimeError unless all bytes below `size` are finished, and no others."""
        with self._news:
            ranges = list(zip(self._starts, self._stops, strict=True))
        if ranges != ([(0, size)] if size else []):
            raise RuntimeError(f"an output of {size} bytes was written in these ranges alone: {ranges[:9]}")

    def follow(self, size: int, stop: threading.Event, step: int = FOLLOWED) -> Iterator[tuple[int, int]]:
        """Yield consecutive ranges, about `step` bytes each, as they are finished, up to `size`."""
        position = 0
        while position < size:
            with self._news:
                while self._reach < min(position + step, size) and not stop.is_set():
                    self._news.wait(0.1)
                reach = self._reach
            if stop.is_set():
                return
            yield position, reach
            position = reach
