"""The system calls that reading takes. Nothing else that reads asks for more than Python has on every platform."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def open_to_read(path: Path | str) -> int:
    """Open a file for reading."""
    return os.open(path, os.O_RDONLY)


def open_without_waiting(path: Path | str) -> int:
    """Open for reading what may be a pipe, whose other end is not waited for."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))


def read_at(fd: int, into: memoryview, position: int) -> int:
    """Fill a buffer with bytes from a position, from any thread; return how many there were, 0 at the file's end."""
    return os.preadv(fd, [into], position)


def bytes_at(fd: int, count: int, position: int) -> bytes:
    """Return bytes from a position, from any thread: fewer than `count` only where the system gives fewer."""
    return os.pread(fd, count, position)


def path_of(fd: int) -> str:
    """Name an open file that has no name of its own, as long as it is open."""
    folder = "/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd"
    return f"{folder}/{fd}"


def wait_for_lock(fd: int) -> None:
    """Lock an open file for this process, once no other has it; do nothing where there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX)
