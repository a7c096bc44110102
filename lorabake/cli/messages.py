"""Print errors and warnings: as text, or as annotations that GitHub shows on the line of a recipe.

Source of the form: GitHub's documentation of workflow commands (::error file=…,line=…::message).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from lorabake.cli.terminal import Coloured, echo, echo_command, echo_json
from lorabake.documents.names import ErrorKind
from lorabake.errors import LorabakeError, SurroundingsError
from lorabake.visible import visible

Format = Literal["text", "github"]
FORMATS: tuple[Format, ...] = ("text", "github")

OPTION, JSON = "--format", "--json"
VARIABLE = "LORABAKE_FORMAT"
"""The environment variable that asks for a format where the option does not."""

PLACED = re.compile(r"(?P<file>.+?):(?P<line>\d+):(?P<column>\d+): (?P<message>.*)", re.DOTALL)
"""A line of an error that begins with its place in a recipe."""

ABOUT_A_FILE: frozenset[ErrorKind] = frozenset({"recipe", "file", "lock", "target"})
"""Sorts of errors whose first line begins with a path."""

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Place:
    """Say where an annotation belongs; line and column count from 1."""

    file: str
    line: int = 1
    column: int = 1


class Messages:
    """Hold how messages are printed, and the recipe that they are about, if a file holds it."""

    def __init__(self) -> None:
        self.form: Format = "text"
        self.as_json = False
        self.recipe: Path | None = None

    def begin(self, words: Sequence[str]) -> None:
        """Start anew, in the format that a command line or the environment asks for.

        The words are read before click does, so that what is wrong with a command line is told in that format, too.
        """
        self.recipe, self.as_json = None, JSON in words
        pairs = [word.partition("=")[::2] for word in words]
        pairs += pairwise(words)
        asked = [value for name, value in pairs if name == OPTION] or [os.environ.get(VARIABLE, "")]
        self.form = "github" if "github" in asked else "text"

    def failed(self, kind: ErrorKind, exit_code: int, first: str, *rest: str) -> None:
        """Print why a command failed, and as a document where it was asked for JSON."""
        self.error(first, *rest)
        self.document(kind, exit_code, first, *rest)

    def document(self, kind: ErrorKind, exit_code: int, first: str, *rest: str) -> None:
        """Print the document about an error where a command was asked for JSON."""
        if not self.as_json:
            return
        from lorabake.documents import document
        from lorabake.documents.error import ErrorDocument, Fault

        faults = tuple(
            Fault(told[0], place.file, place.line, place.column) if place else Fault(told[0], path, None, None)
            for place, told in _grouped((first, *rest), None)
            for path in [_path_in(told[0], kind)]
        )
        one = faults[0]
        record = ErrorDocument(kind, exit_code, first, rest, one.path, one.line, one.column, faults)
        with suppress(SurroundingsError):  # what is wrong may be that nothing can be printed
            echo_json(document("error", record))

    def error(self, first: str, *rest: str) -> None:
        """Print an error: what is wrong, and indented below it what to do."""
        if self.form == "github":
            self._annotate("error", (first, *rest))
            return
        echo(Coloured("error: ", "red", bold=True), first, err=True)
        for line in rest:
            echo(line if line.startswith(" ") else f"  {line}", err=True)

    def warning(self, text: str, label: str = "warning: ") -> None:
        """Print a warning; `label` stands before its text."""
        if self.form == "github":
            self._annotate("warning", (text,))
            return
        echo(f"{label}{text}", err=True)

    def also(self, level: Level, *lines: str) -> None:
        """Annotate what is printed elsewhere, too; as text there is nothing to add."""
        if self.form == "github":
            self._annotate(level, lines)

    def _annotate(self, level: Level, lines: Sequence[str]) -> None:
        for place, told in _grouped(lines, self.recipe):
            echo_command(_command(level, place, told))


messages = Messages()


def _grouped(lines: Sequence[str], recipe: Path | None) -> Iterator[tuple[Place | None, list[str]]]:
    """Yield what belongs to one place: a line that names its own begins a new annotation."""
    place: Place | None = None if recipe is None else _place_of(lines, recipe)
    told: list[str] = []
    for line in lines:
        if match := PLACED.fullmatch(line):
            if told:
                yield place, told
            place = Place(match["file"], int(match["line"]), int(match["column"]))
            told = [match["message"]]
        else:
            told.append(line)
    yield place, told


def _path_in(message: str, kind: ErrorKind) -> str | None:
    """Return the path with which a message begins: those about a file do so, and those about a LoRA name it."""
    if lora := re.match(r"LoRA '(.+?)': ", message):
        return lora[1]
    ends = [match.start() for match in re.finditer(": ", message)]
    if kind not in ABOUT_A_FILE or not ends:
        return None
    return next((message[:end] for end in reversed(ends) if os.path.lexists(message[:end])), message[: ends[0]])


def _place_of(lines: Sequence[str], recipe: Path) -> Place:
    """Find the line of a recipe that a message is about: that of the longest path which the message names.

    What its first line names comes before what its advice does.
    """
    from lorabake.recipe import recipe_text
    from lorabake.recipe.shape import is_path
    from lorabake.recipe.values import read_values
    from lorabake.recipe.words import NAMED

    if match := next(filter(None, map(NAMED.fullmatch, lines)), None):
        return Place(match["file"], int(match["line"]), int(match["column"]))
    try:
        values = read_values(recipe_text(recipe), str(recipe))
    except LorabakeError:  # the message tells what is wrong with it
        return Place(str(recipe))
    paths = {value: place for place, value in _texts(values.data) if is_path(place)}
    for text in (lines[0], "\n".join(lines)):
        if named := [value for value in paths if value.strip("./") in text]:
            spot = values.spots[paths[max(named, key=len)]]
            return Place(str(recipe), spot.line + 1, spot.column + 1)
    return Place(str(recipe))


def _texts(value: object, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield the place of each text, and the text."""
    match value:
        case dict():
            for key, item in value.items():
                yield from _texts(item, (*place, key))
        case tuple():
            for index, item in enumerate(value):
                yield from _texts(item, (*place, index))
        case str():
            yield place, value


def _command(level: Level, place: Place | None, lines: Sequence[str]) -> str:
    """Write an annotation as GitHub's runners read it."""
    text = "%0A".join(_escaped(line) for line in lines)
    if place is None:
        return f"::{level} title=lorabake::{text}"
    file = _escaped(_in_workspace(place.file), ":", ",")
    return f"::{level} file={file},line={place.line},col={place.column},title=lorabake::{text}"


def _escaped(text: str, *others: str) -> str:
    """Write a text so that it ends nothing and is no command."""
    text = visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    for sign in others:
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text


def _in_workspace(file: str) -> str:
    """Write a path as GitHub names files: from the top of the repository."""
    top = os.environ.get("GITHUB_WORKSPACE")
    path = Path(file).absolute()
    return path.relative_to(top).as_posix() if top and path.is_relative_to(top) else file
