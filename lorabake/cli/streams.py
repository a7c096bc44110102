"""Make stdout and stderr safe: a closed or full stream causes no traceback, and no output file receives its text."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO, TypeVar

from lorabake.errors import SurroundingsError

Result = TypeVar("Result")


def open_streams() -> None:
    """Replace the standard streams by safe ones.

    The next file that the process opens would get the descriptor of a closed stream, and then all that libraries
    print. So closed streams are opened on the null device. Names that are not UTF-8 are printed with escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout, sys.stderr = _Results.over(sys.stdout, 1), _Remarks.over(sys.stderr, 2)


class UnreadError(SurroundingsError):
    """Report that the reader of stdout has gone away, as in `lorabake inspect FILE | head`."""


class _Stream(io.TextIOWrapper):
    """Write a standard stream's text; `_try` decides what a failure to write does."""

    @classmethod
    def over(cls, stream: TextIO | None, number: int) -> _Stream:
        """Replace a stream; one that was closed at the start writes to nowhere."""
        buffer = open(number, "wb", closefd=False) if stream is None else stream.buffer  # noqa: SIM115
        encoding = "utf-8" if stream is None else stream.encoding
        return cls(buffer, encoding, "backslashreplace", line_buffering=True)

    def write(self, text: str, /) -> int:
        """Write a text."""
        return self._try(lambda: super(_Stream, self).write(text)) or 0

    def flush(self) -> None:
        """Write buffered text."""
        self._try(super().flush)

    def _try(self, call: Callable[[], Result]) -> Result | None:
        raise NotImplementedError


class _Results(_Stream):
    """Write a command's result; raise SurroundingsError if it cannot be written."""

    def _try(self, call: Callable[[], Result]) -> Result | None:
        try:
            return call()
        except BrokenPipeError:
            raise UnreadError("nobody reads what is printed") from None
        except OSError as error:
            raise SurroundingsError(f"what is printed cannot be written: {error.strerror or error}") from None


class _Remarks(_Stream):
    """Write remarks; ignore failures, because there is nowhere to report them."""

    def _try(self, call: Callable[[], Result]) -> Result | None:
        with suppress(OSError, ValueError):
            return call()
        return None
