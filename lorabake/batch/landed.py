"""Tell what the receipts of an output cover together, as often as somebody asks; each receipt is read once."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from lorabake.batch.parts import Coverage, is_covered
from lorabake.batch.receipts import BROKEN, Ground, Receipt, changed, folder_of, read
from lorabake.execution.agenda import Computed, Place, Share
from lorabake.planning import Plan
from lorabake.planning.steps import Step
from lorabake.writing.output import Output
from lorabake.writing.ranges import Ranges

Key = tuple[int, int, int]
"""A file's inode, size and time of change: one that replaces it has another."""

DAMAGED = "a receipt is damaged"


@dataclass(frozen=True, slots=True)
class _Read:
    """Hold the receipt that a file had when it had a key; None for a file that is no receipt.

    Without a key the system refused, and may not do so another time.
    """

    key: Key | None
    receipt: Receipt | None


class Landed:
    """Hold what one process has read of an output's receipts, whichever way it opens the output each time.

    `ground` is what the output is made of. One thread at a time may look.
    """

    def __init__(self, plan: Plan, ground: Ground) -> None:
        self.plan, self.ground = plan, ground
        self._steps = {step.number: step for step in plan.steps}
        self._read: dict[str, _Read] = {}
        self._whole: frozenset[int] = frozenset()
        self._counted = _Counted(plan, ground, self._steps, self._whole)

    def look(self, output: Output, *, recheck: bool = False) -> tuple[Coverage, dict[Path, str]]:
        """Return what the receipts cover that count, and why each of the others does not.

        One does not count if it is damaged, if it is of another recipe, input or version, or if a file that it speaks
        of is not there in its full size. With `recheck`, the data is read, and must have the digests.
        """
        whole = output.weights.whole()
        output.weights.join(whole)
        folder = folder_of(output)
        found = {name: self._read_at(folder, name, key) for name, key in _keys(folder)}
        new = {name: each for name, each in found.items() if self._read.get(name) is not each}
        is_more = whole == self._whole and len(found) == len(self._read) + len(new)
        if recheck or not is_more or not all(self._counted.count(name, each.receipt) for name, each in new.items()):
            check = _Digests(output, found.values()).difference if recheck else _unchecked
            self._counted = _Counted(self.plan, self.ground, self._steps, whole, check)
            for name, each in found.items():  # of two that speak of the same bytes, the first by its name counts
                self._counted.count(name, each.receipt)
        self._read, self._whole = found, whole
        return self._counted.coverage, {folder / name: why for name, why in self._counted.refused.items()}

    def _read_at(self, folder: Path, name: str, key: Key | None) -> _Read:
        known = self._read.get(name)
        if known is not None and key is not None and known.key == key:
            return known
        try:
            receipt = read(folder / name)
        except OSError:
            return _Read(None, None)
        except BROKEN:
            return _Read(key, None)
        return _Read(key, replace(receipt, ground=self.ground) if receipt.ground == self.ground else receipt)


def _keys(folder: Path) -> Iterator[tuple[str, Key | None]]:
    """Yield the names of receipts in a folder, in order, with their keys; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: _key(entry) for entry in entries if entry.name.endswith(".json")}
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from sorted(found.items())


def _key(entry: os.DirEntry[str]) -> Key | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _unchecked(_: Receipt) -> None:
    """Find no fault."""


class _Counted:
    """Gather what receipts cover, one after the other, and why some do not count; `check` finds faults of its own."""

    def __init__(
        self,
        plan: Plan,
        ground: Ground,
        steps: Mapping[int, Step],
        whole: frozenset[int],
        check: Callable[[Receipt], str | None] = _unchecked,
    ) -> None:
        self.refused: dict[str, str] = {}
        self._plan, self._ground, self._steps, self._whole, self._check = plan, ground, steps, whole, check
        self._computed: dict[int, Computed] = {}
        self._ranges = defaultdict[int, Ranges](Ranges)

    @property
    def coverage(self) -> Coverage:
        """Return what those cover that count."""
        places = ((file, *each) for file in sorted(self._ranges) for each in self._ranges[file])
        return Coverage(dict(self._computed), tuple(places))

    def count(self, name: str, receipt: Receipt | None) -> bool:
        """Tell whether a receipt counts, beside those that do; if so, take it in."""
        why: str | None = DAMAGED
        if receipt is not None:
            places = receipt.places
            with suppress(*BROKEN):
                why = self._doubt(receipt, places) or self._check(receipt)
            if why is None:
                self._computed |= receipt.computed
                for file, start, stop in places:
                    self._ranges[file].add(start, stop)
        if why is not None:
            self.refused[name] = why
        return why is None

    def _doubt(self, receipt: Receipt, own: Sequence[Place]) -> str | None:
        """Return why a receipt with these ranges does not count; None if it does."""
        if (other := changed(self._ground, receipt.ground)) is not None:
            return other
        if any(file not in self._whole for file, _, _ in own):
            return "a file is gone, or has another size"
        if any(not 0 <= start < stop <= self._plan.files[file].data_size for file, start, stop in own):
            return "a receipt speaks of bytes that the output does not have"
        are_apart = all(one[0] != other[0] or one[2] <= other[1] for one, other in pairwise(own))
        are_free = all(self._ranges[file].is_free(start, stop) for file, start, stop in own)
        if not (are_apart and are_free and receipt.computed.keys().isdisjoint(self._computed)):
            return "two receipts speak of the same bytes"
        written = Share(steps=tuple(self._steps[number] for number in receipt.computed)).places
        return None if all(is_covered(place, own) for place in written) else DAMAGED


class _Digests:
    """Compare receipts with the data; what is read for the digest before one place is not read again for another."""

    def __init__(self, output: Output, found: Iterable[_Read]) -> None:
        self._weights, self._files = output.weights, output.plan.files
        self._ends = defaultdict[int, set[int]](set)
        for file, _, stop in (each.place for one in found if one.receipt is not None for each in one.receipt.ranges):
            self._ends[file].add(stop)
        self._known: dict[int, dict[int, str]] = {}

    def difference(self, receipt: Receipt) -> str | None:
        """Say that the data is not what a receipt says; None if it is."""
        for each in receipt.ranges:
            file, start, stop = each.place
            now = (
                self._before(file, stop)
                if receipt.from_start
                else self._weights.sha256(file, start, stop, threading.Event())
            )
            if now != each.sha256:
                return "the bytes are no longer those of the receipt"
        return None

    def _before(self, file: int, stop: int) -> str:
        """Return the SHA-256 of a file's data before `stop`, an end of a range of some receipt."""
        if file not in self._known:
            size = self._files[file].data_size
            self._known[file] = self._weights.sha256_at(file, (end for end in self._ends[file] if 0 < end <= size))
        return self._known[file].get(stop, "")
