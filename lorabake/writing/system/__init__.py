"""The system calls that writing takes. Each platform has a file of its own; nothing else in writing knows which.

A file for another platform defines the functions that are imported here, each with the meaning that its docstring in
`posix` has, and takes the place of `elsewhere` there. What a system or a file system lacks, the file itself makes up
for, or says so by what it returns.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("fcntl"):  # on every POSIX system
    from lorabake.writing.system.posix import (
        copy_range,
        exchange,
        fsync,
        fsync_folder,
        is_ours,
        lock,
        names_in,
        open_again,
        open_folder,
        open_new,
        remove,
        rename_new,
        reserve,
        share_range,
        start_writeback,
        write_all,
    )
else:
    from lorabake.writing.system.elsewhere import (
        copy_range,
        exchange,
        fsync,
        fsync_folder,
        is_ours,
        lock,
        names_in,
        open_again,
        open_folder,
        open_new,
        remove,
        rename_new,
        reserve,
        share_range,
        start_writeback,
        write_all,
    )

__all__ = [
    "copy_range",
    "exchange",
    "fsync",
    "fsync_folder",
    "is_ours",
    "lock",
    "names_in",
    "open_again",
    "open_folder",
    "open_new",
    "remove",
    "rename_new",
    "reserve",
    "share_range",
    "start_writeback",
    "write_all",
]
