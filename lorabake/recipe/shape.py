"""Ask the records of a recipe about their shape: which keys there may be at a place, and which values are paths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lorabake.recipe.models import Recipe
from lorabake.recipe.part import Short
from lorabake.recipe.types import FILE
from lorabake.recipe.values import Place


def known_keys(place: Place) -> list[str]:
    """List the keys that the mapping at a place may have; none where they are the user's own, as in blocks."""
    record = _record_at(place)
    return list(record.model_fields) if record else []


def short_key(place: Place) -> str | None:
    """Return the key that a plain text at a place stands for: a LoRA's text is its path."""
    field = _field_at(place)
    return next((part.key for part in _declared(field) if isinstance(part, Short)), None) if field else None


def is_list(place: Place) -> bool:
    """Tell whether the grammar has a list at a place."""
    field = _field_at(place)
    return field is not None and isinstance(place[-1], str) and _has_list(field.annotation)


def is_path(place: Place) -> bool:
    """Tell whether a text at a place is a file's path."""
    key = short_key(place)
    field = _field_at((*place, key) if key else place)
    return field is not None and not is_list(place) and _is_file(field)


def parts_of(key: str) -> list[str]:
    """Split loras.0.strength into its parts. Names of the user's own stay whole: blocks, then up_blocks.0.*."""
    parts, rest = [], key.split(".")
    place: Place = ()
    while rest and _record_at(place) is not None:
        parts.append(rest.pop(0))
        place = (*place, 0 if is_list(place) else parts[-1])
    if rest:
        parts += rest if is_list(place) else [".".join(rest)]
    return parts


def _record_at(place: Place) -> type[BaseModel] | None:
    """Return the record at a place; for a list, the record of its entries."""
    if not place:
        return Recipe
    field = _field_at(place)
    return next(_records(field.annotation), None) if field else None


def _field_at(place: Place) -> FieldInfo | None:
    """Return the declaration of the value at a place; for an entry of a list, that of the list."""
    record: type[BaseModel] | None = Recipe
    field = None
    for part in place:
        if isinstance(part, str):
            field = record.model_fields.get(part) if record else None
            record = next(_records(field.annotation), None) if field else None
    return field


def _records(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _records(argument)


def _has_list(annotation: object) -> bool:
    return get_origin(annotation) is tuple or any(map(_has_list, get_args(annotation)))


def _is_file(field: FieldInfo) -> bool:
    """Tell whether a value has the pattern of a path."""
    return any(getattr(part, "pattern", None) == FILE for part in _declared(field))


def _declared(part: object) -> Iterator[object]:
    """Yield what a value is declared with: its types and all that stands beside them."""
    yield part
    for inside in (*get_args(part), *getattr(part, "metadata", ()), getattr(part, "annotation", None)):
        if inside is not None:
            yield from _declared(inside)
