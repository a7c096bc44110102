"""Check a recipe before its models are there: its text, its names, and with the models all that a plan finds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from lorabake.architectures import architectures
from lorabake.errors import FileError, LorabakeError, MatchError, SurroundingsError
from lorabake.likeness import nearest
from lorabake.matching.refusals import families, files
from lorabake.planning import Plan, plan
from lorabake.recipe import Lora, Recipe, Source, load_recipes, only
from lorabake.remote import address_of
from lorabake.settings import FETCH
from lorabake.sources import resolve
from lorabake.tensors.once import shared
from lorabake.visible import and_more, counted_as, size_of
from lorabake.writing.room import rooms_for

State = Literal["planned", "checked", "failed"]

NEAR = 0.85
"""How alike a pattern's first word and a known one are, from 0 to 1, if one is a slip of the other."""

SHOWN = 3


@dataclass(frozen=True, slots=True)
class Checked:
    """Hold what a check of one output found; `recipe` is None where its file cannot be read.

    `planned` means that its models are there and a bake was planned; `checked` that only the recipe could be looked
    at, because the inputs in `missing` are not there. `error` says why it failed.
    """

    path: Path
    state: State
    recipe: Recipe | None = None
    missing: tuple[str, ...] = ()
    error: LorabakeError | None = None
    plan: Plan | None = None


def check(
    paths: Iterable[Path], globs: Sequence[str] = (), *, with_inputs: bool = False
) -> Iterator[tuple[Checked, ...]]:
    """Check the files of recipes; yield what was found of each file's outputs whose names fit one of the patterns.

    With `with_inputs`, inputs that are missing and too small a disk are errors, too. A file of which no output is
    chosen is left out. Raise RecipeError for a pattern that fits no output.
    """
    files = [(path, _read(path)) for path in paths]
    recipes = [recipe for _, read in files if not isinstance(read, LorabakeError) for recipe in read]
    chosen = {id(recipe) for recipe in only(recipes, globs)}
    for path, read in files:
        if isinstance(read, LorabakeError):
            yield (Checked(path, "failed", error=read),)
        elif own := [recipe for recipe in read if id(recipe) in chosen]:
            yield _outputs(path, own, with_inputs=with_inputs)


def _read(path: Path) -> tuple[Recipe, ...] | LorabakeError:
    try:
        return load_recipes(path)
    except LorabakeError as error:
        return error


def _outputs(path: Path, recipes: Sequence[Recipe], *, with_inputs: bool) -> tuple[Checked, ...]:
    """Check the outputs of one file."""
    with shared():
        found = [_output(path, recipe, with_inputs=with_inputs) for recipe in recipes]
    planned = [each.plan for each in found if each.plan is not None]
    if with_inputs and (error := _too_large(planned)) is not None:
        found = [replace(each, state="failed", error=error) if each.plan is not None else each for each in found]
    return tuple(found)


def _output(path: Path, recipe: Recipe, *, with_inputs: bool) -> Checked:
    missing: tuple[str, ...] = ()
    try:
        missing = tuple(_missing(recipe))
        for lora in recipe.loras:
            _check_names(lora)
        if not missing:
            return Checked(path, "planned", recipe, plan=plan(resolve(recipe)))
        if with_inputs:
            raise _not_there(missing)
    except LorabakeError as error:
        return Checked(path, "failed", recipe, missing, error)
    return Checked(path, "checked", recipe, missing)


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


def _too_large(planned: Sequence[Plan]) -> SurroundingsError | None:
    """Return an error if a disk has not enough room for all outputs of a recipe."""
    for room in rooms_for(planned):
        if room.missing:
            one = len(room.plans) == 1
            subject = room.plans[0].path if one else f"{room.folder}: {counted_as(len(room.plans), 'output')}"
            return SurroundingsError(
                f"{subject}{': needs' if one else ' need'} {size_of(room.needed)}, "
                f"and {'its' if one else 'the'} disk has {size_of(room.free)} free",
                "Make room, or write to another disk.",
            )
    return None


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
