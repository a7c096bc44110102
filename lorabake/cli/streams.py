"""What is printed leaves through these streams: nothing ends in a traceback, or in a file of the bake's."""

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
    """Let nothing that is printed end in a traceback, or in a file of the bake's.

    A closed stream's number would be given to the next file that is opened, which then got what a library prints.
    Names that are not UTF-8 are printed with escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout, sys.stderr = _Results.over(sys.stdout, 1), _Remarks.over(sys.stderr, 2)


class UnreadError(SurroundingsError):
    """Report that nobody reads what is printed any more, as in `lorabake inspect FILE | head`."""


class _Stream(io.TextIOWrapper):
    """Write a standard stream's text; `_try` says what happens where it cannot be written."""

    @classmethod
    def over(cls, stream: TextIO | None, number: int) -> _Stream:
        """Take a stream's place; one that was closed when the process began leads nowhere."""
        buffer = open(number, "wb", closefd=False) if stream is None else stream.buffer  # noqa: SIM115
        encoding = "utf-8" if stream is None else stream.encoding
        return cls(buffer, encoding, "backslashreplace", line_buffering=True)

    def write(self, text: str, /) -> int:
        """Write a text."""
        return self._try(lambda: super(_Stream, self).write(text)) or 0

    def flush(self) -> None:
        """Write what is left."""
        self._try(super().flush)

    def _try(self, call: Callable[[], Result]) -> Result | None:
        raise NotImplementedError


class _Results(_Stream):
    """Write what a command was asked for; raise SurroundingsError where it cannot be written."""

    def _try(self, call: Callable[[], Result]) -> Result | None:
        try:
            return call()
        except BrokenPipeError:
            raise UnreadError("nobody reads what is printed") from None
        except OSError as error:
            raise SurroundingsError(f"what is printed cannot be written: {error.strerror or error}") from None


class _Remarks(_Stream):
    """Write what is told beside it; there is nobody to tell where that cannot be written."""

    def _try(self, call: Callable[[], Result]) -> Result | None:
        with suppress(OSError, ValueError):
            return call()
        return None
