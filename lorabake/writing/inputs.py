"""Read the files that a bake is made of, and notice when one changes while it is read."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Self

from lorabake.errors import FileError
from lorabake.machine import allow_open_files, unreadable
from lorabake.planning import Plan
from lorabake.tensors.header import Fingerprint
from lorabake.tensors.reader import fingerprint
from lorabake.tensors.system import open_to_read, read_at
from lorabake.writing.names import after_links
from lorabake.writing.openfiles import OpenFiles


class Inputs:
    """Hold the input files of plans open, as many as the system lets; the others are opened when they are read."""

    def __init__(self, *plans: Plan, watched: Iterable[Path] = ()) -> None:
        self._seen: dict[Path, Fingerprint] = {}
        headers = [header for plan in plans for checkpoint, _ in plan.sources.inputs for header in checkpoint.headers]
        self._headers = {header.path: header for header in headers}
        planned: defaultdict[Path, set[Fingerprint]] = defaultdict(set)
        for path, identity in ((header.path, header.identity) for header in headers):
            planned[path].add(identity)
        small = [plan.sources.evidence.read for plan in plans]
        for path, identity in (item for read in small for item in read.items()):
            planned[path].add(identity)
        paths = dict.fromkeys(self._headers)
        paths |= {info.file: None for header in headers for info in header.tensors.values()}
        paths |= dict.fromkeys(
            path for plan in plans for path in (*plan.digests.values(), *plan.sources.evidence.read)
        )
        paths |= dict.fromkeys(watched)
        allow_open_files(len(paths) + sum(len(plan.files) for plan in plans))
        self._files = OpenFiles(self._opened, unreadable)
        try:
            for path in paths:
                with self.open(path) as fd:
                    seen = self._seen[path] = fingerprint(fd)
                if {after_links(each) for each in planned[path]} - {seen}:
                    raise FileError(f"{path}: changed since the bake was planned; run it again")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, path: Path) -> AbstractContextManager[int]:
        """Lend the descriptor of an input; raise a LorabakeError where it can't be opened any more, or changed."""
        return self._files.open(path)

    def _opened(self, path: Path) -> int:
        fd = open_to_read(path)
        if path in self._seen and fingerprint(fd) != self.seen(path):
            os.close(fd)
            raise _changed(path)
        return fd

    def read(self, path: Path, start: int, into: memoryview) -> None:
        """Fill a buffer with the bytes from `start`."""
        done = 0
        with self.open(path) as fd:
            while done < len(into):
                count = _read(path, fd, into[done:], start + done)
                if count == 0:
                    raise FileError(f"{path}: became shorter while it was read")
                done += count

    def sha256(self, path: Path, stop: threading.Event, position: int = 0) -> str:
        """Digest a file from a position to its end."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(1 << 20))
        with self.open(path) as fd:
            while (count := _read(path, fd, buffer, position)) and not stop.is_set():
                digest.update(buffer[:count])
                position += count
        return digest.hexdigest()

    def check_records(self, stop: threading.Event) -> None:
        """Raise FileError where bytes of a zip archive are not those that were put into it."""
        buffer = memoryview(bytearray(1 << 20))
        for header in self._headers.values():
            for record in header.records:
                crc, position = 0, record.start
                while position < record.stop and not stop.is_set():
                    piece = buffer[: record.stop - position]
                    self.read(header.path, position, piece)
                    crc, position = zlib.crc32(piece, crc), position + len(piece)
                if crc != record.crc and not stop.is_set():
                    place = f"bytes {record.start} to {record.stop}"
                    raise FileError(
                        f"{header.path}: damaged: {place} are not those that the archive was made of (CRC-32)",
                        "Nothing was written. Download it again.",
                    )

    def seen(self, path: Path) -> Fingerprint | None:
        """Return the fingerprint that an input has if no other program changed it; None for a file that is none."""
        seen = self._seen.get(path)
        return None if seen is None else after_links(seen)

    def check_unchanged(self) -> None:
        """Raise FileError if any input is not what it was when it was opened."""
        for path in self._seen:
            with self.open(path) as fd:
                try:
                    same = fingerprint(fd) == fingerprint(path) == self.seen(path)
                except FileError:
                    same = False
            if not same:
                raise _changed(path)

    def close(self) -> None:
        """Close every file; what they held has been read."""
        with suppress(OSError):
            self._files.close()


def check_inputs(inputs: Inputs, plans: Iterable[Plan], digests: Iterable[Mapping[str, str]]) -> None:
    """Raise FileError for a file's digest that is not the one a recipe states, and for an input that has changed.

    `digests` are those of each plan, by its placeholders.
    """
    for plan, found in zip(plans, digests, strict=True):
        _check_stated(plan, found)
    inputs.check_unchanged()


def _check_stated(plan: Plan, digests: Mapping[str, str]) -> None:
    taken = {path: digests[placeholder] for placeholder, path in plan.digests.items()}
    for checkpoint, source in plan.sources.inputs:
        if checkpoint.is_folder:  # what is stated of a folder is about more than the plan digests
            continue
        for path in (header.path for header in checkpoint.headers):
            if source.sha256 and taken[path] != source.sha256:
                raise FileError(
                    f"{path}: its SHA-256 is {taken[path]}, and the recipe states {source.sha256}",
                    "Nothing was written. The file has changed, or is another one: find the right file, "
                    "or write this SHA-256 into the recipe.",
                )


def _read(path: Path, fd: int, into: memoryview, position: int) -> int:
    try:
        return read_at(fd, into, position)
    except OSError as error:
        raise unreadable(path, error) from None


def _changed(path: Path) -> FileError:
    return FileError(f"{path}: changed while it was read; nothing was written", "Run the bake again.")
