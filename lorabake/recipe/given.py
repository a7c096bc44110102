"""Take a recipe as Python code gives it: the path of a file, a mapping like the YAML, or keywords.

A mapping and keywords become values like those of a file, with their own spots, so that the recipe's own checks and
messages serve them. Paths in them start from the current folder.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, SupportsFloat, TypeAlias, TypedDict, cast

from lorabake.arguments import AnyPath, Called, path_of, well_called
from lorabake.errors import ArgumentError, RecipeError
from lorabake.recipe import Lora, Recipe, load_recipe, recipe_of, values_of
from lorabake.recipe.changes import Change, with_changes
from lorabake.recipe.values import MAX_DEPTH, MAX_VALUES, Place, Values
from lorabake.recipe.words import Fault, Spot, found, quoted
from lorabake.recipe.written import written
from lorabake.visible import at_a_glance

Strength: TypeAlias = float | Mapping[str, float]
LoraGiven: TypeAlias = AnyPath | Mapping[str, object]
Given: TypeAlias = Recipe | AnyPath | Mapping[str, object]
"""A recipe, or what one can be made of."""

MOST_DIGITS = 40

WHOLE = "a plan says all of a bake: nothing else can be given with it"

EXAMPLE = 'bake("recipe.yaml"), bake({"base": …, …}), or bake(base=…, loras={"style.safetensors": 0.8}, output=…)'


class RecipeKeys(TypedDict, total=False):
    """List the keys of a recipe that can be keywords, but for `output`.

    `loras` is a list of paths and mappings, as in YAML, or a mapping from each path to its strength.
    """

    version: Literal[1]
    base: AnyPath | Mapping[str, object]
    loras: Sequence[LoraGiven] | Mapping[str, Strength | Mapping[str, object]]
    vae: AnyPath | Mapping[str, object]
    method: str | Mapping[str, object]
    compose: Literal["sum", "sequential"]
    compute_dtype: Literal["float32", "float64"]
    verify: Mapping[str, object]


OutputGiven: TypeAlias = AnyPath | Mapping[str, object]


def recipe_and_path(
    given: Given | None, output: OutputGiven | None, keys: Mapping[str, object], options: type
) -> tuple[Recipe, Path | None]:
    """Return the recipe that was given, and the output's path where that takes the place of the recipe's.

    `options` is the class of what is no key of a recipe, and is often taken for one.
    """
    for name in keys:
        if name not in Recipe.model_fields and name in {field.name for field in fields(options)}:
            raise ArgumentError(
                f"{name} is no key of a recipe: it is an option", f"Write options={options.__name__}({name}=…)."
            )
    if given is None:
        return recipe_given(None, keys if output is None else {**keys, "output": output}), None
    return recipe_given(given, keys), None if output is None else path_of(output, "output")


def change(recipe: Given, changes: Mapping[str, object]) -> Recipe:
    """Return a recipe with other values; the one that is given stays as it is.

    The keys of `changes` lead to the values, as with `--set` on the command line; a LoRA is told by its number. Paths
    in new values start from the current folder.

    Raise RecipeError for a key that a recipe cannot have, and for a value that is wrong there.

    Examples:
        >>> weaker = lorabake.change("recipe.yaml", {"loras.0.strength": 0.5, "output.path": "weaker.safetensors"})
        >>> weaker.loras[0].strength
        0.5
        >>> lorabake.bake(weaker).path.name
        'weaker.safetensors'
    """
    given = recipe_given(recipe, {})
    if not isinstance(changes, Mapping):
        raise ArgumentError("changes must be a mapping", 'Write change(recipe, {"loras.0.strength": 0.5}).')
    values = values_of(given.model_dump(exclude_unset=True), "recipe")
    asked = [_change(key, value) for key, value in changes.items()]
    values = with_changes(values, asked, Path.cwd(), given.folder)
    changed = recipe_of(values, given.folder)
    return changed.kept_in(given.file, written(cast(Mapping[str, object], values.data)))


def _change(key: object, value: object) -> Change:
    if not isinstance(key, str) or not all(key.split(".")):
        raise ArgumentError(f"changes: {at_a_glance(key)} is no key", "Write it as in 'loras.0.strength'.")
    spot, reading = f"changes[{quoted(key)}]", _Reading({}, [])
    data = reading.taken(value, (), spot)
    return Change(key, Values(data, {}, reading.spots, tuple(reading.faults)), at_a_glance(value), Spot(spot))


def takes_a_recipe(function: Called) -> Called:
    """Show the keywords that can take a recipe's place where Python shows how a function is called.

    Turn calls that do not fit into ArgumentErrors that show how recipes are given.
    """
    called = well_called(EXAMPLE)(function)
    signature = inspect.signature(function)
    own = [part for part in signature.parameters.values() if part.kind is not part.VAR_KEYWORD]
    keys = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=ABSENT, annotation=kind.__forward_arg__)
        for name, kind in RecipeKeys.__annotations__.items()
    ]
    called.__signature__ = signature.replace(parameters=[*own, *keys])  # type: ignore[attr-defined]
    return called


class _Absent:
    """Stand for a keyword that was not given, in signatures that people read."""

    def __repr__(self) -> str:
        return "…"


ABSENT = _Absent()


def recipe_given(given: Given | None, keys: Mapping[str, object]) -> Recipe:
    """Return the recipe that was given in one of the three ways; raise RecipeError with every fault in it."""
    if given is not None and keys:
        raise ArgumentError(
            f"give a recipe or the keywords {', '.join(keys)}, not both",
            "To change a value: change(recipe, {'loras.0.strength': 0.5}).",
        )
    match given:
        case Recipe():
            return given
        case str() | os.PathLike():
            return load_recipe(given)
        case Mapping():
            return _made(given, "recipe")
        case None if keys:
            return _made(keys, "")
        case None:
            raise ArgumentError("there is no recipe", f"Write {EXAMPLE}.")
    raise ArgumentError(f"a recipe cannot be {found(given)}", f"Write {EXAMPLE}.")


def _made(given: Mapping[str, object], name: str) -> Recipe:
    values = _values(given, name)
    recipe = recipe_of(values, Path.cwd())
    return recipe.kept_in(None, written(cast(Mapping[str, object], values.data)))


def _values(given: Mapping[str, object], name: str) -> Values:
    """Make values of a mapping called `name`, or of keywords, which have none."""
    reading = _Reading({}, [])
    data = reading.mapping(given, (), name)
    loras, output = data.get("loras"), data.get("output")
    if isinstance(loras, dict):
        data["loras"] = tuple(reading.lora(number, *entry) for number, entry in enumerate(loras.items()))
    if isinstance(output, str):
        data["output"] = {"path": output}
        reading.spots["output", "path"] = reading.spots["output",]
    return Values({"version": 1, **data}, reading.spots, reading.spots, tuple(reading.faults))


@dataclass(frozen=True, slots=True)
class _Reading:
    """Collect where values were given, and the faults of keys and texts."""

    spots: dict[Place, Spot]
    faults: list[Fault]

    def mapping(self, given: Mapping[Any, object], place: Place, name: str) -> dict[str, object]:
        """Turn a mapping and all below it into what YAML would give; paths may be keys, too."""
        spot = self.spots[place] = Spot(name or "recipe")
        read: dict[str, object] = {}
        for given_key, value in given.items():
            key = os.fspath(given_key) if isinstance(given_key, os.PathLike) else given_key
            if not isinstance(key, str):
                self.faults.append(Fault(spot, f"a key must be text, found {found(key)}"))
            elif key in read:
                self.faults.append(Fault(spot, f"duplicate key {quoted(key)}"))
            else:
                read[str(key)] = self.taken(value, (*place, key), f"{name}[{quoted(key)}]" if name else key)
        return read

    def taken(self, value: object, place: Place, name: str) -> object:
        """Turn a value and all below it into what YAML would give; raise RecipeError for what has no end."""
        spot = self.spots[place] = Spot(name)
        if len(place) > MAX_DEPTH or len(self.spots) > MAX_VALUES:
            limit = f"at most {MAX_VALUES} values, nested at most {MAX_DEPTH} deep"
            raise RecipeError(Fault(Spot(name.partition("[")[0]), f"a recipe has {limit}").line)
        match value:
            case Mapping():
                return self.mapping(value, place, name)
            case list() | tuple():
                return tuple(self.taken(item, (*place, at), f"{name}[{at}]") for at, item in enumerate(value))
            case bool() | None:
                return value
            case str() | os.PathLike():
                return self._text(os.fspath(value), spot)
            case Integral():
                return self._whole(int(value), spot)
            case Real():
                return float(value)
        return _number(value)

    def _text(self, value: str | bytes, spot: Spot) -> object:
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            self.faults.append(Fault(spot, "the text holds bytes that are not UTF-8: rename the file"))
        return str(value) if isinstance(value, str) else value

    def _whole(self, value: int, spot: Spot) -> int:
        """Refuse numbers with more digits than a recipe in YAML may have."""
        if abs(value) < 10**MOST_DIGITS:
            return value
        self.faults.append(Fault(spot, f"a number has at most {MOST_DIGITS} digits"))
        return 0

    def lora(self, number: int, path: str, said: object) -> dict[str, object]:
        """Turn an entry of a mapping, path: strength or path: {strength: …}, into an entry of a list."""
        is_entry = isinstance(said, dict) and not said.keys().isdisjoint(Lora.model_fields)
        old: Place = ("loras", path)
        new: Place = ("loras", number) if is_entry else ("loras", number, "strength")
        below = {place[len(old) :]: spot for place, spot in self.spots.items() if place[: len(old)] == old}
        self.spots.update({(*new, *rest): spot for rest, spot in below.items()})
        self.spots["loras", number] = self.spots["loras", number, "path"] = self.spots[old]
        return {"path": path, **said} if isinstance(said, dict) and is_entry else {"path": path, "strength": said}


def _number(value: object) -> object:
    """Turn what stands for one number, such as a tensor with one value, into it; leave anything else as it is."""
    shape = getattr(value, "shape", ())
    if not (isinstance(value, SupportsFloat) and isinstance(shape, tuple) and math.prod(shape) == 1):
        return value
    item = getattr(value, "item", None)
    try:
        return item() if callable(item) else float(value)
    except (TypeError, ValueError, OverflowError):
        return value
