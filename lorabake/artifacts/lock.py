"""A lock as a record and as text: what pins the inputs of a recipe, and what a bake of them gave.

The text is YAML with one fact a line, so that two people's changes meet in a version control system where they
differ. `lorabake.artifacts.reading` reads it, strictly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorabake.artifacts.digests import FileDigest, folder_sha256
from lorabake.artifacts.inputs import BESIDE, WHOLE
from lorabake.recipe import Recipe
from lorabake.recipe.values import scalar
from lorabake.visible import is_hidden, short_repr

VERSION = 1
"""The version of the lock's form. A lorabake that writes another one still reads this one."""


@dataclass(frozen=True, slots=True)
class LockedInput:
    """Pin one input: `path` as the recipe writes it, and each of its files by name.

    A lone file is under `WHOLE`; files beside the input are under `BESIDE` and their names. `sha256` is the file's or
    the folder's, as a recipe may state it. `source` and `revision` say where a remote input came from. `family` and
    `kinds` are for the reader: nothing is compared with them.
    """

    __repr__ = short_repr

    path: str
    files: Mapping[str, FileDigest]
    source: str | None = None
    revision: str | None = None
    family: str | None = None
    kinds: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        """Tell whether the input is a folder."""
        return WHOLE not in self.files

    @property
    def own(self) -> tuple[FileDigest, ...]:
        """List the input's files without those that lie beside it."""
        return tuple(file for name, file in sorted(self.files.items()) if not name.startswith(BESIDE))

    @property
    def beside(self) -> tuple[FileDigest, ...]:
        """List the files that lie beside the input and say how it is read."""
        return tuple(file for name, file in sorted(self.files.items()) if name.startswith(BESIDE))

    @property
    def size(self) -> int:
        """Count the bytes of the input's own files."""
        return sum(file.size for file in self.own)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the file, or the digest over the folder's files."""
        return folder_sha256(self.own) if self.is_folder else self.files[WHOLE].sha256

    @property
    def identity(self) -> str:
        """Return one digest of all that the input is, with what lies beside it."""
        return folder_sha256(self.files.values()) if self.beside else self.sha256


@dataclass(frozen=True, slots=True)
class LockedOutput:
    """Tell what a bake of the locked inputs gave: the digest of its data, and what computed them.

    An output of a matrix has its name, and the digest of its own recipe's normal form.
    """

    data_sha256: str
    lorabake: str
    torch: str | None
    device: str
    name: str | None = None
    recipe: str | None = None


@dataclass(frozen=True, slots=True)
class Lock:
    """Hold a lock: its inputs in the recipe's order, and outputs of the recipe whose normal form has this digest.

    For a recipe with a matrix it is one digest of all its outputs' recipes.
    """

    __repr__ = short_repr

    recipe: str
    inputs: tuple[LockedInput, ...]
    outputs: tuple[LockedOutput, ...] = ()

    def input(self, path: str) -> LockedInput | None:
        """Return the entry of the input that the recipe writes as `path`."""
        return next((each for each in self.inputs if each.path == path), None)

    def text(self, recipe: Path) -> str:
        """Write the lock of a recipe's file as YAML."""
        return "\n".join(_lines(self, recipe.name)) + "\n"


def recipe_sha256(*recipes: Recipe) -> str:
    """Return the digest of a recipe's normal form, or one of several recipes, in whatever order."""
    digests = sorted(hashlib.sha256(recipe.normal_json().encode()).hexdigest() for recipe in recipes)
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _lines(lock: Lock, recipe: str) -> Iterator[str]:
    yield f"# Pins the inputs of {_shown(recipe)}; to be kept beside it. `lorabake lock` makes it: do not edit it."
    yield f"version: {VERSION}"
    yield f"recipe: {_hex(lock.recipe)}"
    yield "inputs:" if lock.inputs else "inputs: []"
    for each in lock.inputs:
        yield f"- path: {_scalar(each.path)}"
        for key, text in (("source", each.source), ("revision", each.revision)):
            if text is not None:
                yield f"  {key}: {_scalar(text)}"
        yield f"  size: {each.size}"
        yield f"  sha256: {_hex(each.sha256)}"
        if each.family is not None:
            yield f"  family: {_scalar(each.family)}"
        if each.kinds:
            yield f"  kinds: [{', '.join(map(_scalar, each.kinds))}]"
        for key, files in (("files", each.own if each.is_folder else ()), ("beside", each.beside)):
            if files:
                yield f"  {key}:"
            for file in files:
                yield f"  - name: {_scalar(file.name.removeprefix(BESIDE))}"
                yield f"    size: {file.size}"
                yield f"    sha256: {_hex(file.sha256)}"
    if lock.outputs:
        yield "outputs:"
    for output in lock.outputs:
        yield f"- data_sha256: {_hex(output.data_sha256)}"
        yield f"  lorabake: {_scalar(output.lorabake)}"
        if output.torch is not None:
            yield f"  torch: {_scalar(output.torch)}"
        yield f"  device: {_scalar(output.device)}"
        if output.name is not None:
            yield f"  name: {_scalar(output.name)}"
        if output.recipe is not None:
            yield f"  recipe: {_hex(output.recipe)}"


def _scalar(text: str) -> str:
    """Write a text so that YAML reads it as it is, whatever is in it."""
    plain = text.replace("/", "").replace(".", "").replace("-", "").replace("_", "")
    if plain.isascii() and plain.isalnum() and text[0].isalpha() and text.lower() not in _WORDS:
        return text
    return "".join(_letter(letter) for letter in json.dumps(text, ensure_ascii=False))


def _hex(digest: str) -> str:
    """Write a digest, in quotes where YAML would read a number: 12…e…34."""
    return digest if scalar(digest) == digest else f'"{digest}"'


def _letter(letter: str) -> str:
    """Escape what is not seen, or what YAML does not allow in a text."""
    return f"\\U{ord(letter):08x}" if is_hidden(letter) or not letter.isprintable() else letter


def _shown(text: str) -> str:
    return "".join("?" if is_hidden(letter) or not letter.isprintable() else letter for letter in text)


_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
"""Texts that some reader of YAML takes for something else."""
