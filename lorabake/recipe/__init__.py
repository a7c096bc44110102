"""Read a recipe: YAML text in; a `Recipe` out, or a `RecipeError` that lists every fault with its place.

The recipe says everything that may change the baked bytes and nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from lorabake.arguments import AnyPath, path_of, well_called
from lorabake.errors import FileError, RecipeError, SurroundingsError, lines_of
from lorabake.machine import OF_THE_MACHINE, why
from lorabake.paths import missing
from lorabake.recipe.faults import explained
from lorabake.recipe.inputs import Base, Lora, Source
from lorabake.recipe.models import Method, Output, Recipe, Verify, recipe_schema
from lorabake.recipe.syntax import decoded
from lorabake.recipe.values import Values, read_values, values_of
from lorabake.settings import BASE, INSPECT, LORA
from lorabake.tensors.magic import SNIFFED, Format, format_at, format_of
from lorabake.tensors.small import read_small
from lorabake.visible import and_more, the_rest

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
    "recipe_text",
    "values_of",
]

MAX_BYTES = 1 << 20
MAX_FAULTS = 20
"""Most faults of a recipe that one error lists."""


@well_called('load_recipe("recipe.yaml")')
def load_recipe(path: AnyPath) -> Recipe:
    """Read a recipe file; paths in it are relative to the folder it lies in.

    Raise RecipeError with every fault and its place.

    Examples:
        >>> lorabake.load_recipe("recipe.yaml").loras[0].strength
        1.0
    """
    path = path_of(path, "the recipe's path")
    text, file = recipe_text(path), path.absolute()
    return parse_recipe(text, file.parent, str(path)).kept_in(file, text)


def recipe_text(path: Path) -> str:
    """Read the text of a recipe file."""
    data = _content(path)
    if (form := format_of(data[:SNIFFED])) is not None and not form.is_text:
        raise RecipeError(*_no_recipe(path, form))
    return decoded(data, str(path))


def _content(path: Path) -> bytes:
    """Read the bytes of a recipe; raise RecipeError for what is none."""
    try:
        return read_small(path, MAX_BYTES, "a recipe")
    except FileError as error:
        form = format_at(path)
        is_told = form is not None and not form.is_text
        raise RecipeError(*(_no_recipe(path, form) if form is not None and is_told else error.args)) from None
    except (FileNotFoundError, NotADirectoryError) as error:
        lines = lines_of(f"{path}: ", why(error)) if os.path.lexists(path) else missing(path, str(path))
        raise RecipeError(*lines) from None
    except IsADirectoryError:
        recipes = sorted(file.name for file in path.glob("*.y*ml"))
        inside = f": it has {and_more(recipes[:3], len(recipes))}" if recipes else ", which may name this folder"
        raise RecipeError(f"{path}: is a folder, not a recipe", f"Give the recipe, a YAML file{inside}.") from None
    except (OSError, ValueError) as error:
        is_machine = isinstance(error, OSError) and error.errno in OF_THE_MACHINE
        raise (SurroundingsError if is_machine else RecipeError)(*lines_of(f"{path}: ", why(error))) from error


def _no_recipe(path: Path, form: Format) -> tuple[str, str]:
    """Say what a file is that was given as a recipe."""
    if form.has_weights:
        advice = (
            f"Name it in a recipe as base or under loras, or bake without a recipe by {BASE} and {LORA}. "
            f"{INSPECT.of(str(path))} says what it is."
        )
    else:
        advice = "Give the recipe: a YAML text that names a base, LoRAs and an output."
    return f"{path}: is {form.title}, not a recipe", advice


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
