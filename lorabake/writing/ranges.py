"""Keep ranges of bytes in order, so that one more is looked up and added by bisection."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator


class Ranges:
    """Hold ranges that have no byte in common; those that follow each other are one.

    Iterating yields the first and last byte of each, in order.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._stops, strict=True)

    @property
    def reach(self) -> int:
        """Return how far they reach from 0 without a gap."""
        return self._stops[0] if self._starts[:1] == [0] else 0

    def is_free(self, start: int, stop: int) -> bool:
        """Tell whether no byte of a range is held."""
        return start == stop or self._is_free(bisect_right(self._starts, start), start, stop)

    def _is_free(self, place: int, start: int, stop: int) -> bool:
        """Answer for a range that would come right before the one at a place."""
        is_after = place == 0 or self._stops[place - 1] <= start
        return is_after and (place == len(self._starts) or stop <= self._starts[place])

    def add(self, start: int, stop: int) -> None:
        """Add a range; raise ValueError if any of it is held already."""
        if start == stop:
            return
        place = bisect_right(self._starts, start)
        if not self._is_free(place, start, stop):
            raise ValueError(f"some of bytes {start} to {stop} are held already")
        joins_before = place > 0 and self._stops[place - 1] == start
        joins_after = place < len(self._starts) and self._starts[place] == stop
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
