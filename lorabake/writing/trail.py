"""Hash a file's data in order while it grows, and keep what the digest was at places that somebody asks for."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable

from lorabake.tensors.system import read_at

PIECE = 1 << 20
"""Bytes that are hashed at a time."""


class Trail:
    """Hold the SHA-256 of a file's data as far as it was followed, and at the marks on the way."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._marks: list[int] = []  # the next one is the last
        self._passed: dict[int, str] = {}
        self._news = threading.Condition()

    def mark(self, stops: Iterable[int]) -> None:
        """Keep the digest of all data before each of these places; call it before the file is followed."""
        self._marks = sorted({*self._marks, *stops}, reverse=True)

    def before(self, stop: int, given_up: threading.Event) -> str:
        """Wait until the file was followed to a mark; return the SHA-256 of all data before it, "" if given up."""
        with self._news:
            while stop not in self._passed and not given_up.is_set():
                self._news.wait(0.1)
        return self._passed.get(stop, "")

    def follow(self, fd: int, begin: int, start: int, end: int, given_up: threading.Event) -> bool:
        """Hash bytes `start` to `end` of the data, which begin at `begin`; return False if the file is shorter."""
        buffer = memoryview(bytearray(PIECE))
        while start < end and not given_up.is_set():
            until = min(end, self._marks[-1]) if self._marks else end
            count = read_at(fd, buffer[: until - start], begin + start)
            if count == 0:
                return False
            self._digest.update(buffer[:count])
            start += count
            if self._marks and start == self._marks[-1]:
                with self._news:
                    self._passed[self._marks.pop()] = self.sha256
                    self._news.notify_all()
        return True

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of what was followed so far."""
        return self._digest.copy().hexdigest()
