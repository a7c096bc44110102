"""What `lorabake check --json` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorabake.documents.batch import Chosen
from lorabake.documents.records import STRICT


@dataclass(frozen=True, slots=True)
class CheckedRecipe:
    """What the check of one recipe found; of one with a matrix, what was found of one output."""

    __pydantic_config__ = STRICT
    recipe: str
    """The recipe's path."""
    name: str | None
    """The output's name; null for a recipe that cannot be read."""
    choices: tuple[Chosen, ...]
    """Its values on the axes of the matrix; empty without one."""
    state: Literal["planned", "checked", "failed"]
    """planned: its models are there, and a bake was planned; checked: the recipe alone could be looked at."""
    missing: tuple[str, ...]
    """The inputs that are not there, as the recipe writes them."""
    error: tuple[str, ...]
    """The lines of the error; none unless it failed."""
    exit_code: int
    """What `lorabake bake` would exit with: 0, or the error's code."""


@dataclass(frozen=True, slots=True)
class CheckDocument:
    """What a check of recipes found."""

    __pydantic_config__ = STRICT
    recipes: tuple[CheckedRecipe, ...]
    """Each recipe, in the order of the command line; those of a folder by name. One with a matrix has an entry for
    each output."""
