"""Know files again that get or lose a name (a hard link) in this process: only the time of their status changes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorabake.errors import FileError
from lorabake.tensors.header import Fingerprint
from lorabake.tensors.reader import fingerprint
from lorabake.tensors.system import open_to_read
from lorabake.writing.system import remove

_renamed: dict[Fingerprint, Fingerprint] = {}
"""What a file was before this process gave it a name or took one away -> what it was then."""


@contextmanager
def known_again(file: Path | int) -> Iterator[None]:
    """Know a file again, at a path or behind a descriptor, that gets or loses a name inside the context."""
    was = _seen(file)
    try:
        yield
    finally:
        now = _seen(file)
        if was is not None and now is not None and was != now and was[:4] == now[:4]:
            _renamed[was] = now


def after_links(seen: Fingerprint) -> Fingerprint:
    """Return what a file is now, if nothing but names that this process gave or took has changed it since."""
    while seen in _renamed:
        seen = _renamed[seen]
    return seen


def remove_known(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there; a file with a further name is known again by that."""
    for place in _with_names(path):
        with suppress(OSError):  # `remove` says what cannot be removed
            fd = open_to_read(place)
            try:
                with known_again(fd):
                    place.unlink()
            finally:
                os.close(fd)
    remove(path)


def _with_names(path: Path) -> Iterator[Path]:
    """Yield the files at or below a path that have further names."""
    files = (Path(root, name) for root, _, names in os.walk(path) for name in names)
    for place in [*files] or [path]:
        with suppress(OSError):
            status = os.lstat(place)
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                yield place


def _seen(file: Path | int) -> Fingerprint | None:
    with suppress(FileError):
        return fingerprint(file)
    return None
