"""Change single values of a recipe before it is checked, as `--set loras.0.strength=0.6` does.

A changed value has the option as its spot, or the entry of a mapping in Python. So the recipe's own checks name it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from lorabake.errors import RecipeError
from lorabake.recipe.shape import is_list, is_path, known_keys, parts_of, short_key
from lorabake.recipe.values import Place, Values, read_value
from lorabake.recipe.words import Fault, Spot, found, quoted
from lorabake.settings import SET, SET_WHOLE
from lorabake.visible import redacted

SYNTAX = "write KEY=VALUE, as in --set loras.0.strength=0.6"


@dataclass(frozen=True, slots=True)
class Change:
    """Hold a new value for a key such as loras.0.strength, as it was written, and where."""

    key: str
    value: Values
    text: str
    spot: Spot


def read_change(text: str) -> Change:
    """Read an option's text such as loras.0.strength=0.6."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    told = redacted(text)
    spot = Spot(f"--set {told if len(told) <= 80 else told[:79] + '…'}")
    if not equals or not all(key.split(".")):
        raise RecipeError(Fault(spot, SYNTAX).line)
    return Change(key, read_value(value, f"--set {key}"), value, spot)


def with_changes(values: Values, changes: Iterable[Change], here: Path, folder: Path | None) -> Values:
    """Apply changes in their order.

    Paths in them start from `here`, and become paths that start from `folder`, or absolute ones without it. Raise
    RecipeError for a change that has no place in the recipe, and for two of the same value.
    """
    done: set[Place] = set()
    for change in changes:
        key, value, spot = change.key, change.value, change.spot
        if key.split(".")[0] in _only_of_loras():
            raise RecipeError(Fault(spot, f"say which LoRA: {SET.of(f'loras.0.{key}', change.text)}").line)
        place = place_of(values.data, key, spot)
        if place in done:
            raise RecipeError(Fault(spot, f"{key} is set twice: set it once").line)
        done.add(place)
        values = with_value(values, place, moved_paths(value.data, place, here, folder), spot, value.faults)
    return values


def _only_of_loras() -> set[str]:
    """Collect the keys that nothing but a LoRA has."""
    others = [(), *((key,) for key in known_keys(()) if key != "loras")]
    return {*known_keys(("loras",))} - {key for place in others for key in known_keys(place)}


def with_value(values: Values, place: Place, value: object, spot: Spot, faults: tuple[Fault, ...] = ()) -> Values:
    """Put a value at a place, which `place_of` found, with all that must be around it."""
    data = _put(values.data, (), place, value)
    above = [place[:length] for length in range(len(place) + 1)]
    below = [(*place, *inner) for inner in places_in(value)]
    new = dict.fromkeys([*above, *below], spot)
    spots, keys = (
        {**new, **{old: known for old, known in known.items() if old[: len(place)] != place}}
        for known in (values.spots, values.keys)
    )
    return Values(data, keys, spots, (*values.faults, *faults))


def place_of(data: object, key: str, spot: Spot) -> Place:
    """Find the place that a key such as loras.0.strength names; raise RecipeError where there can be none."""
    place: Place = ()
    inside = data
    for part in parts_of(key):
        inside = _opened(inside, place)
        name = ".".join(map(str, place))
        match inside:
            case Mapping():
                place = (*place, part)
                inside = inside.get(part)
            case tuple():
                index = next((number for number in range(len(inside)) if str(number) == part), None)
                if index is None:
                    raise RecipeError(Fault(spot, _no_entry(name, part, len(inside))).line)
                place = (*place, index)
                inside = inside[index]
            case _:
                message = f"{name} is {found(inside)}, in which there is no {quoted(part)}: "
                other = {"unet": "text_encoder", "text_encoder": "unet"}.get(part)
                if place[-1:] == ("strength",) and other:
                    number = spot.name.partition("=")[2] or "0.6"
                    message += f"write {SET_WHOLE.of(name, f'{{{part}: {number}, {other}: {inside}}}')}"
                else:
                    message += f"set {name} as a whole"
                raise RecipeError(Fault(spot, message).line)
    return place


def places_in(value: object) -> Iterable[Place]:
    """Yield the places of all values below one."""
    items: Iterable[tuple[str | int, object]] = ()
    match value:
        case Mapping():
            items = value.items()
        case tuple():
            items = enumerate(value)
    for part, item in items:
        yield (part,)
        yield from ((part, *inner) for inner in places_in(item))


def moved_paths(value: object, place: Place, here: Path, folder: Path | None) -> object:
    """Rewrite the paths in a value at a place, which start from `here`, so that they start from `folder`."""
    match value:
        case Mapping():
            return {key: moved_paths(item, (*place, key), here, folder) for key, item in value.items()}
        case tuple():
            return tuple(moved_paths(item, (*place, index), here, folder) for index, item in enumerate(value))
        case str() if is_path(place):
            return moved(value, here, folder)
    return value


def moved(path: str, here: Path, folder: Path | None) -> str:
    """Rewrite a path that starts from `here`, so that it starts from `folder`; without a folder make it absolute.

    It becomes absolute, too, where a way up from the folder would lead elsewhere because of a link. What is no
    relative path stays as it is.
    """
    if not path.strip() or path.startswith("~") or "://" in path or "\0" in path or PurePath(path).is_absolute():
        return path
    absolute = here / path
    if folder is None:
        return str(absolute)
    if os.path.realpath(here) == os.path.realpath(folder):
        return path
    relative = os.path.relpath(absolute, folder)
    is_same = os.path.realpath(folder / relative) == os.path.realpath(absolute)
    return Path(relative).as_posix() if is_same else str(absolute)


def _opened(inside: object, place: Place) -> object:
    """Return what holds the parts of a value: a plain text stands for a mapping, and nothing for an empty one."""
    key = short_key(place)
    if isinstance(inside, str) and key and not is_list(place):
        return {key: inside}
    if inside is None:
        return () if is_list(place) else {}
    return inside


def _put(inside: object, done: Place, rest: Place, value: object) -> object:
    if not rest:
        return value
    part, *below = rest
    inside = _opened(inside, done)
    place = (*done, part)
    match inside:
        case tuple():
            return tuple(
                _put(item, place, tuple(below), value) if index == part else item for index, item in enumerate(inside)
            )
        case Mapping():
            return {**inside, part: _put(inside.get(part), place, tuple(below), value)}
    return inside


def _no_entry(name: str, part: str, count: int) -> str:
    entries = {0: "none", 1: f"only {name}.0"}.get(count, f"{count}: {name}.0 to {name}.{count - 1}")
    return f"{name} has no entry {quoted(part)}: it has {entries}"
