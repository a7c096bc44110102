"""Name spots and values in the faults of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from lorabake.errors import RecipeError
from lorabake.settings import SET
from lorabake.visible import redacted


@dataclass(frozen=True, slots=True)
class Spot:
    """Say where a value was written: recipe.yaml:3:7. What has no lines is a name alone, such as --lora 2.

    `note` says how the value came to where it is used, if it was written elsewhere.
    """

    name: str
    line: int = -1
    column: int = -1
    note: str = ""

    @classmethod
    def of(cls, mark: yaml.Mark) -> Spot:
        """Take over a position that YAML's reader gives."""
        return cls(str(mark.name), mark.line, mark.column)

    @property
    def is_option(self) -> bool:
        """Tell whether the value was written in an option of the command line."""
        return self.line < 0 and self.name.startswith("--")

    @property
    def is_change(self) -> bool:
        """Tell whether the value was written in an option that changes a recipe."""
        return self.is_option and self.name.startswith(SET.option.partition(" ")[0])

    def __str__(self) -> str:
        return self.name if self.line < 0 else f"{self.name}:{self.line + 1}:{self.column + 1}"


NAMED = re.compile(r"The recipe names it at (?P<file>.+?):(?P<line>\d+):(?P<column>\d+)( \(.*\))?\.")
"""What `named_at` writes."""


def named_at(spot: Spot) -> str:
    """Say where a recipe names an input."""
    return f"The recipe names it at {spot}{f' ({spot.note})' if spot.note else ''}."


@dataclass(frozen=True, slots=True)
class Fault:
    """Hold what is wrong at one spot of a recipe."""

    spot: Spot
    message: str

    @property
    def line(self) -> str:
        """Return the fault as a line: recipe.yaml:3:7: unknown key 'strenght'."""
        return f"{self.spot}: {self.message}{f' ({self.spot.note})' if self.spot.note else ''}"


def error_at(mark: yaml.Mark, message: str, *advice: str) -> RecipeError:
    """Return the error for a fault after which nothing more can be read."""
    return RecipeError(Fault(Spot.of(mark), message).line, *advice)


def mark_after(name: str, before: str) -> yaml.Mark:
    """Return the position right after this text."""
    return yaml.Mark(name, len(before), before.count("\n"), len(before) - before.rfind("\n") - 1, None, 0)


def found(value: object) -> str:
    """Say what was found instead of the expected value."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() if value.bit_length() > 256:  # Python refuses to write out very long ones
            return f"a number of {value.bit_length()} bits"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {quoted(value)}"
        case tuple():
            return "a list"
        case Mapping():
            return "a mapping"
    return f"a {type(value).__name__}"


def quoted(text: str) -> str:
    """Quote a text, or the beginning of a long one."""
    text = redacted(text)
    return repr(text if len(text) <= 80 else text[:79] + "…")


def spaces(count: int) -> str:
    """Say how many spaces a line begins with."""
    return {0: "no space", 1: "1 space"}.get(count, f"{count} spaces")
