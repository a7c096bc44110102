"""An output that is a folder: files with weights, their indexes and configurations, and what the base has beside."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator
from pathlib import Path

from lorabake.errors import FileError, TargetError
from lorabake.planning import Plan
from lorabake.planning.files import OutputFile
from lorabake.tensors.checkpoint import read_object
from lorabake.tensors.links import copy_file
from lorabake.tensors.safetensors import read_header
from lorabake.tensors.small import holds
from lorabake.writing.cards import lost_with
from lorabake.writing.system import fsync as wait_for
from lorabake.writing.system import fsync_folder


class Folder:
    """Be the form of a folder with all that a model's program needs."""

    def __init__(self, plan: Plan) -> None:
        self._base, self._texts = plan.sources.base.path, plan.texts
        self._weights = [Path(file.name) for file in plan.files]
        self._written = {*self._weights, *map(Path, plan.texts)}
        self._side_files = plan.side_files
        self._added = {Path(name): path for name, path in plan.copied.items()}

    @property
    def rest_size(self) -> int:
        """Count the bytes of the files beside the weights: those of the base's folder, and texts."""
        copied = sum(
            path.stat().st_size for path in [*map(self._base.joinpath, self._side_files), *self._added.values()]
        )
        return copied + sum(len(text.encode()) for text in self._texts.values())

    def place(self, root: Path, file: OutputFile) -> Path:
        """Return a file's place in the folder."""
        return root / file.name

    def check_sort(self, target: Path) -> None:
        """Raise TargetError for a file."""
        if not target.is_dir():
            raise TargetError(f"{target}: is a file, and the output is to be a folder")

    def first_lost(self, root: Path) -> Path | None:
        """Return the first thing in a folder that this bake does not put there; a link to a folder loses nothing.

        Weights that a bake wrote, and an index of nothing else, may go: another number of shards has other names.
        """
        return next(self._others(root), None) if root.is_dir() and not root.is_symlink() else None

    def _others(self, root: Path) -> Iterator[Path]:
        planned = {*self._written, *self._side_files, *self._added}
        folders = {folder for path in planned for folder in path.parents}
        rest = []
        cards = lost_with(root, self._base)
        for path in _paths_in(root):
            place = root / path
            is_folder = place.is_dir() and not place.is_symlink()
            if path in cards:
                continue
            if not (path in folders if is_folder else path in planned and place.is_file()):
                rest.append(path)
        weights = (path for path in rest if path.suffix == ".safetensors")
        baked = {path for path in weights if _is_baked(root / path) or _is_one(root / path, self._base / path)}
        for path in rest:
            if path not in baked and not (path.name.endswith(".index.json") and _is_index_of(root, path, baked)):
                yield path

    def holds_rest(self, root: Path) -> bool:
        """Tell whether a folder holds all that this bake puts there beside weights, and nothing else."""
        copied = {*self._side_files} - self._written
        planned = self._written | copied | self._added.keys()
        return {*_paths_in(root)} - lost_with(root, self._base) == planned and self.has_rest(root)

    def has_rest(self, root: Path) -> bool:
        """Tell whether a folder holds all that this bake puts there beside weights; there may be more."""
        copied = {*self._side_files} - self._written
        if not all((root / name).is_file() for name in {*map(Path, self._texts), *copied, *self._added}):
            return False
        if any(not holds(root / name, text.encode()) for name, text in self._texts.items()):
            return False
        sources = {**{name: self._base / name for name in copied}, **self._added}
        return all(filecmp.cmp(path, root / name, shallow=False) for name, path in sources.items())

    def prepare(self, root: Path) -> None:
        """Make the folder, and those in it that weights lie in."""
        for folder in dict.fromkeys((root / path).parent for path in self._weights):
            folder.mkdir(parents=True, exist_ok=True)

    def complete(self, root: Path, *, fsync: bool) -> None:
        """Copy what lies beside the base's weights, and write what takes the place of some of it."""
        for name in self._side_files:
            place = root / name
            place.parent.mkdir(exist_ok=True)
            copy_file(self._base, self._base / name, place)
            if fsync:
                wait_for(place)
        for name, path in self._added.items():
            place = root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            copy_file(path.parent, path, place)
            if fsync:
                wait_for(place)
        for relative, text in self._texts.items():
            (root / relative).parent.mkdir(parents=True, exist_ok=True)
            (root / relative).write_text(text, encoding="utf-8")
            if fsync:
                wait_for(root / relative)
        if fsync:
            for folder in {root, *(path.parent for path in root.rglob("*"))}:
                fsync_folder(folder)


def _paths_in(root: Path) -> Iterator[Path]:
    """Yield the files and links in a folder, and the folders in which is nothing, by their paths below it."""

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, onerror=fail):
        place = Path(folder)
        links = [name for name in folders if (place / name).is_symlink()]
        yield from ((place / name).relative_to(root) for name in sorted([*files, *links]))
        if not folders and not files and place != root:
            yield place.relative_to(root)


def _is_baked(path: Path) -> bool:
    try:
        return not path.is_symlink() and "lorabake.version" in read_header(path).metadata
    except FileError:
        return False


def _is_one(path: Path, other: Path) -> bool:
    """Tell whether two names are of one file: a link to a file of the base is lost without loss."""
    try:
        return not path.is_symlink() and path.samefile(other)
    except OSError:
        return False


def _is_index_of(root: Path, path: Path, weights: set[Path]) -> bool:
    """Tell whether an index names no weights but these, or such as are not there."""
    try:
        named = read_object(root / path).get("weight_map")
    except FileError:
        return False
    if not isinstance(named, dict) or not named:
        return False
    files = {path.parent / str(name) for name in named.values()}
    return all(file in weights or not os.path.lexists(root / file) for file in files)
