"""Read a lock, strictly: a text that lorabake did not write is told with its line, and with what mends it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from lorabake.artifacts.digests import FileDigest, folder_sha256
from lorabake.artifacts.inputs import BESIDE, WHOLE, lock_of
from lorabake.artifacts.lock import VERSION, Lock, LockedInput, LockedOutput
from lorabake.errors import FileError, LockError, RecipeError
from lorabake.machine import why
from lorabake.recipe.values import Place, Values, read_values
from lorabake.recipe.words import Fault, Spot, found, quoted
from lorabake.settings import LOCK, UPDATE_LOCK
from lorabake.tensors.small import read_small

MOST = 1 << 26
"""Most bytes of a lock; one of a folder with 20,000 files has 4 MB."""

CONFLICT = re.compile(r"(<{7}|={7}|>{7}|\|{7})(\s|$)")
"""A line that git writes where two people's changes meet."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def shown(path: Path) -> str:
    """Write a path relative to the current folder if that is shorter."""
    try:
        return min(os.path.relpath(path), str(path), key=len)
    except (OSError, ValueError):  # the current folder is gone
        return str(path)


def command(recipe: Path, update: str = "") -> str:
    """Write what mends a recipe's lock, or the entry of one input."""
    words = (shown(recipe), update)
    return (UPDATE_LOCK if update else LOCK).of(*(way for word in words for way in (word, shlex.quote(word))))


def read_lock(recipe: Path) -> Lock:
    """Read the lock of a recipe's file; raise LockError where there is none, or where it is not as it was written."""
    path = lock_of(recipe)
    try:
        text = read_small(path, MOST, "a lock").decode()
    except FileNotFoundError:
        raise LockError(
            f"{shown(recipe)}: has no lock {path.name}", f"Make it, and keep it beside the recipe: {command(recipe)}"
        ) from None
    except UnicodeDecodeError:
        raise LockError(f"{shown(path)}: is no text in UTF-8", _again(recipe)) from None
    except FileError as error:
        raise LockError(*error.args, _again(recipe)) from None
    except (OSError, ValueError) as error:
        raise LockError(f"{shown(path)}: {why(error)}") from None
    return parse_lock(text, recipe)


def parse_lock(text: str, recipe: Path) -> Lock:
    """Read the text of the lock of a recipe's file."""
    name = shown(lock_of(recipe))
    for number, line in enumerate(text.splitlines(), 1):
        if CONFLICT.match(line):
            raise LockError(
                f"{name}:{number}: two versions of the lock meet here, and nobody has settled it: {line[:40]}",
                f"Settle the recipe first. Then make the lock anew: {command(recipe)}",
            )
    if not text.strip():
        raise LockError(f"{name}: is empty", _again(recipe))
    try:
        return _Reader(read_values(text, name)).lock()
    except RecipeError as error:
        raise LockError(error.args[0].replace("the recipe", "the lock"), _again(recipe)) from None
    except _WrongError as error:
        raise LockError(error.args[0].line, error.args[1] or _again(recipe)) from None


def _again(recipe: Path) -> str:
    return f"A lock is not made by hand. Make it anew: {command(recipe)}"


class _WrongError(Exception):
    """Carry a fault, and what to do if that is not to make the lock anew."""


class _Reader:
    """Turn values into a lock; each method reads what is at one place, and knows where it was written."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def lock(self) -> Lock:
        for fault in self._values.faults:
            raise _WrongError(fault, "")
        top = self._mapping(self._values.data, (), {"version"}, set(), check_keys=False)
        version = top["version"]
        if type(version) is not int or version < 1:
            raise self._wrong(("version",), f"the version of a lock is {VERSION}, found {found(version)}")
        if version > VERSION:
            raise self._wrong(
                ("version",),
                f"the lock has version {version}, and this lorabake reads {VERSION}",
                "A newer lorabake made it: install that one, or one that is newer.",
            )
        self._mapping(top, (), {"version", "recipe", "inputs"}, {"outputs"})
        inputs = tuple(
            self._input(value, ("inputs", number)) for number, value in self._list(top["inputs"], ("inputs",))
        )
        first: dict[str, int] = {}
        for number, each in enumerate(inputs):
            if first.setdefault(each.path, number) != number:
                raise self._wrong(("inputs", number, "path"), f"{quoted(each.path)} has an entry already")
        outputs = self._list(top.get("outputs", ()), ("outputs",))
        return Lock(
            self._sha256(top["recipe"], ("recipe",)),
            inputs,
            tuple(self._output(value, ("outputs", number)) for number, value in outputs),
        )

    def _input(self, value: object, place: Place) -> LockedInput:
        optional = {"source", "revision", "family", "kinds", "files", "beside"}
        entry = self._mapping(value, place, {"path", "size", "sha256"}, optional)
        size, sha256 = self._size(entry["size"], (*place, "size")), self._sha256(entry["sha256"], (*place, "sha256"))
        own = {file.name: file for file in self._files(entry.get("files", ()), (*place, "files"))}
        beside = [
            FileDigest(BESIDE + file.name, file.size, file.sha256)
            for file in self._files(entry.get("beside", ()), (*place, "beside"))
        ]
        if "files" not in entry:
            own[WHOLE] = FileDigest(WHOLE, size, sha256)
        elif sum(file.size for file in own.values()) != size:
            raise self._wrong((*place, "size"), "is not the sum of the sizes of its files")
        elif folder_sha256(own.values()) != sha256:
            raise self._wrong((*place, "sha256"), "is not the digest of the files below it")
        texts = {
            key: self._text(entry[key], (*place, key)) if key in entry else None
            for key in ("source", "revision", "family")
        }
        kinds = self._list(entry.get("kinds", ()), (*place, "kinds"))
        return LockedInput(
            path=self._text(entry["path"], (*place, "path")),
            files={**own, **{file.name: file for file in beside}},
            kinds=tuple(self._text(kind, (*place, "kinds", number)) for number, kind in kinds),
            **texts,
        )

    def _files(self, value: object, place: Place) -> Iterator[FileDigest]:
        names: set[str] = set()
        for number, item in self._list(value, place):
            at = (*place, number)
            entry = self._mapping(item, at, {"name", "size", "sha256"}, set())
            name = self._text(entry["name"], (*at, "name"))
            if name in names:
                raise self._wrong((*at, "name"), f"{quoted(name)} has an entry already")
            names.add(name)
            yield FileDigest(
                name, self._size(entry["size"], (*at, "size")), self._sha256(entry["sha256"], (*at, "sha256"))
            )

    def _output(self, value: object, place: Place) -> LockedOutput:
        entry = self._mapping(value, place, {"data_sha256", "lorabake", "device"}, {"torch", "name", "recipe"})
        return LockedOutput(
            self._sha256(entry["data_sha256"], (*place, "data_sha256")),
            self._text(entry["lorabake"], (*place, "lorabake")),
            self._text(entry["torch"], (*place, "torch")) if "torch" in entry else None,
            self._text(entry["device"], (*place, "device")),
            self._text(entry["name"], (*place, "name")) if "name" in entry else None,
            self._sha256(entry["recipe"], (*place, "recipe")) if "recipe" in entry else None,
        )

    # -- values ----------------------------------------------------------------------------------------------

    def _mapping(
        self, value: object, place: Place, needed: set[str], optional: set[str], *, check_keys: bool = True
    ) -> Mapping[str, object]:
        if not isinstance(value, Mapping):
            raise self._wrong(place, f"is to be a mapping, found {found(value)}")
        for key in value if check_keys else ():
            if key not in needed | optional:
                raise self._wrong((*place, key), f"a lock has no key {quoted(key)} here")
        if missing := sorted(needed - value.keys()):
            raise self._wrong(place, f"the key {missing[0]} is missing")
        return value

    def _list(self, value: object, place: Place) -> Iterator[tuple[int, object]]:
        if not isinstance(value, tuple):
            raise self._wrong(place, f"is to be a list, found {found(value)}")
        return iter(enumerate(value))

    def _text(self, value: object, place: Place) -> str:
        if not isinstance(value, str) or not value:
            raise self._wrong(place, f"is to be a text, found {found(value)}")
        return value

    def _size(self, value: object, place: Place) -> int:
        if type(value) is not int or value < 0:
            raise self._wrong(place, f"is to be a number of bytes, found {found(value)}")
        return value

    def _sha256(self, value: object, place: Place) -> str:
        if not isinstance(value, str) or not _SHA256.fullmatch(value):
            raise self._wrong(place, f"is to be a SHA-256 of 64 hexadecimal digits, found {found(value)}")
        return value

    def _wrong(self, place: Place, message: str, advice: str = "") -> _WrongError:
        known = [place[:length] for length in range(len(place), -1, -1)]
        spot = next((self._values.spots[at] for at in known if at in self._values.spots), Spot("the lock"))
        spot = self._values.keys.get(place, spot)
        name = ".".join(map(str, place)) if place else ""
        told = message if message.startswith(("the ", "a ")) or not name else f"{name}: {message}"
        return _WrongError(Fault(spot, told), advice)
