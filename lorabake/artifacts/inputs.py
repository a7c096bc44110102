"""Which files an input of a recipe is: those that a lock pins, and that a key of the output stands for.

An input that is a file is this file. One that is a folder is: its files with weights as far as they are read, their
indexes, and everything that is neither weights nor hidden nor a model card; but not the recipe or its lock, should
they lie there. Beside both there may be files that say how an input is read: adapter_config.json beside a LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorabake.errors import FileError
from lorabake.planning import is_card
from lorabake.recipe import Recipe, Source
from lorabake.recipe.values import Place
from lorabake.sources import Sources
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.visible import short_repr

BESIDE = "../"
"""Begins the names of files that lie beside an input, and not in it."""

WHOLE = "/"
"""The name of an input that is one file, whatever the file is called."""


@dataclass(frozen=True, slots=True)
class InputFiles:
    """Name the files of an input that a recipe writes as `path`.

    `places` are where in the recipe it is written. `files` are by their names below the folder, or under `WHOLE`;
    those beside the input are under `BESIDE` and their names. `weights` names the files with weights.
    """

    __repr__ = short_repr

    path: str
    is_folder: bool
    places: tuple[Place, ...]
    files: Mapping[str, Path] = field(default_factory=dict)
    weights: tuple[str, ...] = ()


def lock_of(recipe: Path) -> Path:
    """Return where the lock of a recipe's file lies: portrait.lock.yaml beside portrait.yaml."""
    suffix = recipe.suffix if recipe.suffix.lower() in (".yaml", ".yml") else ""
    return recipe.with_name(f"{recipe.name.removesuffix(suffix)}.lock{suffix or '.yaml'}")


def input_files(sources: Sources) -> tuple[InputFiles, ...]:
    """List every input of a recipe with its files, in the recipe's order; an input that is written twice comes once.

    Raise FileError for a file whose name is no text.
    """
    by_path: dict[str, InputFiles] = {}
    entries = [*zip(sources.inputs, entries_of(sources.recipe), strict=True)]
    for (checkpoint, entry), place in entries:
        before = by_path.get(entry.path) or InputFiles(entry.path, checkpoint.is_folder, ())
        files = {**before.files, **dict(_files(sources, checkpoint))}
        weights = (
            () if not checkpoint.is_folder else (_name(header.path, checkpoint) for header in checkpoint.headers)
        )
        names = tuple(dict.fromkeys([*before.weights, *(weights or [WHOLE])]))
        by_path[entry.path] = replace(before, places=(*before.places, place), files=files, weights=names)
    known = {path for each in by_path.values() for path in each.files.values()}
    for (checkpoint, entry), _ in entries:
        decided = [path for path in sources.evidence.read if path not in known and _is_beside(path, checkpoint)]
        known.update(decided)
        before = by_path[entry.path]
        files = {**before.files, **{_name(path, checkpoint): path for path in decided}}
        by_path[entry.path] = replace(before, files=files)
    _check_names(by_path.values())
    return tuple(by_path.values())


def merged(inputs: Iterable[InputFiles]) -> tuple[InputFiles, ...]:
    """Put the inputs of several outputs together: each path comes once, with the files that any of them reads."""
    by_path: dict[str, InputFiles] = {}
    for each in inputs:
        before = by_path.setdefault(each.path, each)
        weights = tuple(dict.fromkeys([*before.weights, *each.weights]))
        by_path[each.path] = replace(before, files={**before.files, **each.files}, weights=weights)
    return tuple(by_path.values())


def entries_of(recipe: Recipe) -> dict[Place, Source]:
    """Map the places where a recipe writes its inputs to their entries, in the order of `Sources.inputs`."""
    entries: dict[Place, Source] = {("base",): recipe.base}
    entries |= {("loras", number): lora for number, lora in enumerate(recipe.loras)}
    entries |= {("vae",): recipe.vae} if recipe.vae is not None else {}
    return entries | {("output", "parts", name): part for name, part in sorted((recipe.output.parts or {}).items())}


def _files(sources: Sources, checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    """Yield the files of one input by their names."""
    weights = [header.path for header in checkpoint.headers]
    sides = [weights[0].with_name(side.name) for side in sources.evidence.sides_of(checkpoint)]
    if not checkpoint.is_folder:
        yield WHOLE, checkpoint.path
        yield from ((_name(path, checkpoint), path) for path in sides)
        return
    own = sources.recipe.file
    apart = set() if own is None else {own, lock_of(own)}
    indexes = [checkpoint.path / part.folder / part.index for part in checkpoint.parts if part.index is not None]
    others = [checkpoint.path / name for name in checkpoint.side_files if not is_card(name)]
    for path in dict.fromkeys([*weights, *indexes, *others, *sides]):
        if path.absolute() not in apart:
            yield _name(path, checkpoint), path


def _is_beside(path: Path, checkpoint: Checkpoint) -> bool:
    """Tell whether a small file that decided something belongs to an input."""
    if checkpoint.is_folder:
        return path.is_relative_to(checkpoint.path)
    return path.parent == checkpoint.path.parent


def _name(path: Path, checkpoint: Checkpoint) -> str:
    if checkpoint.is_folder and path.is_relative_to(checkpoint.path):
        return path.relative_to(checkpoint.path).as_posix()
    return BESIDE + path.name


def _check_names(inputs: Iterable[InputFiles]) -> None:
    for path in (path for each in inputs for path in each.files.values()):
        if any("\ud800" <= letter <= "\udfff" for letter in path.name):
            raise FileError(f"{path}: its name is not UTF-8", "Rename it: a lock is text, and cannot name it.")
