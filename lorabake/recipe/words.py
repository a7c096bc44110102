"""How faults of a recipe name places and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from lorabake.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Fault:
    """Say what is wrong at one place of a recipe."""

    mark: yaml.Mark
    message: str

    @property
    def line(self) -> str:
        """Return the line that tells it: recipe.yaml:3:7: unknown key 'strenght'."""
        return f"{self.mark.name}:{self.mark.line + 1}:{self.mark.column + 1}: {self.message}"


def error_at(mark: yaml.Mark, message: str) -> RecipeError:
    """Return the error of a fault that makes the rest unreadable."""
    return RecipeError(Fault(mark, message).line)


def mark_after(name: str, before: str) -> yaml.Mark:
    """Make the mark of the character that follows this text."""
    return yaml.Mark(name, len(before), before.count("\n"), len(before) - before.rfind("\n") - 1, None, 0)


def found(value: object) -> str:
    """Say what stands there in place of what ought to."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
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
    return repr(text if len(text) <= 80 else text[:79] + "…")
