"""Take the recipe out of a baked file's header, and find its inputs again by their names and digests.

Whoever receives a baked file seldom has the inputs in the folders that the recipe names. The header states the size
and the digest of each input: of the whole file for a LoRA, of the file's header for a base. So an input may lie in
another folder, and have another name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ValidationError

from lorabake import settings
from lorabake.errors import FileError, LorabakeError, first_line
from lorabake.paths import missing as missing_lines
from lorabake.recipe import Recipe, Source, Verify, recipe_of, values_of
from lorabake.recipe.changes import read_change, with_changes
from lorabake.storage.fields import INPUTS, RECIPE
from lorabake.tensors.checkpoint import Checkpoint, open_checkpoint
from lorabake.tensors.reader import is_there, sha256_of
from lorabake.tensors.small import json_or_text, parse_json
from lorabake.visible import short_repr, some

PREDICTIONS = ("epsilon", "v_prediction")

By = Literal["digest", "name", "option", ""]
"""What an input was found by: its name alone where no file has its digest. "" is of one that was not found."""


@dataclass(frozen=True, slots=True)
class Stated:
    """Say what a header states of one file of an input: its name within a folder, its size, and one digest."""

    name: str
    size: int | None
    sha256: str | None
    header_sha256: str | None


@dataclass(frozen=True, slots=True)
class Input:
    """Describe one input as a header does: its `role` (base, lora 1, vae), its path there, and its files."""

    role: str
    path: str
    files: tuple[Stated, ...] = ()
    is_folder: bool = False
    variant: str | None = None

    @property
    def identity(self) -> str:
        """Write the digest that tells which file it is, in words; nothing where the header states none."""
        first = next(iter(self.files), None)
        if first is None or self.is_folder:
            return ""
        if first.sha256:
            return f"SHA-256 {first.sha256}"
        return f"SHA-256 of its header {first.header_sha256}" if first.header_sha256 else ""


@dataclass(frozen=True, slots=True)
class Found:
    """Say where an input lies now; `place` is None, and `by` empty, where it was not found."""

    input: Input
    place: Path | None
    by: By


@dataclass(frozen=True, slots=True)
class Received:
    """Hold the recipe of a baked file, with the paths at which its inputs were found, and how."""

    __repr__ = short_repr

    baked: Path
    recipe: Recipe
    found: tuple[Found, ...]
    looked_in: tuple[Path, ...]

    @property
    def missing(self) -> tuple[Input, ...]:
        """List the inputs that were not found."""
        return tuple(found.input for found in self.found if found.place is None)

    def complete(self) -> Received:
        """Return this if every input was found; else raise FileError, which says what to look for."""
        if not self.missing:
            return self
        names = some([wanted.path for wanted in self.missing])
        places = " or ".join(str(folder) for folder in self.looked_in)
        told = (f"  {wanted.path}: {wanted.identity}" for wanted in self.missing if wanted.identity)
        raise FileError(
            f"{self.baked}: the inputs of its recipe are not in {places}: {names}",
            *told,
            f"Say in which folders they lie with {settings.INPUTS}: they may have other names.",
        )


def recipe_in(given: Recipe | Received) -> Recipe:
    """Return a recipe that was given, or the one of a baked file that was."""
    return given.recipe if isinstance(given, Received) else given


def received(baked: Path, inputs: Path | Iterable[Path] | None = None, changes: Sequence[str] = ()) -> Received:
    """Return the recipe in a checkpoint's metadata, with its inputs where they lie now.

    They are looked for in `inputs` and all folders below; without `inputs`, beside the checkpoint and in the current
    folder. `changes` are texts such as verify.steps=20; paths in them start from the current folder, and are not
    looked for elsewhere. Raise FileError for a checkpoint without a recipe.
    """
    if not is_there(baked):
        raise FileError(*missing_lines(baked, str(baked)))
    header = open_checkpoint(baked)
    recipe, changed = _embedded(baked, header.metadata, changes)
    given = [inputs] if isinstance(inputs, Path) else [*(inputs or ())]
    for folder in given:
        if not folder.is_dir():
            raise FileError(f"{folder}: is no folder", "Name the folder in which the inputs lie.")
    folders = given or [*dict.fromkeys((baked.absolute().parent, Path.cwd()))]
    looked = _Folders(folders, is_deep=bool(given))
    stated, fetched = inputs_in(header.metadata, recipe), _fetched(recipe)
    found = tuple(
        Found(wanted, Path(wanted.path), "option")
        if wanted.role in changed
        else _at(fetched[wanted.role], wanted)
        if wanted.role in fetched
        else looked.find(wanted)
        for wanted in stated
    )
    return Received(baked, _placed(recipe, found, folders, fetched), found, tuple(folders))


def _fetched(recipe: Recipe) -> dict[str, Path]:
    """Map the inputs that have addresses to where they lie in this machine's caches."""
    places = {}
    for role, source in _sources(recipe):
        if source.address is not None:
            with suppress(FileError):
                places[role] = recipe.locate(source)
    return places


def inputs_in(metadata: Mapping[str, str], recipe: Recipe) -> tuple[Input, ...]:
    """List the inputs of a header's recipe with what the header states of each."""
    said = json_or_text(metadata.get(INPUTS, "{}"))
    known: Mapping[str, Any] = said if isinstance(said, dict) else {}
    loras = known.get("loras")
    loras = loras if isinstance(loras, list) and len(loras) == len(recipe.loras) else [None] * len(recipe.loras)
    listed = [_input("base", recipe.base.path, known.get("base"), recipe.base.variant)]
    listed += [_input(f"lora {number + 1}", lora.path, loras[number]) for number, lora in enumerate(recipe.loras)]
    listed += [_input("vae", recipe.vae.path, known.get("vae"))] if recipe.vae else []
    said_parts = known.get("parts")
    parts = said_parts if isinstance(said_parts, dict) else {}
    listed += [_input(f"part {name}", part.path, parts.get(name)) for name, part in recipe.output.parts.items()]
    return tuple(listed)


def _input(role: str, path: str, described: object, variant: str | None = None) -> Input:
    """Read what `planning.provenance.describe` writes; a header that states nothing leaves the name alone."""
    if not isinstance(described, dict):
        return Input(role, path, variant=variant)
    listed = described.get("files")
    entries = listed if isinstance(listed, list) else [described]
    files = tuple(
        Stated(
            str(each.get("name")),
            _whole(each.get("size")),
            _hex(each.get("sha256")),
            _hex(each.get("header_sha256")),
        )
        for each in entries
        if isinstance(each, dict) and "size" in each  # the others lie beside it, and are looked at with it
    )
    is_folder = "files" in described and bool(files) and files[0].name != described.get("path")
    return Input(role, path, files, is_folder, variant)


def _whole(value: object) -> int | None:
    return value if type(value) is int else None


def _hex(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) == 64 else None


def _embedded(baked: Path, metadata: Mapping[str, str], changes: Sequence[str]) -> tuple[Recipe, set[str]]:
    """Read the recipe in a header; return it with the roles whose paths `changes` set."""
    text = metadata.get(RECIPE)
    if text is None:
        raise FileError(
            f"{baked}: holds no recipe, so lorabake did not bake it",
            f"Give the recipe that it should follow: {settings.VERIFY}",
        )
    try:
        form: Any = parse_json(text)
        for lora in form["loras"]:
            lora["blocks"] = dict(lora["blocks"])
        form["output"]["path"] = baked.name
        predicts, fields = form.pop("prediction", None), form["output"].pop("metadata", None)
        read: Any = _as_read(form)
        if fields is not None:
            read["output"]["metadata"] = fields  # in which null has a meaning
        values = values_of(read, str(baked))
        recipe = _predicting(Recipe.model_validate(values.data), predicts)
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise FileError(f"{baked}: the recipe in its metadata is damaged: {first_line(error, None)}") from None
    if not changes:
        return recipe, set()
    changed = recipe_of(with_changes(values, map(read_change, changes), Path.cwd(), None), Path.cwd())
    before, after = dict(_paths(recipe)), dict(_paths(changed))
    return _predicting(changed, predicts), {role for role, path in after.items() if before.get(role) != path}


def _predicting(recipe: Recipe, predicts: object) -> Recipe:
    """Return a recipe whose `verify` says what the model predicts: of that, a header keeps nothing else."""
    if predicts is None or (recipe.verify is not None and recipe.verify.prediction is not None):
        return recipe
    if predicts not in PREDICTIONS:
        raise ValueError(f"prediction is {predicts!r}")
    said = recipe.verify or Verify.model_construct(_fields_set={"prompts"}, prompts=())
    return recipe.model_copy(update={"verify": said.model_copy(update={"prediction": predicts})})


def _paths(recipe: Recipe) -> Iterator[tuple[str, str]]:
    return ((role, source.path) for role, source in _sources(recipe))


def _sources(recipe: Recipe) -> Iterator[tuple[str, Source]]:
    yield "base", recipe.base
    yield from ((f"lora {number + 1}", lora) for number, lora in enumerate(recipe.loras))
    if recipe.vae is not None:
        yield "vae", recipe.vae
    yield from ((f"part {name}", part) for name, part in recipe.output.parts.items())


def _placed(recipe: Recipe, found: Sequence[Found], folders: Sequence[Path], fetched: Mapping[str, Path]) -> Recipe:
    """Return the recipe with the paths at which its inputs lie: as they are if one folder has all of them.

    What was `fetched` keeps its address.
    """
    found = [each for each in found if each.place is None or fetched.get(each.input.role) != each.place]
    for folder in folders:
        if all(each.place in (None, folder / each.input.path) for each in found):
            return recipe.placed(folder)
    start = folders[0].absolute()
    places = {each.input.role: _from(start, each.place.absolute()) for each in found if each.place is not None}

    def moved(role: str, source: Any) -> Any:
        return source.model_copy(update={"path": places[role]}) if role in places else source

    update: dict[str, object] = {
        "base": moved("base", recipe.base),
        "loras": tuple(moved(f"lora {number + 1}", lora) for number, lora in enumerate(recipe.loras)),
    }
    if recipe.vae is not None:
        update["vae"] = moved("vae", recipe.vae)
    if parts := {name: moved(f"part {name}", part) for name, part in recipe.output.parts.items()}:
        update["output"] = recipe.output.model_copy(update={"parts": parts})
    return recipe.model_copy(update=update).placed(folders[0])


def _from(start: Path, place: Path) -> str:
    """Write a path from a folder if it lies there, which is shorter and says nothing of this machine."""
    return place.relative_to(start).as_posix() if place.is_relative_to(start) else str(place)


def _as_read(value: object) -> object:
    """Turn JSON into the values that a recipe is read from: without nulls, with sequences as tuples."""
    match value:
        case dict():
            return {key: _as_read(each) for key, each in value.items() if each is not None}
        case list():
            return tuple(map(_as_read, value))
    return value


# -- Finding ---------------------------------------------------------------------------------------------


class _Folders:
    """Look for inputs in folders, and below them if `is_deep`; each folder is listed once."""

    def __init__(self, folders: Sequence[Path], *, is_deep: bool) -> None:
        self.folders, self.is_deep = folders, is_deep
        self._entries: list[Path] | None = None

    def find(self, wanted: Input) -> Found:
        """Find an input: by its path, by its name in these folders, by its digest; at last by its name alone."""
        name = PurePosixPath(wanted.path).name
        named = [folder / path for folder in self.folders for path in dict.fromkeys((wanted.path, name))]
        there = [place for place in named if is_there(place)]
        for place in there:
            if not place.exists():  # a link to nothing: whoever opens it says so
                return Found(wanted, place, "name")
            if not wanted.files or fits(place, wanted):
                return Found(wanted, place, "digest" if wanted.files else "name")
        entries = self._below()
        for place in sorted(entries, key=lambda entry: entry.name != name):
            if wanted.files and place not in there and fits(place, wanted):
                return Found(wanted, place, "digest")
        if not there:
            there = [place for place in entries if place.name == name]
        return Found(wanted, there[0], "name") if there else Found(wanted, None, "")

    def _below(self) -> list[Path]:
        """List files and folders in and below the folders, sorted."""
        if self._entries is None:
            self._entries = [entry for folder in self.folders for entry in self._listed(folder)]
        return self._entries

    def _listed(self, folder: Path) -> Iterator[Path]:
        for place, inner, files in os.walk(folder):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            yield from (Path(place, name) for name in (*sorted(files), *inner))
            if not self.is_deep:
                return


def _at(place: Path, wanted: Input) -> Found:
    """Say of an input whose place is known whether it is the file that the header states."""
    return Found(wanted, place, "digest" if fits(place, wanted) else "name")


def fits(place: Path, wanted: Input) -> bool:
    """Tell whether a file or folder is an input of which a header states sizes and digests."""
    try:
        if place.is_dir() != wanted.is_folder or not all(_has_size(place, wanted, file) for file in wanted.files):
            return False
        digests = _digests(open_checkpoint(place, wanted.variant if wanted.is_folder else None), wanted)
    except (LorabakeError, OSError, ValueError):
        return False
    due = {file.name if wanted.is_folder else "": file for file in wanted.files}
    return bool(due) and digests.keys() == due.keys() and all(digests[name] == due[name] for name in due)


def _has_size(place: Path, wanted: Input, file: Stated) -> bool:
    """Tell whether a file has the size that a header states, before anything is read."""
    path = place / file.name if wanted.is_folder else place
    return path.is_file() and path.stat().st_size == file.size


def _digests(checkpoint: Checkpoint, wanted: Input) -> dict[str, Stated]:
    """Take from a checkpoint's files what a header states of them, by name."""
    due = {file.name: file for file in wanted.files}
    taken = {}
    for header in checkpoint.headers:
        inside = checkpoint.is_folder and header.path.is_relative_to(checkpoint.path)
        name = header.path.relative_to(checkpoint.path).as_posix() if inside else ""
        stated = due.get(name) if wanted.is_folder else wanted.files[0]
        whole = stated is not None and stated.sha256 is not None
        digest = sha256_of(header.path) if whole else None
        own = wanted.files[0].name if not wanted.is_folder else name
        taken[name] = Stated(own, header.size, digest, None if whole else header.sha256)
    return taken
