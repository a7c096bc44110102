"""Small files beside an output that is not complete: each has a digest of itself, and its name once it is whole."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Final

from lorabake.tensors.small import parse_json, read_small
from lorabake.writing.system import fsync_folder, open_new, write_all

MOST_BYTES: Final = 64 << 20
"""Bytes of a note, at most."""


def sha256_of(said: object) -> str:
    """Digest what can be written as JSON."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def put(place: Path, kind: str, said: object, *, durable: bool) -> None:
    """Write a note of a kind; whoever sees its name finds it whole. Its folder is made if need be.

    Raise OSError if the system refuses.
    """
    place.parent.mkdir(exist_ok=True)
    new = place.with_name(f"{place.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    fd = open_new(new)
    try:
        write_all(fd, memoryview(json.dumps({kind: said, "sha256": sha256_of(said)}).encode()), 0)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(new, place)
    if durable:
        fsync_folder(place.parent)


def taken(place: Path, kind: str) -> dict[str, object]:
    """Read a note of a kind; raise ValueError, KeyError, FileError or OSError for what `put` did not write."""
    whole = parse_json(read_small(place, MOST_BYTES))
    if not isinstance(whole, dict) or not isinstance(whole[kind], dict) or whole["sha256"] != sha256_of(whole[kind]):
        raise ValueError(f"no {kind}")
    said: dict[str, object] = whole[kind]
    return said
