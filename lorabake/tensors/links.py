"""Follow the links in a model's folder, and make sure that copied files come from that folder.

A folder that somebody else made may hold a link to any file of this machine. Side files are copied into the output,
so a link that leads out of the folder is refused. A link to another place in the same folder is copied as the file
that it points to. The Hugging Face cache is an exception: there a model's files are links to blobs beside its
snapshots, `snapshots/REVISION/config.json -> ../../blobs/HASH`.

A hard link looks like any other file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lorabake.errors import FileError, LorabakeError
from lorabake.machine import unreadable
from lorabake.tensors.reader import is_folder
from lorabake.tensors.small import open_regular

MOST = 20_000
"""Most files and folders of one model; links to folders can repeat the same ones many times."""

MAX_DEPTH = 32
"""Most folders inside each other."""


def listed(folder: Path) -> list[Path]:
    """List what is in a folder, sorted; raise FileError if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from None


def files_below(root: Path) -> Iterator[Path]:
    """Yield all files below a folder, also behind links, except hidden ones.

    Raise FileError for a link to a folder around it, for what is not a regular file, and for too many files. If the
    fault is behind a link that leads out of the folder, report the link instead.
    """
    path = root
    try:
        for count, path in enumerate(_below(root, _real(root), ())):
            if count == MOST:
                raise FileError(f"{root}: holds more than {MOST:,} files and folders, which no model does")
            if not is_folder(path):
                yield path
    except LorabakeError:
        source_of(root, path)
        raise


def source_of(root: Path, path: Path) -> Path:
    """Resolve all links of a path in a folder; raise FileError if they lead out of the folder."""
    real, target = _real(root), _real(path)
    if target.is_relative_to(real) or target.parent == _blobs(real):
        return target
    steps = reversed([path, *path.parents][: len(path.relative_to(root).parts)])
    link = next(step for step in steps if not _real(step).is_relative_to(real))
    raise FileError(
        f"{link}: is a link to {_real(link)}, which is not in {root}",
        "What lies beside the weights is copied into the output. Put the file itself there, or remove the link.",
    )


def copy_file(root: Path, path: Path, place: Path) -> None:
    """Copy a file of a folder; raise FileError if it is now a link out of the folder, or not a regular file."""
    try:
        stream = open_regular(source_of(root, path))
    except OSError as error:
        raise unreadable(path, error) from None
    with stream, place.open("wb") as target:
        while piece := _piece(path, stream):
            target.write(piece)


def _piece(path: Path, stream: BinaryIO) -> bytes:
    try:
        return stream.read(1 << 20)
    except OSError as error:
        raise unreadable(path, error) from None


def _below(folder: Path, real: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield all entries below a folder; `real` is the folder without links, `above` are the folders around it."""
    if len(above) > MAX_DEPTH:
        raise FileError(f"{folder}: lies more than {MAX_DEPTH} folders deep, which no part of a model does")
    if real in above:
        raise FileError(f"{folder}: is a link to a folder that it lies in")
    for path in listed(folder):
        if not path.name.startswith("."):
            yield path
            if is_folder(path):
                inner = _real(real / path.name) if _is_link(path) else real / path.name
                yield from _below(path, inner, (*above, real))


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError as error:
        raise unreadable(path, error) from None


def _real(path: Path) -> Path:
    """Resolve all links of a path, even if it does not exist; raise FileError if they form a loop."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        raise FileError(f"{path}: cannot be read: {os.strerror(errno.ELOOP)}") from None


def _blobs(folder: Path) -> Path | None:
    """Return the folder of blobs that belongs to a snapshot in the Hugging Face cache; None for other folders.

    A snapshot is `models--OWNER--NAME/snapshots/REVISION`; its blobs are in `models--OWNER--NAME/blobs`.
    """
    for inner in (folder, *folder.parents):
        if inner.parent.name == "snapshots":
            return inner.parent.parent / "blobs"
    return None
