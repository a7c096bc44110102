"""The system calls that writing takes on Linux and other POSIX systems, and what stands in where one is missing."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_AT_CWD: Final = -100
_NO_REPLACE: Final = 1
_EXCHANGE: Final = 2
_NO_SUCH_CALL: Final = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}
"""What a system or a file system answers that knows no such way to rename."""

NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What a file system without locks answers."""

NO_RANGE_COPY: Final = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
"""What a system or a file system answers that cannot copy from file to file."""

EITHER_SIDE: Final = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM}
"""What a copy in the kernel may say of what it reads and of what it writes: a copy by hand tells which."""


_SHARE_RANGE: Final = 0x4020940D
"""Linux' number for FICLONERANGE."""

_BTRFS: Final = 0x9123683E
"""Linux' number for a file system that keeps a reserved stretch whole as long as a byte of it is used."""


def open_new(path: Path) -> int:
    """Make a file, for reading and writing; raise FileExistsError where anything has its name."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def open_again(path: Path) -> int:
    """Open a file for reading and writing; raise OSError where its name is a link by now."""
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW)


def open_folder(path: Path) -> int:
    """Open a folder itself, so that it can be locked; raise OSError for a link."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def names_in(folder: int) -> set[str]:
    """Return the names in an open folder."""
    return {*os.listdir(folder)}


def is_ours(fd: int) -> bool:
    """Tell whether an open file or folder belongs to the user whose process this is."""
    return os.fstat(fd).st_uid == os.geteuid()


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; return False where the system cannot."""
    return _rename(one, other, _EXCHANGE)


def rename_new(source: Path, target: Path) -> None:
    """Rename; raise FileExistsError rather than replace anything, where the system can tell in the same step."""
    if not _rename(source, target, _NO_REPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)


def _rename(source: Path, target: Path, how: int) -> bool:
    libc = _libc()
    if libc is None or not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_CWD, os.fsencode(source), _AT_CWD, os.fsencode(target), how) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_SUCH_CALL:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def lock(fd: int, *, shared: bool = False) -> bool:
    """Lock a file or folder for this process; return False where the file system has no locks.

    A shared lock is against those alone that want it for themselves. Raise BlockingIOError if another process has it.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def reserve(fd: int, size: int) -> None:
    """Give a file its length, and its blocks on the disk where the file system can promise them.

    On btrfs they are not reserved: blocks shared with another file would not give back those that they replace.
    """
    libc = _libc()
    libc = None if libc is not None and _is_on_btrfs(libc, fd) else libc
    if libc is not None and size and libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(code, os.strerror(code))
    os.ftruncate(fd, size)


def _is_on_btrfs(libc: ctypes.CDLL, fd: int) -> bool:
    told = (ctypes.c_long * 32)()
    return bool(libc.fstatfs(fd, told) == 0 and told[0] == _BTRFS)


def start_writeback(fd: int, start: int, length: int) -> None:
    """Ask the system to begin writing a range to the disk, so that fsync has less to wait for."""
    libc = _libc()
    if libc is not None and hasattr(libc, "sync_file_range"):
        write = 2
        libc.sync_file_range(fd, ctypes.c_int64(start), ctypes.c_int64(length), write)


def copy_range(source: int, target: int, count: int, start: int, to: int) -> int | None:
    """Copy bytes of a file, `count` at most, into another in the kernel; return how many, 0 at the file's end.

    Return None where that cannot be, and where a failure may be of either file: a copy by hand tells which.
    """
    if not hasattr(os, "copy_file_range"):
        return None
    try:
        return os.copy_file_range(source, target, count, start, to)
    except OSError as error:
        if error.errno in NO_RANGE_COPY | EITHER_SIDE:
            return None
        raise


def share_range(source: int, target: int, count: int, start: int, to: int) -> bool:
    """Let a file have blocks of another in common (a reflink) until either is written; False where that cannot be.

    `start`, `to` and `count` are whole blocks of the file system. Then nothing is copied, and no room is taken.
    """
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(target, _SHARE_RANGE, struct.pack("qQQQ", source, start, count, to))
    except OSError:  # whatever it is, a copy says it, too, and of which file
        return False
    return True


def write_all(fd: int, data: memoryview, position: int) -> None:
    """Write bytes at a position; raise OSError if the system takes none of them."""
    done = 0
    while done < len(data):
        count = os.pwrite(fd, data[done:], position + done)
        if count == 0:
            raise OSError(errno.EIO, "the system wrote nothing")
        done += count


def fsync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's names."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_folder(path: Path) -> None:
    """Wait until the disk has a folder's names, where this process may ask for that."""
    with suppress(PermissionError):
        fsync(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
