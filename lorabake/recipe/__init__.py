"""Read a recipe: YAML text in; a `Recipe` out, or a `RecipeError` that lists every fault with its place.

The recipe says everything that may change the baked bytes and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ValidationError

from lorabake.arguments import AnyPath, path_of, well_called
from lorabake.errors import FileError, RecipeError, SurroundingsError, lines_of
from lorabake.likeness import nearest
from lorabake.machine import OF_THE_MACHINE, why
from lorabake.paths import missing
from lorabake.recipe.faults import explained
from lorabake.recipe.inputs import Base, Lora, Source
from lorabake.recipe.models import Method, Output, Recipe, Verify, recipe_schema
from lorabake.recipe.syntax import decoded
from lorabake.recipe.values import Place, Values, read_values, values_of
from lorabake.recipe.words import named_at
from lorabake.recipe.written import written
from lorabake.settings import BASE, BATCH, INSPECT, LORA, ONLY
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
    "load_recipes",
    "only",
    "parse_recipe",
    "recipe_of",
    "recipe_schema",
    "recipe_text",
    "recipes_of",
    "values_of",
]

MAX_BYTES = 1 << 20
MAX_FAULTS = 20
"""Most faults of a recipe that one error lists."""

SHOWN = 4
"""How many names of outputs a message lists."""


@well_called('load_recipe("recipe.yaml")')
def load_recipe(path: AnyPath) -> Recipe:
    """Read a recipe file; paths in it are relative to the folder it lies in.

    Raise RecipeError with every fault and its place.

    Examples:
        >>> lorabake.load_recipe("recipe.yaml").loras[0].strength
        1.0
    """
    recipes = load_recipes(path)
    if len(recipes) > 1:
        raise RecipeError(*several(str(path), recipes))
    return recipes[0]


@well_called('load_recipes("sweep.yaml")')
def load_recipes(path: AnyPath) -> tuple[Recipe, ...]:
    """Read a recipe file; return a recipe for each output that its matrix stands for, one without a matrix.

    Raise RecipeError with every fault and its place.

    Examples:
        >>> [recipe.name for recipe in lorabake.load_recipes("recipe.yaml")]
        ['out']
    """
    path = path_of(path, "the recipe's path")
    text, file = recipe_text(path), path.absolute()
    return recipes_of(read_values(text, str(path)), file.parent, file, text)


def recipes_of(values: Values, folder: Path, file: Path | None, text: str | None) -> tuple[Recipe, ...]:
    """Make the recipes of values that may have a matrix; relative paths in them start from `folder`.

    `file` is where they are from, and `text` their YAML where it was not changed.
    """
    if not values.has_matrix:
        recipe = recipe_of(values, folder)
        own = text if text is not None else written(values.data) if isinstance(values.data, Mapping) else ""
        return (recipe.kept_in(file, own),)
    from lorabake.recipe.matrix import variants  # most recipes have none

    recipes = []
    for variant in variants(values):
        data, recipe = variant.values.data, recipe_of(variant.values, folder)
        own = written(data) if isinstance(data, Mapping) else ""
        recipes.append(recipe.kept_in(file, own).chosen(variant.choices))
    return tuple(recipes)


def several(name: str, recipes: Sequence[Recipe]) -> tuple[str, ...]:
    """Say that one recipe is asked for, and a matrix has several."""
    names = [recipe.name for recipe in recipes]
    return (
        f"{name}: stands for {len(recipes)} outputs: {and_more(names[:SHOWN], len(names))}",
        f"Bake them all with {BATCH.of(name)}, or choose one: {ONLY.of(names[0])}.",
    )


def only(recipes: Sequence[Recipe], globs: Sequence[str]) -> tuple[Recipe, ...]:
    """Return the recipes whose names fit one of the patterns, all of them without a pattern.

    Raise RecipeError for a pattern that fits no name.
    """
    for glob in globs:
        if not any(fnmatchcase(recipe.name, glob) for recipe in recipes):
            names = [recipe.name for recipe in recipes]
            near = nearest(glob, names)
            raise RecipeError(
                f"{ONLY.of(glob)}: no output has such a name",
                (f"Did you mean {near}? " if near else "") + f"There are {and_more(names[:SHOWN], len(names))}.",
            )
    return tuple(recipe for recipe in recipes if is_chosen(recipe, globs))


def is_chosen(recipe: Recipe, globs: Sequence[str]) -> bool:
    """Tell whether a recipe's name fits one of the patterns; without a pattern, every name does."""
    return not globs or any(fnmatchcase(recipe.name, glob) for glob in globs)


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
    return recipe.placed(folder, dict(_named(recipe, values)))


def _named(recipe: Recipe, values: Values) -> Iterator[tuple[str, str]]:
    """Yield the path of each input, and what says on which line it is written."""
    parts = recipe.output.parts
    places: list[Place] = [("base",), *(("loras", number) for number in range(len(recipe.loras)))]
    places += [("vae",)] if recipe.vae is not None else []
    places += [("output", "parts", name) for name in parts]
    for entry, place in zip(recipe.inputs, places, strict=True):
        spot = values.spots.get((*place, "path"), values.spots.get(place))
        if spot is not None and spot.line >= 0:
            yield entry.path, named_at(spot)
