"""Word the faults in a recipe's values for the people who write recipes."""

from __future__ import annotations

import re

from pydantic_core import ErrorDetails

from lorabake.likeness import nearest
from lorabake.recipe.foreign import advice_on_key, near_key
from lorabake.recipe.hints import EXAMPLES, hint_on_value
from lorabake.recipe.models import Recipe
from lorabake.recipe.shape import known_keys
from lorabake.recipe.syntax import STRANGE_SPACES
from lorabake.recipe.types import FILE, SHA256, VISIBLE
from lorabake.recipe.values import Place, Values
from lorabake.recipe.words import Fault, Spot, found, quoted
from lorabake.settings import DIGEST, SET_WHOLE

OWNERS = ("loras", "output", "verify", "method")
"""Parts of a recipe that have keys which people write at its top."""

FILES = (".safetensors", ".ckpt", ".pt", ".bin")

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
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than_equal": "{le:g} or less",
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
            key, where = str(error["loc"][-1]), f" in {name}" if name in place else ""
            add = _as_option(f"; add {EXAMPLES[key]}", spot, (*place, key)) if key in EXAMPLES else ""
            return Fault(spot, f"missing key {quoted(key)}{where}{add}")
        case "extra_forbidden":
            return Fault(values.keys[place], f"unknown key {quoted(str(place[-1]))}{_hint_on_key(place, given)}")
        case "no_digest":
            key = ".".join(str(part) for part in place if part != "path")
            return Fault(
                spot, error["msg"] + (DIGEST.of(key) if spot.is_option and context["example"] else context["example"])
            )
        case "nothing_to_bake" | "method_and" | "method_field" | "field":
            return Fault(spot, error["msg"])
        case "no_path":
            is_entry = isinstance(place[-1], int)
            what = f"{quoted(given)} is no path" if is_entry else f"{name} is {quoted(given)}"
            return Fault(spot, f"{what}. {error['msg']}")
        case "too_short":
            return Fault(spot, f"{name} must not be empty; write something into it, or remove the key")
        case "literal_error":
            expected = context["expected"].replace("'", "")
            hint = _did_you_mean(given, re.findall(r"'(\w+)'", context["expected"]))
        case "string_pattern_mismatch":
            expected = _PATTERN_WORDS[context["pattern"]]
        case kind:
            expected = _WORDS.get(kind, error["msg"]).format(**context)
    hint = hint_on_value(tuple(part for part in place if isinstance(part, str)), given, expected) or hint
    return Fault(spot, f"{name} must be {expected}, found {found(given)}{_as_option(hint, spot, place)}")


def _as_option(hint: str, spot: Spot, place: Place) -> str:
    """Write a hint that names a key and its value as --set does, if the value was set by it."""
    match = re.fullmatch(r"(; \w+ )(\w+): (.+)", hint)
    if match is None or not spot.is_change or place[-1:] != (match[2],):
        return hint
    return match[1] + SET_WHOLE.of(".".join(map(str, place)), match[3])


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


def _hint_on_key(place: Place, given: object) -> str:
    """Say what to write instead of an unknown key, or where it belongs."""
    key, keys = str(place[-1]), [part for part in place if isinstance(part, str)]
    part = None if len(keys) == 1 else keys[0] if len(keys) == 2 else ""
    plain = key.strip(STRANGE_SPACES)
    if plain != key:
        return f"; type its spaces again: the character U+{ord(key[0]):04X} only looks like one"
    if pair := re.fullmatch(r"([a-z_]+):(\S+)", key):
        return f"; write a space after the colon: {pair[1]}: {pair[2]}"
    if part == "loras" and key.endswith(FILES):
        return f"; write {{path: {key}, strength: {given if isinstance(given, int | float) else 1}}}"
    if key == "<<":
        return "; write out the keys that it stands for"
    known = known_keys(place[:-1])
    if advice := advice_on_key(part, key, given) or _place_of(key, part):
        return f"; {advice}"
    if not (meant := _did_you_mean(key, known)) and (near := near_key(part, key)):
        return f", did you mean {near!r}? Here, {advice_on_key(part, near, given)}"
    return meant or f"; the keys here are {', '.join(known)}"


def _place_of(key: str, part: str | None) -> str | None:
    """Say where a key belongs that a recipe has elsewhere."""
    if part is not None and key in Recipe.model_fields:
        return f"write {key} at the top of the recipe, without indentation"
    owners = [owner for owner in OWNERS if key in known_keys((owner,))]
    if part is None and len(owners) == 1:
        return f"write it {'in an entry of' if owners[0] == 'loras' else 'under'} {owners[0]}"
    return None


def _did_you_mean(name: object, names: list[str]) -> str:
    near = nearest(str(name), names, cutoff=0.5)
    return f", did you mean {near!r}?" if near else ""
