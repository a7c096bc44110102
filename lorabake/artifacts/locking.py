"""Make a recipe's lock, renew parts of it, and ask whether it still fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lorabake import __version__
from lorabake.arguments import AnyPath
from lorabake.artifacts.digests import FileDigest, file_digests, file_sha256, folder_sha256
from lorabake.artifacts.inputs import InputFiles, entries_of, input_files, lock_of
from lorabake.artifacts.lock import Lock, LockedInput, LockedOutput, recipe_sha256
from lorabake.artifacts.reading import command, read_lock, shown
from lorabake.artifacts.stale import Pins, Stale, spots_of
from lorabake.errors import FileError, LockError, RecipeError, SurroundingsError
from lorabake.likeness import nearest
from lorabake.planning import Plan
from lorabake.planning import plan as plan_of
from lorabake.progress import unseen
from lorabake.recipe import Recipe, load_recipe
from lorabake.sources import resolve
from lorabake.tensors.reader import fingerprint
from lorabake.visible import short_repr
from lorabake.writing.whole import write_whole


@dataclass(frozen=True, slots=True)
class Locked:
    """Tell what became of a lock: the plan that it was made with, the lock, its file, and whether that changed."""

    __repr__ = short_repr

    plan: Plan
    lock: Lock
    path: Path
    is_changed: bool


def lock(
    recipe: AnyPath | Recipe,
    *,
    update: Sequence[str] = (),
    begin: Callable[[str, int], None] = unseen,
    progress: Callable[[int], None] = unseen,
) -> Locked:
    """Pin the inputs of a recipe's file in a lock beside it: every file is read and digested.

    With `update`, only the inputs of these names, as the recipe writes them, are read anew, and those that the lock
    lacks; the others stay as the lock has them. What the lock says of the output stays if an update changes nothing.
    `begin` is told how many bytes are to be read, `progress` receives counts of them.

    Raise what `plan` raises, since a recipe that cannot be baked gets no lock; LockError for an `update` of a lock
    that cannot be read or of a name that is no input.

    Examples:
        >>> locked = lorabake.lock("recipe.yaml")
        >>> locked.path.name
        'recipe.lock.yaml'
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    file = file_of(recipe)
    old = read_lock(file) if update else _old(file)
    wanted = {_named(recipe, name) for name in update}
    kept = {entry.path: entry for entry in old.inputs} if old is not None and update else {}
    recipe = recipe.pinned(_commits(entry for path, entry in kept.items() if path not in wanted))
    plan = plan_of(resolve(recipe))
    files = input_files(plan.sources)
    anew = [each for each in files if each.path in wanted or each.path not in kept]
    begin("hashing", _size(path for each in anew for path in each.files.values()))
    kept |= {each.path: _pinned(plan, each, progress) for each in anew}
    inputs = tuple(kept[each.path] for each in files)
    _check_unchanged(plan)
    new = Lock(recipe_sha256(recipe), inputs)
    if update and old is not None and old.recipe == new.recipe and same_inputs(old, new):
        new = replace(new, outputs=old.outputs)
    return Locked(plan, new, lock_of(file), write_lock(file, new))


def pins_of(plan: Plan, locked: Lock | None = None) -> Pins:
    """Hold a plan's inputs against its recipe's lock, which is read unless it is given."""
    recipe = plan.sources.recipe
    return Pins(recipe, locked or read_lock(file_of(recipe)), input_files(plan.sources))


def check(
    recipe: AnyPath | Recipe,
    *,
    begin: Callable[[str, int], None] = unseen,
    progress: Callable[[int], None] = unseen,
) -> tuple[Stale, ...]:
    """List all that makes the lock of a recipe's file stale; digests may come from the user's cache."""
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    locked = read_lock(file_of(recipe))
    pins = pins_of(plan_of(resolve(recipe.pinned(_commits(locked.inputs)))), locked)
    begin("hashing", _size(pins.paths))
    return pins.stale(lambda path: file_sha256(path, progress=progress))


def commits_of(recipe: Recipe) -> dict[str, str]:
    """Map the inputs that have an address to the commits that the recipe's lock pins; empty where it has no lock."""
    if recipe.file is None or not lock_of(recipe.file).is_file():
        return {}
    return _commits(read_lock(recipe.file).inputs)


def frozen(recipe: Recipe) -> Recipe:
    """Return a recipe with the commits that its lock pins; raise LockError where it has no lock."""
    return recipe.pinned(_commits(read_lock(file_of(recipe)).inputs))


def _commits(entries: Iterable[LockedInput]) -> dict[str, str]:
    return {entry.path: entry.revision for entry in entries if entry.revision is not None}


def file_of(recipe: Recipe) -> Path:
    """Return the recipe's file; raise RecipeError where it has none, since a lock lies beside a file."""
    if recipe.file is None:
        raise RecipeError(
            "a lock pins the inputs of a recipe's file, and this recipe has none",
            "Keep the recipe in a YAML file, and give that.",
        )
    return recipe.file


def same_inputs(one: Lock, other: Lock) -> bool:
    """Tell whether two locks pin the same bytes."""
    pinned = [{each.path: each.identity for each in locked.inputs} for locked in (one, other)]
    return pinned[0] == pinned[1]


def write_lock(recipe: Path, locked: Lock) -> bool:
    """Write the lock of a recipe's file, unless it says just that already; return whether it did not."""
    path, content = lock_of(recipe), locked.text(recipe).encode()
    try:
        if path.is_file() and path.read_bytes() == content:
            return False
        write_whole(path, content)
    except OSError as error:
        raise SurroundingsError(f"{shown(path)}: the lock cannot be written: {error.strerror}") from None
    return True


def data_sha256(plan: Plan, hashes: Sequence[str]) -> str | None:
    """Return one digest of an output's data: the file's, or one over those of its files; None without hashes."""
    if not all(hashes):
        return None
    if len(hashes) == 1:
        return hashes[0]
    files = zip(plan.files, hashes, strict=True)
    return folder_sha256(FileDigest(file.name, file.data_size, sha256) for file, sha256 in files)


def output_of(data: str, device: str) -> LockedOutput:
    """Describe an output that this lorabake computed."""
    return LockedOutput(data, __version__, torch_version(), device)


def torch_version() -> str | None:
    """Return the version of torch without importing it."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def _old(file: Path) -> Lock | None:
    """Return the lock that is there, if it can be read: one that cannot is made anew."""
    try:
        return read_lock(file)
    except LockError:
        return None


def _named(recipe: Recipe, name: str) -> str:
    """Return the input that is meant by a name: its path as written, or the end of just one of them."""
    paths = [entry.path for entry in recipe.inputs]
    ends = {path for path in paths if path.endswith(f"/{name}")}
    if name in paths or len(ends) == 1:
        return name if name in paths else ends.pop()
    near = nearest(name, paths, cutoff=0.5)
    inputs = ", ".join(dict.fromkeys(paths))
    raise LockError(
        f"{name}: is no input of {shown(file_of(recipe))}{f'; did you mean {near}?' if near else ''}",
        f"Write it as the recipe does: {inputs}",
    )


def _pinned(plan: Plan, each: InputFiles, progress: Callable[[int], None]) -> LockedInput:
    """Digest an input's files, and describe it."""
    digests = file_digests(each.files, cached=False, progress=progress)
    family, kinds = _described(plan, each)
    said = entries_of(plan.sources.recipe).get(each.places[0])
    address = None if said is None else said.address
    source, revision = (
        (None, None) if said is None or address is None else (address.source, plan.sources.recipe.commit_of(said))
    )
    pinned = LockedInput(each.path, {file.name: file for file in digests}, source, revision, family, kinds)
    for place in each.places:
        entry = entries_of(plan.sources.recipe).get(place)
        if entry is not None and entry.sha256 not in (None, *stated_as(pinned, each)):
            spot = spots_of(plan.sources.recipe)[place]
            raise FileError(
                f"{spot}: {each.path}: its SHA-256 is {pinned.sha256}, and the recipe states {entry.sha256}",
                "It has changed, or is another one: find the right one, or write this SHA-256 into the recipe.",
            )
    return pinned


def stated_as(pinned: LockedInput, each: InputFiles) -> tuple[str, ...]:
    """List the digests by which a recipe may state an input: the file's, or the folder's.

    A LoRA's or VAE's folder with one file of weights may be stated by that file's digest, too.
    """
    is_base = ("base",) in each.places
    alone = each.weights if len(each.weights) == 1 and not is_base else ()
    return (pinned.sha256, *(pinned.files[name].sha256 for name in alone))


def _described(plan: Plan, each: InputFiles) -> tuple[str | None, tuple[str, ...]]:
    """Return the family of an input and its kinds, as far as they are known."""
    match each.places[0]:
        case ("base",):
            return plan.sources.key_map.architecture.title, ()
        case ("loras", int(number)):
            ledger = plan.ledgers[number]
            return ledger.family, tuple(ledger.kinds)
    return None, ()


def _size(paths: Iterable[Path]) -> int:
    return sum(fingerprint(path)[2] for path in paths)


def _check_unchanged(plan: Plan) -> None:
    """Raise FileError for an input that has changed since the plan was made."""
    headers = [header for checkpoint, _ in plan.sources.inputs for header in checkpoint.headers]
    seen = {header.path: header.identity for header in headers} | dict(plan.sources.evidence.read)
    for path, identity in seen.items():
        if identity and fingerprint(path) != identity:
            raise FileError(f"{path}: changed while it was read", "Run it again once nothing writes to it.")


def mended(recipe: Path, stale: Iterable[Stale]) -> str:
    """Return the command that mends all of it."""
    mends = {each.mend for each in stale}
    return mends.pop() if len(mends) == 1 else command(recipe)
