"""Read the recipes that a command for several is given: what cannot be read is told at once, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from lorabake.cli.messages import messages
from lorabake.errors import LorabakeError, RecipeError
from lorabake.recipe import Recipe, is_chosen, only

if TYPE_CHECKING:
    from lorabake.sources.received import Received

Given = TypeVar("Given", Recipe, "Recipe | Received")


@dataclass(frozen=True, slots=True)
class Unread:
    """Name a file that could not be read, and say why."""

    path: Path
    error: LorabakeError


@dataclass(frozen=True, slots=True)
class Read(Generic[Given]):
    """Hold the recipes that were read, and the files that could not be."""

    given: tuple[Given, ...]
    unread: tuple[Unread, ...]


def read_all(
    files: Sequence[Path], paths: Iterable[Path], read: Callable[[Path], Iterable[Given]], globs: Sequence[str]
) -> Read[Given]:
    """Read the recipes at `paths`, which `files` of a command line stand for; `globs` choose among the outputs.

    Raise RecipeError where there is none, and for a pattern that fits no output.
    """
    given: list[Given] = []
    unread: list[Unread] = []
    for path in paths:
        messages.recipe = path
        try:
            given += read(path)
        except LorabakeError as error:
            unread.append(Unread(path, error))
            messages.error(*error.lines)
    only([each for each in given if isinstance(each, Recipe)], globs)
    chosen = tuple(each for each in given if not isinstance(each, Recipe) or is_chosen(each, globs))
    if not chosen and not unread:
        raise RecipeError(f"{files[0]}: there is no recipe", "Give files, or folders with *.yaml in them.")
    return Read(chosen, tuple(unread))
