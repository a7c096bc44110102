"""Read bytes of inputs: what is at a path, whether it changed, and the stored bytes of a tensor."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from lorabake.errors import FileError
from lorabake.machine import unreadable
from lorabake.tensors.header import Fingerprint, TensorInfo


def read_stored(info: TensorInfo, start: int = 0, count: int | None = None) -> bytes:
    """Read a tensor's stored bytes, or `count` of them from `start`; raise FileError if that fails."""
    count = info.nbytes - start if count is None else count
    try:
        with open(info.file, "rb") as stream:
            stream.seek(info.start + start)
            raw = stream.read(count)
    except (OSError, ValueError) as error:
        raise unreadable(info.file, error) from None
    if len(raw) < count:
        raise FileError(f"{info.file}: became shorter while it was read")
    return raw


def fingerprint(path: Path | int) -> Fingerprint:
    """Return what identifies a file's version; it also changes if a program sets the file's times back.

    `path` may be an open descriptor. Raise FileError if the file cannot be reached.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return fingerprint_of(status)


def fingerprint_of(status: os.stat_result) -> Fingerprint:
    """Return the fingerprint in a status."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def sha256_of(path: Path) -> str:
    """Take the SHA-256 of a whole file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_there(path: Path) -> bool:
    """Tell whether anything has this name, even a link to nothing or a file that cannot be read.

    Raise FileError if the system does not tell.
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
