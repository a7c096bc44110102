"""The reader of bytes: what lies at a path, whether it changed, and the bytes of a tensor."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lorabake.errors import FileError
from lorabake.machine import unreadable
from lorabake.tensors.header import Fingerprint, TensorInfo


def read_stored(info: TensorInfo, start: int = 0, count: int | None = None) -> bytes:
    """Read a tensor's bytes, or `count` of them from `start`; raise FileError where they cannot be read."""
    count = info.nbytes - start if count is None else count
    try:
        with open(info.file, "rb") as stream:
            stream.seek(info.start + start)
            found = stream.read(count)
    except (OSError, ValueError) as error:
        raise unreadable(info.file, error) from None
    if len(found) < count:
        raise FileError(f"{info.file}: became shorter while it was read")
    return found


def fingerprint(path: Path | int) -> Fingerprint:
    """Return what changes when a file is replaced or written, also where its time of change was set back.

    `path` may be an open descriptor. Raise FileError where the file can't be reached.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return fingerprint_of(status)


def fingerprint_of(status: os.stat_result) -> Fingerprint:
    """Return the fingerprint that a status gives."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_there(path: Path) -> bool:
    """Tell whether anything has this name: what has it and cannot be read is a fault, a link to nothing, too.

    Raise FileError where that cannot be told.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return True


def is_folder(path: Path) -> bool:
    """Tell a folder from a file; raise FileError for a link to nothing, and for what is neither."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise FileError(f"{path}: is not a regular file")
    return stat.S_ISDIR(mode)
