"""Where a command may write beside its output: asked before anything takes its time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from lorabake.errors import SurroundingsError, TargetError
from lorabake.planning import Plan
from lorabake.recipe import Recipe
from lorabake.writing.partial import partial_of

READ_BESIDE = ("adapter_config.json", "config.json", "hyperparameters.yaml", "model_config.yaml")


def check_writable(path: Path, what: str) -> None:
    """Raise TargetError for a file that cannot be written, SurroundingsError for one that may not be.

    `what` says what it is: the report.
    """
    try:
        is_there = path.exists()
    except OSError as error:  # too long a name
        raise TargetError(f"{path}: the {what} cannot be written: {error.strerror}") from None
    if path.is_dir():
        raise TargetError(f"{path}: is a folder, and the {what} is a file", "Name a file in it, or another one.")
    if not path.parent.is_dir():
        why = "is no folder" if os.path.lexists(path.parent) else "there is no such folder; make it first"
        raise TargetError(f"{path}: the {what} cannot be written: {path.parent}: {why}")
    is_special = is_there and not path.is_file()  # such as /dev/stdout
    written = [path] * is_there + [_real(path).parent] * (not is_special)
    if not all(os.access(place, os.W_OK) for place in written):
        raise SurroundingsError(f"{path}: the {what} cannot be written: no permission")


def check_apart(written: Iterable[Path], what: str, taken: Iterable[Path], folders: Iterable[Path]) -> None:
    """Raise TargetError where one of the files that are to be written is taken, or lies in one of the folders.

    Files are told by where they are, not by their names: links of either sort are followed.
    """
    places = {place for path in taken for place in _identities(path)}
    within = {place for path in folders for place in _identities(path)}
    other = f"choose another file for the {what}"
    for path in written:
        if not places.isdisjoint(_identities(path)):
            raise TargetError(f"{path}: is the output, or an input, of this recipe; {other}")
        if any(not within.isdisjoint(_identities(folder)) for folder in (path, *_real(path).parents)):
            raise TargetError(f"{path}: lies in the output's folder; {other}")


def are_one(path: Path, other: Path) -> bool:
    """Tell whether two paths lead to one file."""
    return not {*_identities(path)}.isdisjoint(_identities(other))


def taken_by(plan: Plan) -> Iterator[Path]:
    """Yield every file that a bake reads or writes."""
    yield from files_of(plan.sources.recipe, plan.path)
    yield from (embedding.path for embedding in plan.embeddings)


def files_of(recipe: Recipe, baked: Path) -> Iterator[Path]:
    """Yield every file that a recipe is baked from, and its output, with what may be written for it meanwhile."""
    yield from (path for path in (recipe.file, baked) if path is not None)
    yield partial_of(baked)
    for entry in recipe.inputs:
        path = recipe.locate(entry)
        yield path
        yield from path.rglob("*") if path.is_dir() else _beside(path)


def _beside(path: Path) -> Iterator[Path]:
    """Yield the files beside one that may be read with it: configurations, and the shards of an index."""
    yield from (path.with_name(name) for name in READ_BESIDE)
    yield from path.parent.glob("*.safetensors") if path.suffix == ".json" else ()


def _identities(path: Path) -> Iterator[object]:
    """Yield what tells that two paths are one file: where it lies without links, and its inode if it is there."""
    yield _real(path)
    with suppress(OSError, ValueError):
        status = path.stat()
        yield status.st_dev, status.st_ino


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
