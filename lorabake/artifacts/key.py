"""One key for all that decides an output's bytes: for caches of CI jobs and for object stores.

The key is a SHA-256 over the version of outputs, the recipe's normal form, the output's name, which its header
carries, and the digest of each input. It is the same on every machine and in every folder, with a lock and without
one, and for every class of device: who bakes on several adds the device to the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from lorabake.arguments import AnyPath
from lorabake.artifacts.digests import file_digests
from lorabake.artifacts.inputs import entries_of, input_files
from lorabake.artifacts.lock import LockedInput
from lorabake.artifacts.locking import file_of
from lorabake.artifacts.reading import command, read_lock, shown
from lorabake.artifacts.stale import spots_of
from lorabake.artifacts.watch import has_lock
from lorabake.errors import LockError
from lorabake.planning.provenance import OUTPUT_VERSION
from lorabake.progress import unseen
from lorabake.recipe import Recipe, load_recipe
from lorabake.sources import resolve
from lorabake.tensors.once import once, shared


def cache_key(
    recipe: AnyPath | Recipe,
    output: Path | None = None,
    *,
    begin: Callable[[str, int], None] = unseen,
    progress: Callable[[int], None] = unseen,
) -> str:
    """Return the key of a recipe's output.

    Where the recipe has a lock, the digests are the lock's, and no input has to be there. Else each input is
    digested; digests may come from the user's cache. `output` takes the place of the recipe's path.

    Raise LockError for a lock that lacks an input of the recipe.

    Examples:
        >>> from lorabake.artifacts.key import cache_key
        >>> len(cache_key("recipe.yaml"))
        64
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    digests = _locked(recipe) if has_lock(recipe) else _taken(recipe, begin, progress)
    said = {
        "inputs": [digests[entry.path] for entry in entries_of(recipe).values()],
        "output": (output or Path(recipe.output.path)).name,
        "output_version": OUTPUT_VERSION,
        "recipe": recipe.normal_form(),
    }
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def cache_key_of_all(
    recipes: Sequence[Recipe],
    *,
    begin: Callable[[str, int], None] = unseen,
    progress: Callable[[int], None] = unseen,
) -> str:
    """Return one key of several outputs, in whatever order: it changes if the key of one does. Of one, it is its key.

    Raise what `cache_key` raises.
    """
    with shared():
        keys = sorted(cache_key(recipe, begin=begin, progress=progress) for recipe in recipes)
    return keys[0] if len(keys) == 1 else hashlib.sha256("\n".join(keys).encode()).hexdigest()


def _locked(recipe: Recipe) -> dict[str, str]:
    """Map the inputs to their digests by the lock."""
    file = file_of(recipe)
    lock = once(lambda: read_lock(file), read_lock, file)
    for place, path in ((place, entry.path) for place, entry in entries_of(recipe).items()):
        if lock.input(path) is None:
            raise LockError(
                f"{spots_of(recipe)[place]}: {path} is not in the lock of {shown(file)}", f"Add it: {command(file)}"
            )
    return {each.path: each.identity for each in lock.inputs}


def _taken(recipe: Recipe, begin: Callable[[str, int], None], progress: Callable[[int], None]) -> dict[str, str]:
    """Map the inputs to their digests, which are taken now."""
    inputs = input_files(resolve(recipe))
    begin("hashing", sum(path.stat().st_size for each in inputs for path in each.files.values()))
    taken = (
        LockedInput(each.path, {file.name: file for file in file_digests(each.files, progress=progress)})
        for each in inputs
    )
    return {entry.path: entry.identity for entry in taken}
