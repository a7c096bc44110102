"""Give a file of the base a further name in an output (a hard link), or copy it where there can be no link."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from lorabake.errors import FileError
from lorabake.machine import unreadable
from lorabake.planning.files import OutputFile
from lorabake.tensors.header import Header
from lorabake.tensors.reader import fingerprint, fingerprint_of
from lorabake.tensors.system import open_to_read, read_at
from lorabake.writing.inputs import linking
from lorabake.writing.system import copy_range, fsync, open_new, share_range, write_all

CHUNK: Final = 4 << 20
"""Bytes that are copied at a time."""

NO_LINKS: Final = {
    errno.EXDEV,
    errno.EPERM,
    errno.EACCES,
    errno.EMLINK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
}
"""What a system answers where a file cannot have a further name: another disk, no right to it, too many names."""


def link_or_copy(twin: Header, place: Path, *, durable: bool) -> OSError | None:
    """Make a file of the base appear at a place; return why it is a copy, or None for a link.

    The base's file itself is never written, and keeps its times of change of content. Raise FileError if it is not
    the planned one any more.
    """
    place.unlink(missing_ok=True)
    why: OSError | None = None
    try:
        with linking([twin.path]):
            os.link(os.path.realpath(twin.path), place)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        why = error
        _copy(twin, place)
    else:
        _check(twin, fingerprint(place))
    if durable:
        fsync(place)
    return why


def linked_in(files: Iterable[OutputFile], root: Path) -> Iterator[Path]:
    """Yield the base's files to which the output at `root` has links: they are what is in it, whatever they are."""
    for file in files:
        with suppress(OSError):
            if file.link is not None and os.path.samefile(root / file.name, file.link.path):
                yield file.link.path


def _copy(twin: Header, place: Path) -> None:
    try:
        source = open_to_read(twin.path)
    except OSError as error:
        raise unreadable(twin.path, error) from None
    try:
        target = open_new(place)
        try:
            if not share_range(source, target, 0, 0, 0):  # all of it
                _copy_bytes(twin, source, target)
        finally:
            os.close(target)
        _check(twin, fingerprint_of(os.fstat(source)))
    finally:
        os.close(source)


def _copy_bytes(twin: Header, source: int, target: int) -> None:
    done, buffer = 0, memoryview(bytearray(CHUNK))
    while done < twin.size:
        count = copy_range(source, target, min(CHUNK, twin.size - done), done, done)
        if count is None:
            try:
                count = read_at(source, buffer[: twin.size - done], done)
            except OSError as error:
                raise unreadable(twin.path, error) from None
            write_all(target, buffer[:count], done)
        if count == 0:
            raise FileError(f"{twin.path}: became shorter while it was read")
        done += count


def _check(twin: Header, seen: tuple[int, ...]) -> None:
    """Raise FileError unless a file is the planned one; a link changes the time of its status alone."""
    if seen[:4] != twin.identity[:4]:
        raise FileError(f"{twin.path}: changed while it was read; nothing was written", "Run the bake again.")
