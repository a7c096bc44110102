"""Fetch the inputs of a recipe that have addresses. Nothing else in lorabake downloads anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

from pydantic import BaseModel

from lorabake.errors import FileError
from lorabake.progress import NotebookBar
from lorabake.recipe import Recipe, Source
from lorabake.recipe.given import Given, RecipeKeys, recipe_given, takes_a_recipe
from lorabake.remote import Fetched, Progress, Wanted, address_of


@takes_a_recipe
def fetch(
    recipe: Given | None = None, progress: Progress | None = None, **keys: Unpack[RecipeKeys]
) -> tuple[Fetched, ...]:
    """Download the inputs of a recipe that have addresses and are not on this machine yet; return where each is.

    `recipe` and the keywords are those of `plan`. `progress` shows how far a download is; without it, a notebook
    shows a bar.

    Raise FileError where an address, a login or a file is wrong, and SurroundingsError where the network is.

    Examples:
        >>> lorabake.fetch("recipe.yaml")  # its inputs are files on this machine
        ()
    """
    return fetch_all((recipe_given(recipe, keys),), progress)


def fetch_all(recipes: Sequence[Recipe], progress: Progress | None = None) -> tuple[Fetched, ...]:
    """Download the inputs of several recipes, each once, as `fetch` does."""
    with NotebookBar(shown=progress is None) as bar:
        return tuple(
            address.fetch(wanted, progress or bar)
            for text, wanted in _addressed(recipes)
            if (address := address_of(text)) is not None
        )


def _addressed(recipes: Sequence[Recipe]) -> tuple[tuple[str, Wanted], ...]:
    """List each address in recipes with what else is known of it; raise FileError for two digests of one address."""
    entries: dict[tuple[str, str | None], Wanted] = {}
    digests: dict[str, str | None] = {}
    for recipe, entry in [(each, entry) for each in recipes for entry in _entries(each)]:
        text = entry.path if isinstance(entry, Source) else entry
        wanted = recipe.wanted(entry)
        if address_of(text) is None:
            continue
        entries.setdefault((text, wanted.variant), wanted)
        if digests.setdefault(text, wanted.sha256) not in (None, wanted.sha256):
            raise FileError(f"{text}: the recipe has two digests for it", "One address leads to one file.")
    return tuple((text, wanted) for (text, _), wanted in entries.items())


def _entries(part: BaseModel) -> Iterator[Source | str]:
    """Yield all inputs below a part of a recipe."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        for inner in value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else (value,):
            if isinstance(inner, Source):
                yield inner
            elif isinstance(inner, BaseModel):
                yield from _entries(inner)
    for name in ("config", "tokenizers"):
        if isinstance(text := getattr(part, name, None), str):
            yield text
