"""Give a file of the base a further name in an output (a hard link), or copy it where there can be no link."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from lorabake.errors import FileError
from lorabake.machine import folder_above
from lorabake.planning import Plan
from lorabake.planning.files import OutputFile
from lorabake.tensors.header import Header
from lorabake.tensors.reader import fingerprint
from lorabake.writing.copying import Range, copied
from lorabake.writing.inputs import Inputs
from lorabake.writing.names import known_again, remove_known
from lorabake.writing.system import fsync, open_new

NO_LINKS: Final = {
    errno.EXDEV,
    errno.EPERM,
    errno.EACCES,
    errno.EMLINK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
}
"""What a system answers where a file cannot have a further name: another disk, no right to it, too many names."""


def link_or_copy(twin: Header, place: Path, inputs: Inputs, *, durable: bool) -> OSError | None:
    """Make a file of the base, which is one of the inputs, appear at a place; return why it is a copy, or None.

    The base's file itself is never written, and keeps its times of change of content. Raise FileError if it is not
    the planned one any more.
    """
    remove_known(place)
    why: OSError | None = None
    try:
        with known_again(twin.path):
            os.link(os.path.realpath(twin.path), place)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        why = error
        _copy(twin, place, inputs)
    else:
        _check(twin, fingerprint(place))
    if durable:
        fsync(place)
    return why


def linkable(plan: Plan) -> list[OutputFile]:
    """List the files that are links to the base's, or would be on request: the base's lie on the output's disk."""
    disk = folder_above(plan.path).stat().st_dev
    return [file for file in plan.files if file.twin is not None and file.twin.identity[0] == disk]


def room_of(plan: Plan) -> int:
    """Count the bytes that the files with weights take on the output's disk: links take none."""
    return sum(file.size for file in plan.files) - sum(file.size for file in linkable(plan) if file.is_linked)


def saving_of(plan: Plan) -> int:
    """Count the bytes that links save or would save: what these files take where they are none."""
    return sum(replace(file, is_linked=False).size for file in linkable(plan))


def linked_in(files: Iterable[OutputFile], root: Path) -> Iterator[Path]:
    """Yield the base's files to which the output at `root` has links: they are what is in it, whatever they are."""
    for file in files:
        with suppress(OSError):
            if file.link is not None and os.path.samefile(root / file.name, file.link.path):
                yield file.link.path


def _copy(twin: Header, place: Path, inputs: Inputs) -> None:
    target = open_new(place)
    try:
        for _ in copied(Range(twin.path, 0, twin.size, 0), inputs, target, threading.Lock()):
            pass
    finally:
        os.close(target)
    with inputs.open(twin.path) as source:
        _check(twin, fingerprint(source))


def _check(twin: Header, seen: tuple[int, ...]) -> None:
    """Raise FileError unless a file is the planned one; a link changes the time of its status alone."""
    if seen[:4] != twin.identity[:4]:
        raise FileError(f"{twin.path}: changed while it was read; nothing was written", "Run the bake again.")
