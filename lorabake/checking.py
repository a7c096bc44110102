"""Check a recipe before its models are there: its text, its names, and with the models all that a plan finds."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from lorabake.architectures import architectures
from lorabake.errors import FileError, LorabakeError, MatchError, SurroundingsError
from lorabake.likeness import nearest
from lorabake.machine import folder_above
from lorabake.matching.refusals import families, files
from lorabake.planning import Plan, plan
from lorabake.recipe import Lora, Recipe, Source, load_recipe
from lorabake.remote import address_of
from lorabake.settings import FETCH
from lorabake.sources import resolve
from lorabake.visible import and_more, size_of

State = Literal["planned", "checked", "failed"]

NEAR = 0.85
"""How alike a pattern's first word and a known one are, from 0 to 1, if one is a slip of the other."""

SHOWN = 3


@dataclass(frozen=True, slots=True)
class Checked:
    """Hold what a check of one recipe found.

    `planned` means that its models are there and a bake was planned; `checked` that only the recipe could be looked
    at, because the inputs in `missing` are not there. `error` says why it failed.
    """

    path: Path
    state: State
    missing: tuple[str, ...] = ()
    error: LorabakeError | None = None
    plan: Plan | None = None


def check(path: Path, *, with_inputs: bool = False) -> Checked:
    """Check a recipe; with `with_inputs`, inputs that are missing and too small a disk are errors, too."""
    missing: tuple[str, ...] = ()
    try:
        recipe = load_recipe(path)
        missing = tuple(_missing(recipe))
        for lora in recipe.loras:
            _check_names(lora)
        if not missing:
            planned = plan(resolve(recipe))
            if with_inputs:
                _check_disk(planned)
            return Checked(path, "planned", plan=planned)
        if with_inputs:
            raise _not_there(missing)
    except LorabakeError as error:
        return Checked(path, "failed", missing, error)
    return Checked(path, "checked", missing)


def recipes_in(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the recipes that are meant: a file is one, and a folder has those in it, but for locks."""
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*.y*ml") if file.suffix in (".yaml", ".yml"))
            yield from (file for file in found if not file.stem.endswith(".lock"))
        else:
            yield path


def _missing(recipe: Recipe) -> Iterator[str]:
    """Yield the paths, as they are written, of inputs that are not there."""
    yield from (entry.path for entry in recipe.inputs if not _is_there(recipe, entry))


def _is_there(recipe: Recipe, entry: Source) -> bool:
    try:
        return recipe.locate(entry).exists()
    except FileError:  # an address whose file was not fetched, or not as a whole
        return False


def _not_there(missing: tuple[str, ...]) -> FileError:
    paths = "Put the files where the recipe says, or change the paths. A path starts from the recipe's folder."
    advice = [paths] if any(address_of(path) is None for path in missing) else []
    advice += [str(FETCH)] if any(address_of(path) is not None for path in missing) else []
    return FileError(f"not there: {and_more(missing[:SHOWN], len(missing))}", *advice)


def _check_disk(planned: Plan) -> None:
    """Raise SurroundingsError where the output's disk has not enough room."""
    folder = folder_above(planned.path)
    free = shutil.disk_usage(folder).free
    if free < planned.size:
        raise SurroundingsError(
            f"{planned.path}: needs {size_of(planned.size)}, and its disk has {size_of(free)} free",
            "Make room, or write to another disk.",
        )


# -- names that need no model --------------------------------------------------------------------------------


def _check_names(lora: Lora) -> None:
    """Raise MatchError for a component, a family or a pattern that can be right for no model."""
    name = lora.path
    files.refuse(name, files.component_is_unknown(lora, None))
    files.refuse(name, families.said_family_is_unknown(lora.trained_on))
    for glob in lora.blocks:
        word = glob.split(".")[0]
        if word in _first_words() or not word.isidentifier():
            continue
        if close := nearest(word, _first_words(), cutoff=NEAR):
            raise MatchError(
                f"LoRA {name!r}: the blocks pattern {glob!r} fits no module of a known family",
                f"Did you mean {close}{glob[len(word) :]}?",
            )


@cache
def _first_words() -> frozenset[str]:
    """Collect the first words of all modules in all layouts, and the components."""
    words = set()
    for family in architectures():
        for component in family.components:
            words.add(component.name)
            for row in component.rows:
                for number in range(len(row.names)):
                    words.update(path.split(".")[0] for path in row.paths(number))
    return frozenset(words)
