"""Every error that lorabake raises on purpose.

    LorabakeError                 exit 2 unless said otherwise; the CLI prints it without a traceback
    ├── RecipeError               the recipe: syntax, keys, values (carries file:line:column)
    ├── FileError                 an input file or folder: missing, damaged, of another format, changed meanwhile
    ├── MatchError                a LoRA does not fit the base: family, names, shapes, slots
    ├── ValueTooLargeError        NaN, infinity or overflow in a baked tensor
    ├── TargetError               the output path: exists, is an input, is being written by another bake
    └── SurroundingsError         exit 3: disk full, device missing or out of memory, an extra not installed

Whatever else is raised is a fault of lorabake's own: exit 4.

Each argument is a line of the message. The first stands alone; further lines give detail and advice. In `lines`, what
an argument has of line breaks and other characters that are not seen is an escape: no name from a file adds a line.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

from lorabake.visible import visible

MOST_LETTERS = 2000
"""Letters of a line of a message; of a longer one its middle is left out."""

MOST_LINES = 100
"""Lines of a message."""


class LorabakeError(Exception):
    """Stand for any failure that a user can mend; the message says what, where and what to do."""

    exit_code = 2

    def __init__(self, *lines: str) -> None:
        super().__init__(*shortened(lines))

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the lines of the message as they may be printed."""
        return tuple(map(visible, self.args)) or (type(self).__name__,)

    def __str__(self) -> str:
        """Return the message as one text, names as they are."""
        return "\n".join(self.args)


class RecipeError(LorabakeError):
    """Report a fault in the recipe, with its place in the file."""


class FileError(LorabakeError):
    """Report an input that is missing, damaged, of another format, or that changed while it was read."""


class MatchError(LorabakeError):
    """Report a LoRA whose tensors cannot all be placed on the base."""


class ValueTooLargeError(LorabakeError):
    """Report a baked value that the output dtype cannot hold, or that is not a number."""


class TargetError(LorabakeError):
    """Report an output path that must not be written."""


class SurroundingsError(LorabakeError):
    """Report a fault of the machine rather than of the input."""

    exit_code = 3


INTERNAL = 4
"""The exit code where lorabake itself fails."""


def where(error: BaseException) -> str:
    """Name the innermost place of lorabake's own code that an error came through: verification/texts.py:92."""
    root, found = Path(__file__).parent, ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(root):
            found = f"{path.relative_to(root).as_posix()}:{frame.lineno}"
    return found


def lines_of(start: str, reason: str) -> list[str]:
    """Return the lines of a reason in lorabake's own words, whose names are visible; `start` begins the first one."""
    first, *rest = reason.split("\n")
    return [start + first, *rest]


def shortened(lines: Sequence[str]) -> list[str]:
    """Leave out the middle of lines that are too long to be read, and all lines after the first hundred."""
    half = MOST_LETTERS // 2
    shown = [
        f"{line[:half]} … {len(line) - 2 * half:,} letters … {line[-half:]}" if len(line) > MOST_LETTERS else line
        for line in lines[:MOST_LINES]
    ]
    return [*shown, f"… and {len(lines) - MOST_LINES:,} more lines"] if len(lines) > MOST_LINES else shown


def first_line(error: Exception) -> str:
    """Return what another library's error says first, its name if it says nothing, short enough for a finding."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
