"""Read a recipe: YAML text in; a `Recipe` out, or a `RecipeError` that lists every fault with its place.

The recipe says everything that may change the baked bytes and nothing else.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from lorabake.errors import FileError, RecipeError
from lorabake.recipe.faults import explained
from lorabake.recipe.models import Base, Lora, Method, Output, Recipe, Source, Verify, recipe_schema
from lorabake.recipe.values import Values, read_values, values_of
from lorabake.recipe.words import error_at, mark_after
from lorabake.tensors.small import read_small
from lorabake.visible import the_rest

__all__ = [
    "Base",
    "Lora",
    "Method",
    "Output",
    "Recipe",
    "Source",
    "Verify",
    "load_recipe",
    "parse_recipe",
    "recipe_of",
    "recipe_schema",
    "values_of",
]

MAX_BYTES = 1 << 20
MAX_FAULTS = 20
"""Most faults of a recipe that one error lists."""


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file; paths in it are relative to the folder it lies in."""
    try:
        data = read_small(path, MAX_BYTES, "a recipe")
    except FileError as error:
        raise RecipeError(*error.args) from None
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise RecipeError(f"{path}: cannot read the recipe: {reason}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        mark = mark_after(str(path), before)
        raise error_at(mark, f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}") from error
    file = Path(path).absolute()
    return parse_recipe(text, file.parent, str(path)).kept_in(file)


def parse_recipe(text: str, folder: Path, name: str = "recipe") -> Recipe:
    """Read a recipe's text; `name` stands for the file in error messages."""
    return recipe_of(read_values(text, name), folder)


def recipe_of(values: Values, folder: Path) -> Recipe:
    """Make a recipe of values, whoever wrote them; relative paths in it start from `folder`."""
    faults = [*values.faults]
    try:
        recipe = Recipe.model_validate(values.data)
    except ValidationError as error:
        faults += (explained(each, values) for each in error.errors(include_url=False))
    if faults:
        faults.sort(key=lambda fault: (fault.spot.line, fault.spot.column))
        told = [fault.line for fault in faults[:MAX_FAULTS]]
        told += [the_rest(len(faults) - MAX_FAULTS, "more faults")] if len(faults) > MAX_FAULTS else []
        raise RecipeError(*told)
    return recipe.placed(folder)
