"""Write a small file, such as a report, whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Put content into a file; a disk that is full leaves an older file as it was, and no part of a new one.

    What is no regular file, such as /dev/stdout, is written to as it is. Raise OSError where it cannot be done.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    place = Path(os.path.realpath(path))  # a link stays a link
    partial = place.with_name(f".lorabake.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, place)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
