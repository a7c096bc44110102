"""Word the faults in a recipe's values for the people who write recipes."""

from __future__ import annotations

import re

from pydantic_core import ErrorDetails

from lorabake.likeness import nearest
from lorabake.recipe.shape import known_keys
from lorabake.recipe.types import FILE, SHA256, VISIBLE
from lorabake.recipe.values import Place, Values
from lorabake.recipe.words import Fault, found, quoted

_PATTERN_WORDS = {
    VISIBLE: "text that is not blank",
    FILE: "a file path",
    SHA256: "64 hexadecimal digits",
}
"""Pattern -> what it requires, as error messages say it."""

_WORDS = {
    "string_type": "text",
    "string_unicode": "text in UTF-8",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than_equal": "{ge:g} or more",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
"""pydantic's check -> what it requires, as error messages say it."""


def explained(error: ErrorDetails, values: Values) -> Fault:
    """Turn pydantic's error into a fault with its place in the recipe, in the user's words."""
    context, given, hint = error.get("ctx", {}), error["input"], ""
    place = _written(context.get("at", error["loc"]), values)
    spot = values.spots[place]
    name = _name(place)
    match error["type"]:
        case "missing":
            where = f" in {name}" if name in place else ""
            return Fault(spot, f"missing key {quoted(str(error['loc'][-1]))}{where}")
        case "extra_forbidden":
            key = str(place[-1])
            return Fault(values.keys[place], f"unknown key {quoted(key)}{_did_you_mean(key, known_keys(place[:-1]))}")
        case "nothing_to_bake" | "method_and" | "method_field":
            return Fault(spot, error["msg"])
        case "no_path":
            return Fault(spot, f"{name} is {quoted(given)}. {error['msg']}")
        case "too_short":
            return Fault(spot, f"{name} must not be empty")
        case "literal_error":
            expected = context["expected"].replace("'", "")
            hint = _did_you_mean(given, re.findall(r"'(\w+)'", context["expected"]))
        case "string_pattern_mismatch":
            expected = _PATTERN_WORDS[context["pattern"]]
        case kind:
            expected = _WORDS.get(kind, error["msg"]).format(**context)
    return Fault(spot, f"{name} must be {expected}, found {found(given)}{hint}")


def _written(location: Place, values: Values) -> Place:
    """Remove from a location what the user didn't write: the branch of a union, the `path` of a plain string."""
    place: Place = ()
    for part in location:
        if (*place, part) in values.spots:
            place = (*place, part)
    return place


def _name(place: Place) -> str:
    """Name a value by its key, or by the list around it."""
    match place:
        case ():
            return "the recipe"
        case (*_, str(key)):
            return key if key.isidentifier() else quoted(key)
    return f"each of {place[-2]}"


def _did_you_mean(name: object, names: list[str]) -> str:
    near = nearest(str(name), names, cutoff=0.5)
    return f", did you mean {near!r}?" if near else ""
