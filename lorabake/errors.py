"""Every error that lorabake raises on purpose.

    LorabakeError                 exit 2 unless said otherwise; the CLI prints it without a traceback
    ├── ArgumentError             an argument of a call in Python: of another type, or out of its range
    ├── RecipeError               the recipe: syntax, keys, values (carries file:line:column)
    ├── FileError                 an input file or folder: missing, damaged, of another format, changed while read
    ├── LockError                 a recipe's lock: missing, not as it was written, or its inputs are others now
    ├── MatchError                a LoRA does not fit the base: family, names, shapes, slots
    ├── ValueTooLargeError        NaN, infinity or overflow in a baked tensor
    ├── ChangeLostError           a LoRA most of whose change the output's dtype would lose
    ├── TargetError               the output path: exists, is an input, is being written by another bake
    ├── SurroundingsError         exit 3: disk full, device missing or out of memory, an extra not installed
    └── InternalError             exit 4: lorabake found that it contradicts itself

Whatever else is raised is a fault of lorabake's own, too: exit 4.

Each argument is a line of the message. The first line is complete by itself; further lines give detail and advice.
`lines` writes line breaks and invisible characters inside an argument as escapes, so that no name from a file can add
a line.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from lorabake.documents.names import ErrorKind
from lorabake.visible import redacted, visible

MOST_LETTERS = 2000
"""Most letters of a line of a message; longer lines lose their middle."""

MOST_LINES = 100
"""Most lines of a message."""


INTERNAL = 4
"""The exit code where lorabake itself fails."""


class LorabakeError(Exception):
    """Report a failure that the user can fix; the message says what, where and what to do."""

    kind: ErrorKind = "internal"

    exit_code = 2

    def __init__(self, *lines: str) -> None:
        super().__init__(*shortened([redacted(line) for line in lines]))

    def without_frames(self) -> Self:
        """Let go of what the frames that raised it held, such as opened inputs; return the error."""
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self

    def about(self, name: str) -> Self:
        """Put the name of what the error is about in front of its message; return the error."""
        first, *rest = self.args or ("",)
        self.args = (f"{name}: {first}", *rest)
        return self

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the lines of the message, safe to print."""
        return tuple(map(visible, self.args)) or (type(self).__name__,)

    def __str__(self) -> str:
        """Return the message as one text, names as they are."""
        return "\n".join(self.args)


class ArgumentError(LorabakeError):
    """Report an argument of a call in Python that is of another type than asked for, or out of its range."""

    kind: ErrorKind = "argument"


class RecipeError(LorabakeError):
    """Report a fault in the recipe, with its place in the file."""

    kind: ErrorKind = "recipe"


class FileError(LorabakeError):
    """Report an input that is missing, damaged, of another format, or changed while it was read."""

    kind: ErrorKind = "file"


class LockError(LorabakeError):
    """Report a recipe's lock that is missing, is not as it was written, or does not fit the inputs."""

    kind: ErrorKind = "lock"


class MatchError(LorabakeError):
    """Report a LoRA whose tensors cannot all be placed on the base."""

    kind: ErrorKind = "match"


class ValueTooLargeError(LorabakeError):
    """Report a baked value that the output dtype cannot hold, or that is not a number."""

    kind: ErrorKind = "value_too_large"


class ChangeLostError(LorabakeError):
    """Report a LoRA most of whose change would be lost in the output's dtype, unless the recipe allows that."""

    kind: ErrorKind = "change_lost"


class TargetError(LorabakeError):
    """Report an output path that must not be written."""

    kind: ErrorKind = "target"


class SurroundingsError(LorabakeError):
    """Report a fault of the machine rather than of the input."""

    kind: ErrorKind = "surroundings"

    exit_code = 3


class InternalError(LorabakeError):
    """Report a fault of lorabake's own that it found itself: nothing that a user could mend."""

    kind: ErrorKind = "internal"

    exit_code = INTERNAL

    def __init__(self, fault: str) -> None:
        super().__init__(
            f"lorabake failed: {fault}",
            "This is a fault of lorabake's own. Please report it, with what LORABAKE_DEBUG=1 shows.",
        )


def where(error: BaseException) -> str:
    """Name the innermost line of lorabake's own code that raised or passed on an error: matching/ledger.py:92."""
    root, place = Path(__file__).parent, ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(root):
            place = f"{path.relative_to(root).as_posix()}:{frame.lineno}"
    return place


def lines_of(start: str, reason: str) -> list[str]:
    """Split a reason into lines for an error, with `start` in front; names in it must be visible already."""
    first, *rest = reason.split("\n")
    return [start + first, *rest]


def shortened(lines: Sequence[str]) -> list[str]:
    """Leave out the middle of long lines, and all lines after the first hundred."""
    half = MOST_LETTERS // 2
    shown = [
        f"{line[:half]} … {len(line) - 2 * half:,} letters … {line[-half:]}" if len(line) > MOST_LETTERS else line
        for line in lines[:MOST_LINES]
    ]
    return [*shown, f"… and {len(lines) - MOST_LINES:,} more lines"] if len(lines) > MOST_LINES else shown


def first_line(error: Exception, most: int | None = 200) -> str:
    """Return the first line of an error, or its class name: so many letters at most, short enough for a finding."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:most]
