"""Make a recipe's lock, renew parts of it, and ask whether it still fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lorabake import __version__
from lorabake.arguments import AnyPath
from lorabake.artifacts.digests import FileDigest, file_digests, file_sha256, folder_sha256
from lorabake.artifacts.inputs import InputFiles, entries_of, input_files, lock_of, merged
from lorabake.artifacts.lock import Lock, LockedInput, LockedOutput, recipe_sha256
from lorabake.artifacts.reading import command, read_lock, shown
from lorabake.artifacts.stale import Pins, Stale, spots_of
from lorabake.errors import FileError, LockError, RecipeError, SurroundingsError
from lorabake.likeness import nearest
from lorabake.planning import Plan
from lorabake.planning import plan as plan_of
from lorabake.progress import unseen
from lorabake.recipe import Recipe, load_recipes
from lorabake.recipe import only as choose
from lorabake.sources import resolve
from lorabake.tensors.once import once, shared
from lorabake.tensors.reader import fingerprint
from lorabake.visible import short_repr
from lorabake.writing.whole import write_whole


@dataclass(frozen=True, slots=True)
class Locked:
    """Tell what became of a lock: the plans that it was made with, the lock, its file, and whether that changed."""

    __repr__ = short_repr

    plans: tuple[Plan, ...]
    lock: Lock
    path: Path
    is_changed: bool


def lock(
    recipe: AnyPath | Recipe,
    *,
    only: Sequence[str] = (),
    update: Sequence[str] = (),
    begin: Callable[[str, int], None] = unseen,
    progress: Callable[[int], None] = unseen,
) -> Locked:
    """Pin the inputs of a recipe's file in a lock beside it: every file is read and digested.

    Of a recipe with a matrix, the inputs of all outputs are pinned. With `only`, those of outputs with such names are
    read, and what the lock has of the others' inputs stays.
    With `update`, only the inputs of these names, as the recipe writes them, are read anew, and those that the lock
    lacks; the others stay as the lock has them. What the lock says of the outputs stays if an update changes nothing.
    `begin` is told how many bytes are to be read, `progress` receives counts of them.

    Raise what `plan` raises, since a recipe that cannot be baked gets no lock; LockError for an `update` of a lock
    that cannot be read or of a name that is no input.

    Examples:
        >>> locked = lorabake.lock("recipe.yaml")
        >>> locked.path.name
        'recipe.lock.yaml'
    """
    every, chosen = _chosen(recipe, only)
    file = file_of(every[0])
    old = read_lock(file) if update else _old(file)
    wanted = {_named(chosen, name) for name in update}
    own = {entry.path for each in chosen for entry in each.inputs}
    others = {entry.path for each in every for entry in each.inputs} - own
    kept = {entry.path: entry for entry in (old.inputs if old is not None else ()) if update or entry.path in others}
    pins = _commits(entry for path, entry in kept.items() if path not in wanted)
    with shared():
        plans = [plan_of(resolve(each.pinned(pins))) for each in chosen]
    read = [(plan, each) for plan in plans for each in input_files(plan.sources)]
    files = merged(each for _, each in read)
    anew = [each for each in files if each.path in wanted or each.path not in kept]
    begin("hashing", _size(path for each in anew for path in each.files.values()))
    first = {each.path: (plan, each) for plan, each in reversed(read)}
    kept |= {each.path: _pinned(first[each.path][0], each, progress) for each in anew}
    for plan, each in read:
        _check_stated(plan, each, kept[each.path])
    for plan in plans:
        _check_unchanged(plan)
    order = dict.fromkeys([*(entry.path for each in every for entry in entries_of(each).values()), *kept])
    new = Lock(recipe_sha256(*every), tuple(kept[path] for path in order if path in kept and path in own | others))
    if (update or only) and old is not None and old.recipe == new.recipe and same_inputs(old, new):
        new = replace(new, outputs=old.outputs)
    return Locked(tuple(plans), new, lock_of(file), write_lock(file, new))


def _chosen(recipe: AnyPath | Recipe, only: Sequence[str]) -> tuple[tuple[Recipe, ...], tuple[Recipe, ...]]:
    """Return the recipes of all outputs of a recipe's file, and those that are meant."""
    if isinstance(recipe, Recipe):
        return load_recipes(file_of(recipe)) if recipe.choices else (recipe,), (recipe,)
    every = load_recipes(recipe)
    return every, choose(every, only)


def pins_of(plan: Plan) -> Pins:
    """Hold a plan's inputs against its recipe's lock."""
    recipe = plan.sources.recipe
    return Pins(recipe, _lock_of(recipe), input_files(plan.sources), is_part=bool(recipe.choices))


def _lock_of(recipe: Recipe) -> Lock:
    """Read the lock of a recipe's file, once for all outputs that are looked at together."""
    file = file_of(recipe)
    return once(lambda: read_lock(file), read_lock, file)


def check(
    recipe: AnyPath | Recipe,
    *,
    only: Sequence[str] = (),
    begin: Callable[[str, int], None] = unseen,
    progress: Callable[[int], None] = unseen,
) -> tuple[Stale, ...]:
    """List all that makes the lock of a recipe's file stale; digests may come from the user's cache.

    With `only`, look at the inputs of outputs with such names alone.
    """
    every, chosen = _chosen(recipe, only)
    locked = read_lock(file_of(every[0]))
    with shared():
        plans = [plan_of(resolve(each.pinned(_commits(locked.inputs)))) for each in chosen]
    inputs = merged(each for plan in plans for each in input_files(plan.sources))
    pins = Pins(chosen[0], locked, inputs, is_part=len(chosen) < len(every))
    begin("hashing", _size(pins.paths))
    return pins.stale(lambda path: file_sha256(path, progress=progress))


def commits_of(recipe: Recipe) -> dict[str, str]:
    """Map the inputs that have an address to the commits that the recipe's lock pins; empty where it has no lock."""
    if recipe.file is None or not lock_of(recipe.file).is_file():
        return {}
    return _commits(read_lock(recipe.file).inputs)


def frozen(recipe: Recipe) -> Recipe:
    """Return a recipe with the commits that its lock pins; raise LockError where it has no lock."""
    return recipe.pinned(_commits(_lock_of(recipe).inputs))


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


def _named(recipes: Sequence[Recipe], name: str) -> str:
    """Return the input that is meant by a name: its path as written, or the end of just one of them."""
    paths = [entry.path for recipe in recipes for entry in recipe.inputs]
    ends = {path for path in paths if path.endswith(f"/{name}")}
    if name in paths or len(ends) == 1:
        return name if name in paths else ends.pop()
    near = nearest(name, paths, cutoff=0.5)
    inputs = ", ".join(dict.fromkeys(paths))
    raise LockError(
        f"{name}: is no input of {shown(file_of(recipes[0]))}{f'; did you mean {near}?' if near else ''}",
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
    return LockedInput(each.path, {file.name: file for file in digests}, source, revision, family, kinds)


def _check_stated(plan: Plan, each: InputFiles, pinned: LockedInput) -> None:
    """Raise FileError for an input that has another digest than the recipe states."""
    for place in each.places:
        entry = entries_of(plan.sources.recipe).get(place)
        if entry is not None and entry.sha256 not in (None, *stated_as(pinned, each)):
            spot = spots_of(plan.sources.recipe)[place]
            raise FileError(
                f"{spot}: {each.path}: its SHA-256 is {pinned.sha256}, and the recipe states {entry.sha256}",
                "It has changed, or is another one: find the right one, or write this SHA-256 into the recipe.",
            )


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
