"""Name places and values in the faults of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from lorabake.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Fault:
    """Hold what is wrong at one place of a recipe."""

    mark: yaml.Mark
    message: str

    @property
    def line(self) -> str:
        """Return the fault as a line: recipe.yaml:3:7: unknown key 'strenght'."""
        return f"{self.mark.name}:{self.mark.line + 1}:{self.mark.column + 1}: {self.message}"


def error_at(mark: yaml.Mark, message: str) -> RecipeError:
    """Return the error for a fault after which nothing more can be read."""
    return RecipeError(Fault(mark, message).line)


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
