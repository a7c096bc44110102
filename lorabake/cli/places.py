"""Where a command may write beside its output: asked before anything takes its time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from lorabake.errors import TargetError
from lorabake.recipe import Recipe
from lorabake.writing.partial import partial_of

OTHER = "choose another file for the report"

READ_BESIDE = ("adapter_config.json", "config.json", "hyperparameters.yaml", "model_config.yaml")


def check_report(report: Path, taken: Iterable[Path], folders: Iterable[Path]) -> None:
    """Raise TargetError for a report that cannot be written, is a file that is taken, or lies in one of the folders.

    Files are told by where they are, not by their names: links of either sort are followed.
    """
    try:
        is_there = report.exists()
    except OSError as error:  # too long a name
        raise TargetError(f"{report}: the report cannot be written: {error.strerror}") from None
    if report.is_dir():
        raise TargetError(f"{report}: is a folder, and the report is a file")
    if not report.parent.is_dir():
        why = "is no folder" if os.path.lexists(report.parent) else "there is no such folder"
        raise TargetError(f"{report}: the report cannot be written: {report.parent}: {why}")
    is_special = is_there and not report.is_file()  # such as /dev/stdout
    written = [report] * is_there + [_real(report).parent] * (not is_special)
    if not all(os.access(path, os.W_OK) for path in written):
        raise TargetError(f"{report}: the report cannot be written: no permission")
    check_apart([report], taken, folders)


def check_apart(written: Iterable[Path], taken: Iterable[Path], folders: Iterable[Path]) -> None:
    """Raise TargetError where one of the files that are to be written is taken, or lies in one of the folders."""
    places = {place for path in taken for place in _identities(path)}
    within = {place for path in folders for place in _identities(path)}
    for path in written:
        if not places.isdisjoint(_identities(path)):
            raise TargetError(f"{path}: is the output, or an input, of this recipe; {OTHER}")
        if any(not within.isdisjoint(_identities(folder)) for folder in (path, *_real(path).parents)):
            raise TargetError(f"{path}: lies in the output's folder; {OTHER}")


def files_of(recipe: Recipe, baked: Path) -> Iterator[Path]:
    """Yield every file that a recipe is baked from, and its output, with what may be written for it meanwhile."""
    yield from (path for path in (recipe.file, baked) if path is not None)
    yield partial_of(baked)
    for entry in (recipe.base, *recipe.loras, *filter(None, [recipe.vae])):
        path = recipe.locate(entry.path)
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
