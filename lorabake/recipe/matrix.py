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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias, cast

from lorabake.errors import RecipeError
from lorabake.likeness import nearest
from lorabake.paths import name_of_output
from lorabake.recipe.changes import places_in
from lorabake.recipe.values import MATRIX, Place, Values
from lorabake.recipe.words import Fault, Spot, found, quoted
from lorabake.settings import ONLY

INCLUDE, EXCLUDE = "include", "exclude"
MOST = 10_000
"""Most outputs of one recipe."""

REFERENCE = re.compile(r"\$(?:(?P<plain>\$(?=\{))|\{\s*(?P<axis>[^{}]*?)\s*\})")
AXIS = re.compile(r"[A-Za-z_][\w-]*")

Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Choice:
    """Hold one value of an axis, and its name in texts."""

    name: str
    value: object


Combination: TypeAlias = Mapping[str, Choice]
"""Axis -> the value that one output has on it."""


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
    axes = dict.fromkeys(axis for combination in combinations for axis in combination)
    for axis in axes:
        if axis not in used:
            spot = values.keys.get((MATRIX, axis), values.spots[MATRIX,])
            raise _error(
                spot, f"nothing in the recipe uses the axis {axis}", f"Write ${{{axis}}} where its value goes."
            )
    _check_apart(values, expanded)
    return expanded


def _error(spot: Spot, message: str, *advice: str) -> RecipeError:
    return RecipeError(Fault(spot, message).line, *advice)


# -- combinations --------------------------------------------------------------------------------------------


def _combinations(values: Values, matrix: object) -> list[Combination]:
    """Combine the axes, leave out what `exclude` says, and add what `include` says."""
    spot = values.spots[MATRIX,]
    if not isinstance(matrix, Mapping) or not matrix:
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
    for number, entry in enumerate(_entries(values, matrix, EXCLUDE)):
        left = [combination for combination in combined if not _fits(combination, entry)]
        if len(left) == len(combined):
            raise _error(values.spots[MATRIX, EXCLUDE, number], "this entry of exclude fits no combination")
        combined = left
    combined = _included(combined, axes, _entries(values, matrix, INCLUDE))
    if not combined:
        raise _error(spot, "the matrix has no combination: exclude leaves out all of them")
    return combined


def _choices(values: Values, place: Place, axis: str, given: object) -> tuple[Choice, ...]:
    """Read the values of an axis: a list of plain values, or a mapping from names to values."""
    if not AXIS.fullmatch(axis):
        raise _error(values.keys[place], f"the axis {quoted(axis)} needs a name of letters, digits, _ and -")
    match given:
        case Mapping() if given:
            return tuple(Choice(str(name), value) for name, value in given.items())
        case tuple() if given:
            choices = tuple(_choice(values.spots[*place, number], axis, value) for number, value in enumerate(given))
            for number, choice in enumerate(choices):
                if choice.name in [other.name for other in choices[:number]]:
                    raise _error(values.spots[*place, number], f"the axis {axis} has {choice.name} twice")
            return choices
    raise _error(
        values.spots[place],
        f"the axis {axis} must be a list of values, or a mapping from names to values, found {found(given)}",
        f"{axis}: [0.4, 0.8]",
    )


def _choice(spot: Spot, axis: str, value: object) -> Choice:
    """Name a plain value by itself; anything else needs a name that the user gives."""
    if not isinstance(value, str | int | float | bool):
        raise _error(
            spot, f"a value of the axis {axis} is {found(value)}: give it a name", f"{axis}: {{NAME: VALUE}}"
        )
    return Choice(_text_of(value), value)


def _text_of(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _entries(values: Values, matrix: Mapping[str, object], key: str) -> Iterator[Mapping[str, Choice]]:
    """Yield the entries of `include` or `exclude`."""
    given = matrix.get(key, ())
    if not isinstance(given, tuple):
        raise _error(
            values.spots[MATRIX, key], f"{key} must be a list, found {found(given)}", f"{key}: [{{AXIS: VALUE}}]"
        )
    for number, entry in enumerate(given):
        spot = values.spots[MATRIX, key, number]
        if not isinstance(entry, Mapping) or not entry:
            raise _error(spot, f"an entry of {key} must be a mapping from axes to values, found {found(entry)}")
        if key == EXCLUDE and (unknown := next((axis for axis in entry if axis not in matrix), None)):
            raise _error(spot, f"there is no axis {quoted(unknown)}{_near(unknown, matrix)}")
        yield {
            axis: _named(values.spots[MATRIX, key, number, axis], matrix, axis, value)
            for axis, value in entry.items()
        }


def _named(spot: Spot, matrix: Mapping[str, object], axis: str, value: object) -> Choice:
    """Return the value that an entry gives: one of the axis by its name, or a value of its own."""
    given = matrix.get(axis)
    if isinstance(given, Mapping) and isinstance(value, str) and value in given:
        return Choice(value, given[value])
    return _choice(spot, axis, value)


def _fits(combination: Combination, entry: Mapping[str, Choice]) -> bool:
    return all(axis in combination and combination[axis].name == choice.name for axis, choice in entry.items())


def _included(
    combined: list[Combination], axes: Mapping[str, object], entries: Iterator[Mapping[str, Choice]]
) -> list[Combination]:
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
        value = chosen(axis, spot).value
        if axis in within:
            raise _error(spot, f"the axis {axis} refers to itself")
        for inner in places_in(value):
            own = values.spots.get((MATRIX, axis, combination[axis].name, *inner), spot)
            spots[*place, *inner] = keys[*place, *inner] = own
        return filled(value, place, (*within, axis))

    def chosen(axis: str, spot: Spot) -> Choice:
        if axis not in combination:
            raise _error(spot, *_no_value(axis, combination, values))
        used.add(axis)
        return combination[axis]

    data = filled(values.data, ())
    return Variant(
        Values(data, keys, spots, values.faults), {axis: choice.name for axis, choice in combination.items()}
    )


def _no_value(axis: str, combination: Combination, values: Values) -> tuple[str, str]:
    """Say why a reference has no value in a combination."""
    matrix = cast(Mapping[str, Mapping[str, object]], values.data)[MATRIX]
    told = ", ".join(f"{name}={choice.name}" for name, choice in combination.items())
    known = {*matrix, *combination} - {INCLUDE, EXCLUDE}
    if axis in known or any(
        axis in entry for entry in cast(tuple[Mapping[str, object], ...], matrix.get(INCLUDE, ()))
    ):
        return f"the axis {axis} has no value where {told}", f"Give it one in each entry of include: {axis}: VALUE"
    return (
        f"there is no axis {quoted(axis)}{_near(axis, known)}",
        f"The axes are {', '.join(sorted(known))}. For the text itself write $${{{axis}}}.",
    )


def _near(name: str, names: Mapping[str, object] | set[str]) -> str:
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
