"""Set the scene of a mistake in a recipe's text: what YAML's reader says of it, and the lines around it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import yaml

_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""What ends a line for YAML's reader."""

_COMMENT = re.compile(r"\s+#.*|\s+$")


@dataclass(frozen=True, slots=True)
class Told:
    """Hold what is wrong, on which line and in which column (from 0), and what to do."""

    line: int
    column: int
    what: str
    advice: str


@dataclass(frozen=True, slots=True)
class Scene:
    """Hold what YAML's reader says, and the recipe's lines."""

    lines: list[str]
    problem: str
    context: str
    line: int
    column: int
    start: yaml.Mark | None
    text: str

    @classmethod
    def of(cls, error: yaml.MarkedYAMLError, text: str, place: yaml.Mark) -> Self:
        """Set the scene of an error; `place` is where the reader stands if the error does not say."""
        mark = error.problem_mark or error.context_mark or place
        return cls(
            lines=_LINE_END.split(text.removeprefix("\ufeff")),
            problem=error.problem or "",
            context=error.context or "",
            line=mark.line,
            column=mark.column,
            start=error.context_mark,
            text=text,
        )

    @property
    def before(self) -> str:
        """The part of the line before the spot."""
        return self.at(self.line)[: self.column]

    @property
    def rest(self) -> str:
        """The line from the spot on."""
        return self.at(self.line)[self.column :]

    @property
    def above(self) -> int:
        """The number of the nearest line above that has something in it; -1 if there is none."""
        return next((number for number in reversed(range(self.line)) if self.at(number).strip()), -1)

    def at(self, line: int) -> str:
        """Return a line without its comment; an empty one for a line that is not there."""
        return _COMMENT.sub("", self.lines[line]) if 0 <= line < len(self.lines) else ""

    def told(self, what: str, advice: str) -> Told:
        """Tell of the spot itself."""
        return Told(self.line, self.column, what, advice)
