"""Expand a recipe with a matrix into one recipe for each output.

    matrix:
      strength: [0.4, 0.8]
      style: {ink: [ink.safetensors], both: [ink.safetensors, oil.safetensors]}
    loras: ${style}
    output: {path: "out/${style}-${strength}.safetensors"}

The words are those of CI systems: axes with values, `include` and `exclude`. A value that is a reference alone
becomes the axis' value, of whatever type. A reference inside a text becomes the value's name. `$${` stands for `${`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TypeAlias, cast

from lorabake.errors import RecipeError
from lorabake.likeness import nearest
from lorabake.paths import name_of_output
from lorabake.recipe.changes import places_in
from lorabake.recipe.values import MATRIX, Place, Values
from lorabake.recipe.words import Fault, Spot, found, quoted
from lorabake.settings import ONLY
from lorabake.visible import and_more

INCLUDE, EXCLUDE = "include", "exclude"
MOST = 10_000
"""Most outputs of one recipe."""

SHOWN = 6
"""How many values of an axis a message lists."""

REFERENCE = re.compile(r"\$(?:(?P<plain>\$(?=\{))|\{\s*(?P<axis>[^{}]*?)\s*\})")
AXIS = re.compile(r"[A-Za-z_][\w-]*")

Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Choice:
    """Hold one value of an axis, its name in texts, and the place in the recipe where it is written."""

    name: str
    value: object
    place: Place

    def is_same(self, other: Choice) -> bool:
        """Tell whether two values have one name, or are one number: 1 and 1.0."""
        numbers = [choice.value for choice in (self, other) if _is_number(choice.value)]
        return self.name == other.name or (len(numbers) == 2 and numbers[0] == numbers[1])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


Combination: TypeAlias = Mapping[str, Choice]
"""Axis -> the value that one output has on it."""

Axes: TypeAlias = Mapping[str, tuple[Choice, ...]]
"""Axis -> all values that it has."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Hold the values of the recipe of one output; `choices` maps each axis to the name of its value there."""

    values: Values
    choices: Mapping[str, str] = field(default_factory=dict)


def variants(values: Values) -> tuple[Variant, ...]:
    """Return the recipe of each output in the order of the axes, the last one fastest, then those of `include`.

    A recipe without a matrix has one. Raise RecipeError for an axis without values or that nothing uses, for a
    reference to none, and for two outputs of one name.
    """
    if not values.has_matrix:
        return (Variant(values),)
    data = cast(Mapping[str, object], values.data)
    combinations = _combinations(values, data[MATRIX])
    used: set[str] = set()
    expanded = tuple(_expanded(values, combination, used) for combination in combinations)
    axes = {axis: choice for combination in reversed(combinations) for axis, choice in combination.items()}
    for axis, choice in axes.items():
        if axis not in used:
            near = _near(axis, ({*axes} & used) | {INCLUDE, EXCLUDE})
            raise _error(
                _key_of(values, axis, choice),
                f"nothing in the recipe uses the axis {axis}{near}",
                *([] if near else [f"Write ${{{axis}}} where its value goes."]),
            )
    _check_apart(values, expanded)
    return expanded


def _key_of(values: Values, axis: str, choice: Choice) -> Spot:
    """Return where an axis is named: in the matrix, or in the entry of `include` that gives the value."""
    return values.keys.get((MATRIX, axis)) or values.keys[choice.place]


def _error(spot: Spot, message: str, *advice: str) -> RecipeError:
    return RecipeError(Fault(spot, message).line, *advice)


# -- combinations --------------------------------------------------------------------------------------------


def _combinations(values: Values, matrix: object) -> list[Combination]:
    """Combine the axes, leave out what `exclude` says, and add what `include` says."""
    spot = values.spots[MATRIX,]
    if matrix in ({}, ()):
        raise _error(spot, "the matrix has no axis", "matrix: {strength: [0.4, 0.8]}")
    if not isinstance(matrix, Mapping):
        raise _error(
            spot, f"matrix must be a mapping of axes, found {found(matrix)}", "matrix: {strength: [0.4, 0.8]}"
        )
    axes = {
        axis: _choices(values, (MATRIX, axis), axis, given)
        for axis, given in matrix.items()
        if axis not in (INCLUDE, EXCLUDE)
    }
    if (count := prod(map(len, axes.values()))) > MOST:
        raise _error(spot, f"the matrix has {count:,} combinations; at most {MOST:,} are baked from one recipe")
    combined: list[Combination] = [
        dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values()) if axes
    ]
    for where, entry in _entries(values, axes, EXCLUDE, matrix.get(EXCLUDE, ())):
        left = [combination for combination in combined if not _fits(combination, entry)]
        if len(left) == len(combined):
            raise _error(where, "this entry of exclude fits no combination", _no_fit(entry, axes))
        combined = left
    combined = _included(
        combined, axes, [entry for _, entry in _entries(values, axes, INCLUDE, matrix.get(INCLUDE, ()))]
    )
    if not combined:
        raise _error(spot, "the matrix has no combination: exclude leaves out all of them")
    return combined


def _choices(values: Values, place: Place, axis: str, given: object) -> tuple[Choice, ...]:
    """Read the values of an axis: a list of plain values, or a mapping from names to values."""
    if not AXIS.fullmatch(axis):
        raise _error(values.keys[place], f"the axis {quoted(axis)} needs a name of letters, digits, _ and -")
    match given:
        case Mapping() if given:
            return tuple(Choice(str(name), value, (*place, name)) for name, value in given.items())
        case tuple() if given:
            choices = tuple(_choice(values, (*place, number), axis, value) for number, value in enumerate(given))
            for number, choice in enumerate(choices):
                if (other := next(filter(choice.is_same, choices[:number]), None)) is not None:
                    also = "" if choice.name == other.name else f": it is {other.name}"
                    raise _error(values.spots[choice.place], f"the axis {axis} has {choice.name} twice{also}")
            return choices
        case Mapping() | tuple():
            raise _error(
                values.spots[place],
                f"the axis {axis} has no values",
                f"Write some, as in {axis}: [0.4, 0.8], or remove the axis.",
            )
    raise _error(
        values.spots[place],
        f"the axis {axis} must be a list of values, or a mapping from names to values, found {found(given)}",
        f"{axis}: [0.4, 0.8]",
    )


def _choice(values: Values, place: Place, axis: str, value: object) -> Choice:
    """Name a plain value by itself; anything else needs a name that the user gives."""
    if not isinstance(value, str | int | float | bool):
        near = _near(axis, (INCLUDE, EXCLUDE))
        raise _error(
            values.spots[place],
            f"a value of the axis {axis} is {found(value)}{near or ': give it a name'}",
            *([] if near else [f"{axis}: {{NAME: VALUE}}"]),
        )
    return Choice(_text_of(value), value, place)


def _text_of(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _entries(values: Values, axes: Axes, key: str, given: object) -> Iterator[tuple[Spot, Combination]]:
    """Yield the entries of `include` or `exclude`, and where each is written."""
    if not isinstance(given, tuple):
        raise _error(
            values.spots[MATRIX, key], f"{key} must be a list, found {found(given)}", f"{key}: [{{AXIS: VALUE}}]"
        )
    for number, entry in enumerate(given):
        place: Place = (MATRIX, key, number)
        spot = values.spots[place]
        if not isinstance(entry, Mapping) or not entry:
            raise _error(spot, f"an entry of {key} must be a mapping from axes to values, found {found(entry)}")
        if key == EXCLUDE and (unknown := next((axis for axis in entry if axis not in axes), None)):
            raise _error(
                values.keys[*place, unknown],
                f"there is no axis {quoted(unknown)}{_near(unknown, axes)}",
                *([f"The axes are {', '.join(axes)}."] if axes else []),
            )
        yield spot, {axis: _named(values, (*place, axis), axes, value) for axis, value in entry.items()}


def _named(values: Values, place: Place, axes: Axes, value: object) -> Choice:
    """Return the value that an entry gives: one of the axis, or a value of its own."""
    axis = str(place[-1])
    choice = _choice(values, place, axis, value)
    return next(filter(choice.is_same, axes.get(axis, ())), choice)


def _no_fit(entry: Combination, axes: Axes) -> str:
    """Say why an entry of `exclude` fits no combination."""
    for axis, choice in entry.items():
        names = [own.name for own in axes[axis]]
        if choice.name not in names:
            return f"The axis {axis} has {and_more(names[:SHOWN], len(names))}{_near(choice.name, names) or '.'}"
    return "The entries above it leave out all that it fits."


def _fits(combination: Combination, entry: Mapping[str, Choice]) -> bool:
    return all(axis in combination and combination[axis].is_same(choice) for axis, choice in entry.items())


def _included(combined: list[Combination], axes: Axes, entries: Sequence[Combination]) -> list[Combination]:
    """Add each entry to the combinations whose axes it leaves as they are; if there is none, it is one of its own."""
    original = [dict(combination) for combination in combined]
    added: list[Combination] = []
    for entry in entries:
        own = {axis: choice for axis, choice in entry.items() if axis in axes}
        hits = [number for number, combination in enumerate(combined) if _fits(combination, own)] if combined else []
        if hits and len(own) < len(entry):
            for number in hits:
                original[number] |= entry
        else:
            added.append(entry)
    return [*original, *added]


# -- references ----------------------------------------------------------------------------------------------


def _expanded(values: Values, combination: Combination, used: set[str]) -> Variant:
    """Fill in the references of one output; enter the axes that are used."""
    spots = {place: spot for place, spot in values.spots.items() if place[:1] != (MATRIX,)}
    keys = {place: spot for place, spot in values.keys.items() if place[:1] != (MATRIX,)}

    def filled(value: object, place: Place, within: tuple[str, ...] = ()) -> object:
        match value:
            case Mapping():
                inner = {key: item for key, item in value.items() if (*place, key) != (MATRIX,)}
                return {key: filled(item, (*place, key), within) for key, item in inner.items()}
            case tuple():
                return tuple(filled(item, (*place, number), within) for number, item in enumerate(value))
            case str() if "${" in value:
                return whole(value, place, within)
        return value

    def whole(text: str, place: Place, within: tuple[str, ...]) -> object:
        spot = spots[place]
        match = REFERENCE.fullmatch(text)
        axis = match["axis"] if match else None
        if axis is None:
            return REFERENCE.sub(lambda found: "$" if found["plain"] else chosen(found["axis"], spot).name, text)
        choice = chosen(axis, spot)
        if axis in within:
            raise _error(spot, f"the axis {axis} refers to itself")
        used_at = f"on line {spot.line + 1}" if spot.line >= 0 else f"at {spot}"
        note = f"a value of the axis {axis}, used {used_at}"
        for inner in ((), *places_in(choice.value)):
            own = values.spots[*choice.place, *inner]
            spots[*place, *inner] = keys[*place, *inner] = replace(own, note=note)
        return filled(choice.value, place, (*within, axis))

    def chosen(axis: str, spot: Spot) -> Choice:
        if axis not in combination:
            raise _no_value(axis, combination, values, spot)
        used.add(axis)
        return combination[axis]

    data = filled(values.data, ())
    return Variant(
        Values(data, keys, spots, values.faults), {axis: choice.name for axis, choice in combination.items()}
    )


def _no_value(axis: str, combination: Combination, values: Values, spot: Spot) -> RecipeError:
    """Say why a reference has no value in a combination."""
    matrix = cast(Mapping[str, Mapping[str, object]], values.data)[MATRIX]
    told = ", ".join(f"{name}={choice.name}" for name, choice in combination.items())
    known = {*matrix, *combination} - {INCLUDE, EXCLUDE}
    if axis in known or any(
        axis in entry for entry in cast(tuple[Mapping[str, object], ...], matrix.get(INCLUDE, ()))
    ):
        what = f"the axis {axis} has no value where {told}"
        if (near := nearest(axis, {*combination} - {*matrix})) is not None:
            return _error(values.keys[combination[near].place], what, f"Write {axis} in place of {near}.")
        return _error(spot, what, f"Give it one in each entry of include: {axis}: VALUE")
    return _error(
        spot,
        f"there is no axis {quoted(axis)}{_near(axis, known)}",
        f"The axes are {', '.join(sorted(known))}. For the text itself write $${{{axis}}}.",
    )


def _near(name: str, names: Iterable[str]) -> str:
    near = nearest(name, names)
    return f"; did you mean {near}?" if near is not None else ""


# -- names ---------------------------------------------------------------------------------------------------


def _check_apart(values: Values, expanded: tuple[Variant, ...]) -> None:
    """Raise RecipeError if two outputs have one name: names choose outputs, and every command shows them."""
    names: dict[str, tuple[str, Variant]] = {}
    for variant in expanded:
        output = variant.values.data.get("output") if isinstance(variant.values.data, Mapping) else None
        path = output.get("path") if isinstance(output, Mapping) else None
        if not isinstance(path, str):
            return  # the recipe's own check tells
        name = name_of_output(path)
        first, other = names.setdefault(name, (path, variant))
        if other is not variant:
            raise _error(values.spots["output", "path"], *_one_name(values, name, (first, other), (path, variant)))


def _one_name(values: Values, name: str, one: tuple[str, Variant], two: tuple[str, Variant]) -> tuple[str, str]:
    """Say which two outputs have one name, and how each gets its own."""
    (path, first), (other, second) = one, two
    where = [", ".join(f"{axis}={value}" for axis, value in variant.choices.items()) for variant in (first, second)]
    written = _text_at(values.data, ("output", "path"))
    folder, slash, file = written.rstrip("/").rpartition("/")
    is_one_path = path == other
    axes = [
        axis
        for axis in {**first.choices, **second.choices}
        if first.choices.get(axis) != second.choices.get(axis)
        and axis not in _axes_in(written if is_one_path else file)
    ]
    longer = "".join(f"-${{{axis}}}" for axis in axes)
    stem = file.removesuffix(".safetensors")
    is_example = bool(file) and not REFERENCE.fullmatch(written)
    example = f", too: {folder}{slash}{stem}{longer}{file.removeprefix(stem)}" if is_example else ""
    what = (
        f"two outputs have the path {path}: where {where[0]}, and where {where[1]}"
        if is_one_path
        else f"two outputs are called {name}: {path}, where {where[0]}, and {other}, where {where[1]}"
    )
    if not axes:
        return what, "The values of the axes run together in it: write another sign between them, such as _"
    if is_one_path:
        return what, f"Write {_listed(axes)} into output.path{example}"
    why = f"A name chooses an output ({ONLY.of(name)}). It is the file's, without folder and ending"
    return what, f"{why}: write {_listed(axes)} into it{example}"


def _listed(axes: Sequence[str]) -> str:
    return f"the axis {axes[0]}" if len(axes) == 1 else f"the axes {', '.join(axes)}"


def _axes_in(text: str) -> set[str]:
    return {match["axis"] for match in REFERENCE.finditer(text) if match["axis"]}


def _text_at(data: object, place: Place) -> str:
    """Return the text at a place, as it was written."""
    for key in place:
        data = data.get(str(key)) if isinstance(data, Mapping) else None
    return data if isinstance(data, str) else ""
