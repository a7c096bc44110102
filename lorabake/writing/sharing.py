"""Share the folder in which an output is made: begin it, find it, take over one that a bake of its own left.

A shared folder holds a file that says which output it is for. It gets its name with that file in it, so that nobody
sees it without. Who shares it locks it against bakes that want it alone, where the file system has locks.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
from pathlib import Path
from secrets import token_hex
from typing import Final

from lorabake.errors import FileError
from lorabake.tensors.small import read_small
from lorabake.writing.commit import complete
from lorabake.writing.journal import MARK, RECEIPTS, SHARED, text_of
from lorabake.writing.partial import Partial, partial_of
from lorabake.writing.system import fsync_folder, names_in, open_new, remove, rename_new, write_all

_TOKEN: Final = 8
"""Bytes in the name of a folder that has not got its own name yet."""

MOST_BYTES: Final = 4096


def is_shared(target: Path, said: str) -> bool:
    """Tell whether the folder of a target is there, and shared for the output that `said` names."""
    try:
        return read_small(partial_of(target) / RECEIPTS / SHARED, MOST_BYTES) == said.encode()
    except (FileError, OSError):
        return False


def begin(target: Path, said: str) -> bool:
    """Make a shared folder; return False where another process has made the folder meanwhile.

    Raise OSError if the system refuses.
    """
    path = partial_of(target)
    place = path.with_name(f"{path.name}.{token_hex(_TOKEN)}")
    place.mkdir()
    try:
        _write(place / MARK, text_of([]))
        (place / RECEIPTS).mkdir()
        _write(place / RECEIPTS / SHARED, said.encode())
        rename_new(place, path)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    for name in glob.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 2 * _TOKEN}", root_dir=path.parent):
        shutil.rmtree(path.parent / name, ignore_errors=True)  # of a process that was killed, or comes too late
    return True


def take_over(target: Path, said: str) -> None:
    """Share a folder that a bake left; complete its moves if it was killed in the middle of them.

    Raise TargetError where that bake, or another one, may still run, and for a folder of a stranger's.
    """
    partial = Partial(target)
    partial.hold()
    try:
        found = names_in(partial.fd)
        if not found:  # it went, and holding it has made it anew
            partial.path.rmdir()
            return
        if moves := partial.moves_begun(found):
            complete(moves)
            fsync_folder(target.parent)
            partial.remove()
            return
        partial.receipts.mkdir(exist_ok=True)
        for path in partial.receipts.iterdir():
            if not path.name.endswith(".json"):
                remove(path)
        _write(partial.receipts / f"{SHARED}.new", said.encode())
        os.rename(partial.receipts / f"{SHARED}.new", partial.receipts / SHARED)
    finally:
        partial.leave()


def _write(path: Path, content: bytes) -> None:
    fd = open_new(path)
    try:
        write_all(fd, memoryview(content), 0)
    finally:
        os.close(fd)
