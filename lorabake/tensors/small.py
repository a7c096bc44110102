"""Read a file that should be small: a regular file of bounded size, or one clear error."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO, cast

from lorabake.errors import FileError
from lorabake.machine import unreadable
from lorabake.tensors.header import Fingerprint
from lorabake.tensors.reader import fingerprint
from lorabake.tensors.system import open_without_waiting

MIB = 1 << 20
MAX_CONFIG = 16 * MIB
"""Most bytes of a configuration; the largest known ones have less than 1 MiB."""

MAX_INDEX = 100 * MIB
"""Most bytes of an index of shards; it names every tensor, as a header does."""


MAX_NESTING = 100
"""Most levels of lists and mappings in JSON; configurations have fewer than ten."""


_NOTED: ContextVar[dict[Path, Fingerprint] | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[dict[Path, Fingerprint]]:
    """Collect the fingerprints of the small files, such as configurations, that are read inside the `with` block."""
    noted: dict[Path, Fingerprint] = {}
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


def note(read: Mapping[Path, Fingerprint]) -> None:
    """Add small files that were read before to those of the `noting` block around."""
    if (noted := _NOTED.get()) is not None:
        for path, identity in read.items():
            noted.setdefault(path, identity)


def open_regular(path: Path | str) -> BinaryIO:
    """Open a regular file; raise FileError for pipes, devices and the like, OSError for other failures.

    The type is checked again after opening, so that a pipe that replaces the file in between cannot block.
    """
    _check_regular(path, os.stat(path))
    stream = os.fdopen(open_without_waiting(path), "rb")
    try:
        _check_regular(path, os.fstat(stream.fileno()))
    except FileError:
        stream.close()
        raise
    return stream


def read_small(path: Path | str, limit: int = MAX_CONFIG, what: str = "a configuration") -> bytes:
    """Return a regular file's bytes; raise FileError for what is none or larger, OSError as the system does."""
    with open_regular(path) as stream:
        if _NOTED.get() is not None:
            note({Path(path): fingerprint(stream.fileno())})
        raw = cast(bytes | None, stream.read(limit + 1))
    if raw is None:  # a file of the system's that would wait
        raise FileError(f"{path}: is not a regular file")
    if len(raw) > limit:
        raise FileError(f"{path}: larger than {limit} bytes, so it is hardly {what}")
    return raw


def content_of(path: Path, limit: int = MAX_CONFIG) -> bytes:
    """Return a regular file's bytes; raise FileError or SurroundingsError where they cannot be read.

    This is how small files are read. `read_small` is for who has words of his own for what the system refuses.
    """
    try:
        return read_small(path, limit)
    except OSError as error:
        raise unreadable(path, error) from None


def parse_json(text: str | bytes) -> object:
    """Parse JSON that another program wrote; raise ValueError if it is not JSON, or nested too deeply.

    Numbers that JSON lacks, such as NaN, become texts. The depth is small enough for recursive code.
    """
    try:
        value: object = json.loads(text, parse_constant=str)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_depth(value)
    return value


def json_or_text(text: str) -> object:
    """Return what a text says in JSON; the text itself where it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def check_depth(value: object) -> None:
    """Raise ValueError for lists and mappings nested more than MAX_NESTING deep."""
    level = [value]
    for _ in range(MAX_NESTING):
        nested = (container for container in level if isinstance(container, (dict, list)))
        inner = [container.values() if isinstance(container, dict) else container for container in nested]
        level = [part for container in inner for part in container]
        if not level:
            return
    raise ValueError("nested too deeply")


def holds(path: Path, content: bytes) -> bool:
    """Tell whether a regular file holds just these bytes; raise as content_of does."""
    try:
        with open_regular(path) as stream:
            return stream.read(len(content) + 1) == content
    except OSError as error:
        raise unreadable(path, error) from None


def _check_regular(path: Path | str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{path}: is not a regular file")
