"""The system calls that writing takes. Each platform has a file of its own; nothing else in writing knows which.

A file for another platform defines the functions that are imported here, each with the meaning that its docstring in
`posix` has. What a system or a file system lacks, the file itself makes up for, or says so by what it returns.
"""

from __future__ import annotations

import os

from lorabake.errors import SurroundingsError

if os.name == "posix":
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
        start_writeback,
        write_all,
    )
else:
    raise SurroundingsError(
        f"lorabake cannot write on this system ({os.name})",
        "Linux and macOS can. What it takes elsewhere is one file beside lorabake/writing/system/posix.py.",
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
    "start_writeback",
    "write_all",
]
