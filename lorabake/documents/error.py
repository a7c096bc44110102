"""What a command with `--json` prints where it fails."""

from __future__ import annotations

from dataclasses import dataclass

from lorabake.documents.names import ErrorKind
from lorabake.documents.records import STRICT


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, and where it is."""

    __pydantic_config__ = STRICT
    message: str
    """What is wrong, for people."""
    path: str | None
    """The file that it is in or about, as it was given; null where it is about none, or about none alone."""
    line: int | None
    """The line in that file, counted from 1; null where it is about the file as a whole."""
    column: int | None
    """The column in that line, counted from 1."""


@dataclass(frozen=True, slots=True)
class ErrorDocument:
    """Why a command failed."""

    __pydantic_config__ = STRICT
    kind: ErrorKind
    """The sort of error: what is at fault."""
    exit_code: int
    """The command's exit code."""
    message: str
    """The first line of the message, for people: what is wrong."""
    details: tuple[str, ...]
    """Its other lines, for people: more faults, and what to do."""
    path: str | None
    """The file of the first fault, as it was given; null where it is about none."""
    line: int | None
    """Its line in that file, counted from 1; null where it is about the file as a whole."""
    column: int | None
    """Its column in that line, counted from 1."""
    faults: tuple[Fault, ...]
    """Every fault that is told: a recipe may have several."""
