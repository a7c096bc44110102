"""Where the links of a model's folder lead: what is copied from a folder comes from that folder.

A folder that somebody else made may hold a link to any file of this machine. Its side files go into the output as
they are, so a link that leads out of the folder is refused. A link that leads to another place of the same folder is
copied as what it points to. The Hugging Face cache is known: there a model's files are links to the blobs beside its
snapshots, `snapshots/REVISION/config.json -> ../../blobs/HASH`.

A hard link cannot be told from a file of the folder's own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lorabake.errors import FileError
from lorabake.machine import unreadable
from lorabake.tensors.reader import is_folder
from lorabake.tensors.small import open_regular

MOST = 20_000
"""Files and folders of one model: links to folders can name the same ones again and again."""

MAX_DEPTH = 32
"""Folders in folders."""


def listed(folder: Path) -> list[Path]:
    """List what is in a folder, in order; raise FileError where that cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from None


def files_below(root: Path) -> Iterator[Path]:
    """Yield the files in a folder and in all folders in it, also behind links, but for hidden ones.

    Raise FileError for a link to a folder that it lies in, for what is no regular file, and for more than a model can
    have; where that is behind a link that leads out of the folder, for the link.
    """
    path = root
    try:
        for count, path in enumerate(_below(root, _real(root), ())):
            if count == MOST:
                raise FileError(f"{root}: holds more than {MOST:,} files and folders, which no model does")
            if not is_folder(path):
                yield path
    except FileError:
        source_of(root, path)
        raise


def source_of(root: Path, path: Path) -> Path:
    """Return what a path in a folder is behind all links; raise FileError where that is out of the folder."""
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
    """Copy a file in a folder; raise FileError where it has become a link out of the folder, or no regular file."""
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
    """Yield all that is in a folder; `real` is what it is behind all links, `above` are those that it lies in."""
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
    """Return what a path is behind all links, there or not; raise FileError where they lead in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        raise FileError(f"{path}: cannot be read: {os.strerror(errno.ELOOP)}") from None


def _blobs(folder: Path) -> Path | None:
    """Return where the Hugging Face cache keeps the files of a snapshot; None for a folder that is in none.

    A model there is `models--OWNER--NAME/snapshots/REVISION`, its blobs are in `models--OWNER--NAME/blobs`.
    """
    for inner in (folder, *folder.parents):
        if inner.parent.name == "snapshots":
            return inner.parent.parent / "blobs"
    return None
