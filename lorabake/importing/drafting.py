"""Draft a recipe: from a base, LoRAs and what another program said, to commented YAML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lorabake.errors import RecipeError
from lorabake.importing.block_weights import LISTS, factors, one_of_numbers
from lorabake.importing.names import check_digest, named_file
from lorabake.importing.wanted import Call, Wanted
from lorabake.keymap.expansion import KeyMap
from lorabake.matching import match
from lorabake.matching.names import BaseNames
from lorabake.recipe import recipe_of
from lorabake.recipe.changes import moved_paths
from lorabake.recipe.options import lora_entry
from lorabake.recipe.values import values_of
from lorabake.recipe.written import written
from lorabake.sources import Sources, resolve

TEXT = "text_encoder"
VAE = "vae"

NOTHING = Wanted()

NAMES_SHOWN = 3
"""Most LoRAs that name an output."""


@dataclass(frozen=True, slots=True)
class Given:
    """Hold what the user gave for a recipe.

    `base` and `loras` are as on the command line: a path, and PATH=STRENGTH. `wanted` is what a prompt or a picture
    says; its names are looked up in the folders. `output` is the checkpoint to write, or None for a name of its own.
    """

    base: str | None = None
    loras: tuple[str, ...] = ()
    wanted: Wanted = NOTHING
    lora_folders: tuple[Path, ...] = ()
    base_folders: tuple[Path, ...] = ()
    output: str | None = None


@dataclass(frozen=True, slots=True)
class Drafted:
    """Hold a recipe's text, its base and number of LoRAs, and what was left out or should be known."""

    text: str
    base: str
    loras: int
    notes: tuple[str, ...]


def draft(given: Given, file: Path) -> Drafted:
    """Write the recipe that the user's words stand for, with paths that start from the folder of `file`.

    Raise RecipeError or FileError for what names no file, or two, and for what no recipe can hold.
    """
    here = Path.cwd()
    base = _base(given)
    calls = given.wanted.calls
    files = [named_file(call.name, given.lora_folders, "LoRA", "--lora-dir") for call in calls]
    for path, call in zip(files, calls, strict=True):
        check_digest(path, call.sha256, call.name)
    if not calls and not given.loras:
        raise RecipeError(
            "there is no LoRA to bake", "Write --lora FILE=0.8, or --prompt '<lora:style:0.8>' --lora-dir DIR."
        )
    plain: list[dict[str, object]] = [{"path": str(path)} for path in files]
    entries = _entries(base, plain, calls) if any(map(_is_parted, calls)) else _simple(plain, calls)
    loras = [*map(_given_entry, given.loras), *entries]
    data: dict[str, object] = {"version": 1, "base": base, "loras": loras}
    data["output"] = {"path": given.output or _output(base, loras)}
    if verify := _verify(given.wanted):
        data["verify"] = verify
    values = values_of(data, "the recipe")
    recipe_of(values, here)  # tells faults before paths are moved
    placed = moved_paths(values.data, (), here, file.absolute().parent)
    assert isinstance(placed, Mapping)
    return Drafted(written(placed, given.wanted.notes), base, len(loras), given.wanted.notes)


def _base(given: Given) -> str:
    """Return the base's path: the one given, or the file of the name that the picture has."""
    if given.base is not None:
        return given.base
    if not given.wanted.base:
        raise RecipeError("--base is missing", "Name the checkpoint that the LoRAs are baked into: --base PATH")
    return str(named_file(given.wanted.base, given.base_folders, "checkpoint", "--base-dir"))


def _given_entry(text: str) -> object:
    try:
        return lora_entry(text)
    except ValueError as error:
        raise RecipeError(f"--lora: {error}") from None


def _output(base: str, loras: Iterable[object]) -> str:
    """Name the output by what is in it: model-style-knight.safetensors; a folder like the base where that is one."""
    names = [Path(str(lora["path"] if isinstance(lora, Mapping) else lora)).stem for lora in loras]
    more = [f"{len(names) - NAMES_SHOWN}-more"] if len(names) > NAMES_SHOWN else []
    stem = "-".join([Path(base).stem, *names[:NAMES_SHOWN], *more])
    return stem if Path(base).is_dir() else f"{stem}.safetensors"


def _verify(wanted: Wanted) -> dict[str, object]:
    """Let `verify` make the picture of the prompt."""
    if not wanted.prompt:
        return {}
    said = {
        "negative_prompt": wanted.negative_prompt,
        "seed": wanted.seed,
        "steps": wanted.steps,
        "size": None if wanted.size is None else [*wanted.size],
        "guidance": wanted.guidance,
    }
    return {"prompts": [wanted.prompt], **{key: value for key, value in said.items() if value not in (None, "")}}


# -- strengths and block weights -----------------------------------------------------------------------------


def _is_parted(call: Call) -> bool:
    """Tell whether a LoRA has more than one strength, so that the base has to be known."""
    return call.model != call.text or bool(call.blocks)


def _simple(entries: Iterable[dict[str, object]], calls: Iterable[Call]) -> list[dict[str, object]]:
    return [{**entry, "strength": call.model} for entry, call in zip(entries, calls, strict=True)]


def _entries(base: str, entries: Sequence[dict[str, object]], calls: Sequence[Call]) -> Iterator[dict[str, object]]:
    """Yield the entry of each LoRA, with strengths by the base's components and blocks by its modules."""
    data = {"version": 1, "base": base, "loras": [*entries], "output": {"path": "none.safetensors"}}
    sources = resolve(recipe_of(values_of(data, "the recipe"), Path.cwd()))
    for number, (entry, call) in enumerate(zip(entries, calls, strict=True)):
        said: dict[str, object] = {**entry, "strength": _strength(sources.key_map, call)}
        if call.blocks and (blocks := _blocks(sources, number, call)):
            said["blocks"] = blocks
        yield said


def _strength(key_map: KeyMap, call: Call) -> object:
    if call.model == call.text:
        return call.model
    names = [component.name for component in key_map.architecture.components if component.name != VAE]
    return {name: call.text if name.startswith(TEXT) else call.model for name in names}


def _blocks(sources: Sources, number: int, call: Call) -> dict[str, float]:
    """Return the patterns that take modules of the LoRA, so that the recipe names no others.

    Each module has the factor of the first pattern that fits it. Blocks with one factor share a pattern. Patterns of
    factor 1 are left out, unless one after them would take their modules.
    """
    patterns = dict(factors(call.blocks))
    names = BaseNames(sources.key_map, sources.tie)
    places = {
        view.place: (use.component, names.names_at(view))
        for use in (*sources.key_map.named(), *(sources.tie.named if sources.tie else ()))
        for view in use.views.values()
    }
    roots = LISTS[len(call.blocks)].roots
    every = {name for _, known in places.values() for name in known}
    if not any(name.startswith(roots) for name in every):
        title = sources.key_map.architecture.title
        fitting = [count for count, blocks in LISTS.items() if any(name.startswith(blocks.roots) for name in every)]
        raise RecipeError(
            f"LoRA {call.name}: {len(call.blocks)} block weights are for another network than {title}",
            f"{title} takes {one_of_numbers(fitting)} values."
            if fitting
            else f"For {title}, write blocks into the recipe, with patterns of its modules.",
        )
    baked = [places[patch.view.place] for patch in match(names, number, sources.loras[number]).patches]
    taking = [_first(patterns, component, known) for component, known in baked]
    used = {pattern: factor for pattern, factor in patterns.items() if pattern in taking}
    for root in roots:
        below = {factor for pattern, factor in used.items() if pattern.startswith(root)}
        if len(below) == 1 and not any(name.startswith(root) for name in _untaken(baked, taking)):
            others = {pattern: factor for pattern, factor in used.items() if not pattern.startswith(root)}
            used = {**others, f"{root}*": below.pop()}
    is_zeroed = any(pattern in used for pattern in LISTS[len(call.blocks)].others)
    return used if is_zeroed else {pattern: factor for pattern, factor in used.items() if factor != 1}


def _untaken(baked: Sequence[tuple[str, Sequence[str]]], taking: Sequence[str | None]) -> set[str]:
    """Return the names of modules that no pattern takes."""
    return {name for (_, names), pattern in zip(baked, taking, strict=True) if pattern is None for name in names}


def _first(patterns: Iterable[str], component: str, names: Sequence[str]) -> str | None:
    """Return the first pattern that fits a module with these names, as a bake reads `blocks`."""
    fitting = (
        pattern
        for pattern in patterns
        if any(fnmatchcase(name, pattern) or fnmatchcase(f"{component}.{name}", pattern) for name in names)
    )
    return next(fitting, None)
