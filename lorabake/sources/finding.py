"""Find a recipe's inputs on this machine; where there is nothing, say where the recipe names it."""

from __future__ import annotations

from pathlib import Path

from lorabake.errors import FileError
from lorabake.paths import check_there
from lorabake.recipe import Recipe, Source


def find(recipe: Recipe, entry: Source) -> Path:
    """Return where an input is; raise FileError where there is nothing, or where its address was not fetched."""
    try:
        path = recipe.locate(entry)
        check_there(path, entry.path)
    except FileError as error:
        named = recipe.named_at(entry)
        if named is None:
            raise
        first, *rest = error.args
        raise FileError(first, named, *rest) from None
    return path
