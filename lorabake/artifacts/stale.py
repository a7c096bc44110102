"""Does a lock fit the inputs as they are? Say of each that does not where the recipe writes it, and what mends it.

Inputs alone make a lock stale: which ones the recipe names, and which bytes they have. Strengths and other settings,
families, kinds, and the version of lorabake do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorabake.artifacts.digests import FileDigest, file_sha256
from lorabake.artifacts.inputs import BESIDE, WHOLE, InputFiles, entries_of, lock_of
from lorabake.artifacts.lock import Lock
from lorabake.artifacts.reading import command, shown
from lorabake.errors import LockError, LorabakeError
from lorabake.recipe import Recipe, recipe_text
from lorabake.recipe.values import Place, read_values
from lorabake.tensors.reader import fingerprint
from lorabake.visible import short_repr, size_of


@dataclass(frozen=True, slots=True)
class Stale:
    """Tell why the lock does not fit one input, or one file of it.

    `spot` is where the recipe writes the input, as in portrait.yaml:4:11. `was` and `now` are None where there is no
    such file.
    """

    spot: str
    path: str
    what: str
    was: FileDigest | None
    now: FileDigest | None
    mend: str

    @property
    def lines(self) -> tuple[str, ...]:
        """Put it into words: what differs, the old and the new digest, and the command that mends it."""
        digests = [
            f"  {label} SHA-256 {file.sha256}, {size_of(file.size)}"
            for label, file in (("locked:", self.was), ("now:   ", self.now))
            if file is not None
        ]
        return f"{self.spot}: {self.what}", *digests, f"  If this is meant: {self.mend}"


def stale_error(recipe: Path, stale: Iterable[Stale]) -> LockError:
    """Return the error that a lock does not fit."""
    lines = [line for each in stale for line in each.lines]
    return LockError(f"{shown(lock_of(recipe))}: the lock is stale; nothing was written", *lines)


@dataclass(frozen=True, slots=True)
class Pins:
    """Hold a recipe's inputs against its lock; the recipe has to come from a file.

    `inputs` are as they are now. A recipe whose inputs are other ones than the lock's has no pins to check: ask
    `differing` first. `is_part` tells that these are some outputs of a matrix: the lock pins the others' inputs, too.
    """

    __repr__ = short_repr

    recipe: Recipe
    lock: Lock
    inputs: tuple[InputFiles, ...]
    is_part: bool = False

    @property
    def file(self) -> Path:
        """Return the recipe's file."""
        assert self.recipe.file is not None, "who reads a lock has the recipe's file"
        return self.recipe.file

    @property
    def paths(self) -> tuple[Path, ...]:
        """List every file that is pinned."""
        return tuple(dict.fromkeys(path for each in self.inputs for path in each.files.values()))

    def differing(self) -> Iterator[Stale]:
        """Yield what differs without a look into files: inputs, names of files, and sizes."""
        mend = command(self.file)
        for each in self.inputs:
            locked = self.lock.input(each.path)
            if locked is None:
                yield Stale(self._spot(each), each.path, f"{each.path} is not in the lock", None, None, mend)
                continue
            for name in sorted(each.files if self.is_part else locked.files.keys() | each.files.keys()):
                was, path = locked.files.get(name), each.files.get(name)
                size = None if path is None else fingerprint(path)[2]
                if was is None or size is None or size != was.size:
                    now = None if path is None or size is None else FileDigest(name, size, file_sha256(path))
                    yield self._changed(each, name, was, now)
        named = {each.path for each in self.inputs}
        for entry in self.lock.inputs if not self.is_part else ():
            if entry.path not in named:
                spot, what = shown(lock_of(self.file)), f"the lock has {entry.path}, which the recipe no longer names"
                yield Stale(spot, entry.path, what, None, None, mend)

    def check(self, path: Path, sha256: str) -> None:
        """Raise LockError where a pinned file has another digest than the lock says; any other file passes."""
        if stale := [*self.other_content(path, sha256)]:
            raise stale_error(self.file, stale)

    def other_content(self, path: Path, sha256: str) -> Iterator[Stale]:
        """Yield what is wrong with a file that has this digest."""
        for each in self.inputs:
            locked = self.lock.input(each.path)
            for name, own in each.files.items():
                was = locked.files.get(name) if locked is not None and own == path else None
                if was is not None and was.sha256 != sha256:
                    yield self._changed(each, name, was, FileDigest(name, fingerprint(path)[2], sha256))

    def stale(self, sha256: Callable[[Path], str]) -> tuple[Stale, ...]:
        """List all that differs, with a look into each file whose size is right; `sha256` digests it."""
        differing = [*self.differing()]
        known = {(each.path, each.now) for each in differing}
        contents = [stale for path in self.paths for stale in self.other_content(path, sha256(path))]
        return (*differing, *(each for each in contents if (each.path, each.now) not in known))

    def _changed(self, each: InputFiles, name: str, was: FileDigest | None, now: FileDigest | None) -> Stale:
        subject = each.path if name == WHOLE else f"{each.path}: {name.removeprefix(BESIDE)}"
        beside = " beside it" if name.startswith(BESIDE) else ""
        how = "is another file" if was and now else "has gone" if was else "is new"
        what = f"{subject}{beside} {how} than the lock says" if was and now else f"{subject}{beside} {how}"
        return Stale(self._spot(each), each.path, what, was, now, command(self.file, each.path))

    def _spot(self, each: InputFiles) -> str:
        return spots_of(self.recipe)[each.places[0]]


def spots_of(recipe: Recipe) -> defaultdict[Place, str]:
    """Map the places of inputs to where they are written: recipe.yaml:4:11; the file alone for those of options."""
    name = shown(recipe.file) if recipe.file is not None else "the recipe"
    spots: defaultdict[Place, str] = defaultdict(lambda: name)
    try:
        values = read_values(recipe_text(recipe.file), name) if recipe.file is not None else None
    except LorabakeError:  # it was there when it was read, and has gone
        values = None
    for place, entry in entries_of(recipe).items() if values is not None else ():
        assert values is not None
        for at in ((*place, "path"), place):
            if at in values.spots and _value(values.data, at) == entry.path:
                spots[place] = str(values.spots[at])
    return spots


def _value(data: object, place: Place) -> object:
    """Return the value at a place of a recipe's data."""
    for step in place:
        data = data.get(step) if isinstance(data, Mapping) else data[step] if isinstance(data, tuple) else None  # type: ignore[index]
    return data
