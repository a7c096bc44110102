"""The cache of Hugging Face's programs: where it is, which commits it has, and how a file gets into it.

A model is a folder models--OWNER--NAME with `refs/BRANCH` (a commit), `snapshots/COMMIT/PATH` (links) and
`blobs/DIGEST` (the files): by their SHA-256 where the hub stores them apart from git, else by git's own SHA-1.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from lorabake.errors import FileError
from lorabake.paths import cache_folder, hub_cache
from lorabake.settings import FETCH
from lorabake.tensors.checkpoint import WEIGHT_SUFFIXES, optional_object
from lorabake.tensors.reader import is_there

COMMIT = re.compile(r"[0-9a-f]{40}")


def folder_of(repo: str) -> Path:
    """Return the folder of a model in the cache."""
    return hub_cache() / f"models--{repo.replace('/', '--')}"


def commit_of(repo: str, revision: str) -> str | None:
    """Return the commit that a branch or tag led to when it was last downloaded; a commit is one already."""
    if COMMIT.fullmatch(revision):
        return revision
    try:
        commit = (folder_of(repo) / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def snapshot_of(repo: str, commit: str) -> Path:
    """Return the folder that a commit's files are linked in."""
    return folder_of(repo) / "snapshots" / commit


def keep_ref(repo: str, revision: str, commit: str) -> None:
    """Note which commit a branch or tag leads to, as the hub's own programs do."""
    if COMMIT.fullmatch(revision):
        return
    ref = folder_of(repo) / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    partial = ref.with_name(f".{ref.name}.{os.getpid()}")
    partial.write_text(commit, encoding="ascii")
    os.replace(partial, ref)


def link(blob: Path, place: Path) -> None:
    """Put a blob into a snapshot: as a relative link, or as the same file."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        os.symlink(os.path.relpath(blob, place.parent), partial)
    except OSError:  # a file system without such links
        os.link(blob, partial)
    os.replace(partial, place)


# -- is a folder whole? ------------------------------------------------------------------------------------------


def keep_list(repo: str, commit: str, path: str, variant: str | None, files: Iterable[str]) -> None:
    """Note which files of a folder a bake needs, for `check_whole`."""
    place = _list_of(repo, commit, path, variant)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    partial.write_text(json.dumps({"files": sorted(files)}, indent=1), encoding="utf-8")
    os.replace(partial, place)


def is_listed_whole(repo: str, commit: str, path: str, variant: str | None) -> bool:
    """Tell whether an earlier download brought all of a file or folder, and it is still there."""
    listed = (optional_object(_list_of(repo, commit, path, variant)) or {}).get("files")
    snapshot = snapshot_of(repo, commit)
    return isinstance(listed, list) and all(is_there(snapshot / str(name)) for name in listed)


def check_whole(written: str, repo: str, commit: str, path: str, variant: str | None) -> None:
    """Raise FileError for a folder of which other programs have downloaded only some files.

    lorabake's own downloads left a list. Without one, each component that model_index.json names must be there, with
    weights if it has a config.json.
    """
    folder = snapshot_of(repo, commit) / path
    listed = (optional_object(_list_of(repo, commit, path, variant)) or {}).get("files")
    if isinstance(listed, list):
        missing = [name for name in listed if not is_there(snapshot_of(repo, commit) / str(name))]
    else:
        said = optional_object(folder / "model_index.json") or {}
        named = [name for name, value in said.items() if isinstance(value, list) and all(value)]
        missing = [name for name in named if not _has_content(folder / name)]
    if missing:
        raise FileError(f"{written}: only a part of it is on this machine: {missing[0]} is missing", str(FETCH))


def _has_content(folder: Path) -> bool:
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    return bool(names) and ("config.json" not in names or any(Path(name).suffix in WEIGHT_SUFFIXES for name in names))


def _list_of(repo: str, commit: str, path: str, variant: str | None) -> Path:
    """Return where the list of a folder's files is kept."""
    name = "--".join(filter(None, [*path.split("/"), variant and f"variant-{variant}"])) or "whole"
    return cache_folder() / "hub" / repo.replace("/", "--") / commit / f"{name}.json"
