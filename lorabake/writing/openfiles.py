"""Keep as many files open as the system allows; reopen the others when they are used."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from lorabake.errors import LorabakeError
from lorabake.machine import open_files_allowed


@dataclass(slots=True)
class _Lent(AbstractContextManager[int]):
    """Hold the descriptor of a file, and how many use it at the moment; leaving it counts one user less."""

    fd: int
    turn: threading.Lock
    users: int = 0

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        with self.turn:
            self.users -= 1


class OpenFiles:
    """Lend descriptors to several threads; `opener` opens a file, `worded` words why one can't be opened."""

    def __init__(self, opener: Callable[[Path], int], worded: Callable[[Path, OSError], LorabakeError]) -> None:
        self._opener, self._worded = opener, worded
        self._lent: dict[Path, _Lent] = {}  # the one used last comes last
        self._turn = threading.Lock()
        self._most = open_files_allowed()

    def open(self, path: Path) -> AbstractContextManager[int]:
        """Lend the descriptor of a file, for a `with`; raise a LorabakeError where it cannot be opened."""
        with self._turn:
            lent = self._lent.pop(path, None)
            if lent is None:
                while len(self._lent) >= self._most and self._close_one():
                    pass
                lent = _Lent(self._opened(path), self._turn)
            self._lent[path] = lent
            lent.users += 1
        return lent

    def _opened(self, path: Path) -> int:
        while True:
            try:
                return self._opener(path)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._close_one():
                    raise self._worded(path, error) from None

    def _close_one(self) -> bool:
        """Close the file that nobody has used for the longest time; tell whether there was one."""
        idle = next((path for path, lent in self._lent.items() if not lent.users), None)
        if idle is not None:
            os.close(self._lent.pop(idle).fd)
        return idle is not None

    def close(self) -> None:
        """Close every file; raise OSError where the system says that one was not written, after closing all."""
        failure: OSError | None = None
        while self._lent:
            try:
                os.close(self._lent.popitem()[1].fd)
            except OSError as error:
                failure = error
        if failure is not None:
            raise failure
