"""Find the nearest name, for a hint in a message. It must be cheap even for very many names.

An index of words selects a few candidates, and difflib chooses among them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from heapq import nsmallest
from itertools import islice
from math import log

MOST = 100_000
"""Most names in the index; a hint needs no more."""

FEW = 60
"""Most names that are compared letter by letter."""

LETTERS = 200
"""How many letters at a name's end are compared; names differ there."""


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name most similar to `name`; None if no similarity (0 to 1) reaches `cutoff`."""
    ends = {candidate[-LETTERS:]: candidate for candidate in reversed(Names(names).like(name))}
    close = get_close_matches(name[-LETTERS:], [*reversed(ends)], n=1, cutoff=cutoff)
    return ends[close[0]] if close else None


class Names:
    """Hold an index from words to names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = [*islice(dict.fromkeys(names), MOST)]
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for place, name in enumerate(self._names if len(self._names) > FEW else ()):
            for part in _parts(name):
                self._places[part].append(place)

    def like(self, name: str, is_wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
        """List the few names that share the most words with `name`; rare words weigh more than frequent ones."""
        if len(self._names) <= FEW:
            return [candidate for candidate in self._names if is_wanted(candidate)]
        scores: defaultdict[int, float] = defaultdict(float)
        looked_at = 0
        for places in sorted((self._places.get(part, []) for part in _parts(name)), key=len):
            if looked_at > MOST:
                break
            looked_at += len(places)
            weight = log(1 + len(self._names) / max(len(places), 1))
            for place in places:
                scores[place] += weight
        wanted = (place for place in scores if is_wanted(self._names[place]))
        best = nsmallest(FEW, wanted, key=lambda place: (-scores[place], abs(len(self._names[place]) - len(name))))
        return [self._names[place] for place in best]


def _parts(name: str) -> set[str]:
    """Return what similar names have in common: words, beginning and ending."""
    end = name[-LETTERS:]
    return {*re.split(r"[^a-zA-Z0-9]+", end), f"{end[:3]}…", f"…{end[-3:]}"}
