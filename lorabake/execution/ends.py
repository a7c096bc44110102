"""What a bake reads from and writes to, as far as executing a plan goes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lorabake.planning.copies import Copy


class Reader(Protocol):
    """Fill buffers from input files."""

    def read(self, path: Path, start: int, into: memoryview) -> None:
        """Fill `into` with the bytes of a file from `start`."""


class Writer(Protocol):
    """Take the bytes of the output; what is finished is not written again."""

    @property
    def place(self) -> Path:
        """Name where the bytes go, for messages."""

    def write(self, file: int, offset: int, data: memoryview) -> None:
        """Write bytes at an offset of a file's data."""

    def finish(self, file: int, start: int, stop: int) -> None:
        """Note that a range of a file's data is as it stays."""


class Inputs(Reader, Protocol):
    """Read the files that a bake is made of."""

    def sha256(self, path: Path, stop: threading.Event) -> str:
        """Digest a whole file."""

    def check_records(self, stop: threading.Event) -> None:
        """Raise FileError where bytes of an archive are not those that were put into it."""


class Output(Writer, Protocol):
    """Take all bytes of a plan's files."""

    def copy(self, copy: Copy, progress: Callable[[int], None], stop: threading.Event) -> None:
        """Copy an untouched range of an input."""

    def check_finished(self) -> None:
        """Raise an error unless every byte is finished."""

    def follow(self, file: int, stop: threading.Event) -> str:
        """Follow the finished ranges of a file to its end; return the SHA-256 of its data, or an empty text."""
