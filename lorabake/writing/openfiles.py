"""Keep as many files open as the system allows; reopen the others when they are used."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lorabake.errors import LorabakeError
from lorabake.machine import open_files_allowed


class OpenFiles:
    """Lend descriptors to several threads; `opener` opens a file, `worded` words why one can't be opened."""

    def __init__(self, opener: Callable[[Path], int], worded: Callable[[Path, OSError], LorabakeError]) -> None:
        self._opener, self._worded = opener, worded
        self._fds: dict[Path, int] = {}  # the one used last comes last
        self._users: Counter[Path] = Counter()
        self._turn = threading.Lock()
        self._most = open_files_allowed()

    @contextmanager
    def open(self, path: Path) -> Iterator[int]:
        """Lend the descriptor of a file; raise a LorabakeError where it cannot be opened."""
        with self._turn:
            fd = self._fds.pop(path, None)
            if fd is None:
                while len(self._fds) >= self._most and self._close_one():
                    pass
                fd = self._opened(path)
            self._fds[path] = fd
            self._users[path] += 1
        try:
            yield fd
        finally:
            with self._turn:
                self._users[path] -= 1

    def _opened(self, path: Path) -> int:
        while True:
            try:
                return self._opener(path)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._close_one():
                    raise self._worded(path, error) from None

    def _close_one(self) -> bool:
        """Close the file that nobody has used for the longest time; tell whether there was one."""
        idle = next((path for path in self._fds if not self._users[path]), None)
        if idle is not None:
            os.close(self._fds.pop(idle))
        return idle is not None

    def close(self) -> None:
        """Close every file; raise OSError where the system says that one was not written, after closing all."""
        failure: OSError | None = None
        while self._fds:
            try:
                os.close(self._fds.popitem()[1])
            except OSError as error:
                failure = error
        if failure is not None:
            raise failure
