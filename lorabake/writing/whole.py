"""Write a small file, such as a report, whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write content to a file; a full disk leaves the old file as it was, and no partial new one.

    Special files such as /dev/stdout are written directly. Raise OSError if writing fails.
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
