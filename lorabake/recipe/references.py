"""Describe in a recipe's JSON Schema what a matrix adds: the key, and references where a value may stand."""

from __future__ import annotations

from typing import Any

REFERENCE = {"description": "The value that one output has on an axis of the matrix.", "type": "string"}
PATTERN = r"^\$\{[^{}]+\}$"

_SCALAR = {"type": ["string", "number", "boolean"]}
_ENTRIES = {"type": "array", "items": {"type": "object", "minProperties": 1}}

MATRIX = {
    "description": "Axes with values: the recipe stands for an output for each combination of them.",
    "type": "object",
    "minProperties": 1,
    "properties": {
        "include": {**_ENTRIES, "description": "Combinations to add, or values to add to some."},
        "exclude": {**_ENTRIES, "description": "Combinations to leave out."},
    },
    "additionalProperties": {
        "description": "The values of an axis: a list, or a mapping from names to values of any type.",
        "anyOf": [
            {"type": "array", "items": _SCALAR, "minItems": 1},
            {"type": "object", "minProperties": 1},
        ],
    },
}


def with_matrix(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's schema with the key `matrix`, and with references wherever a value is no plain text."""
    described = {name: _described(record) for name, record in schema["$defs"].items()}
    described["Reference"] = {**REFERENCE, "pattern": PATTERN}
    whole = _described({name: part for name, part in schema.items() if name != "$defs"})
    whole["properties"]["version"] = schema["properties"]["version"]
    whole["properties"]["matrix"] = MATRIX
    return {"$defs": described, **whole}


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    """Let each value below a schema be a reference, too."""
    described = dict(schema)
    if "properties" in schema:
        described["properties"] = {name: _or_reference(part) for name, part in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            described[key] = _or_reference(schema[key])
    for key in ("anyOf", "prefixItems"):
        if key in schema:
            described[key] = [_described(part) for part in schema[key]]
    return described


def _or_reference(schema: dict[str, Any]) -> dict[str, Any]:
    """Let a value be a reference, unless it is a text of any form, which may be one already."""
    inner = _described(schema)
    if inner.get("type") == "string" and not {"enum", "pattern"} & inner.keys():
        return inner
    reference = {"$ref": "#/$defs/Reference"}
    if "anyOf" in inner:
        return {**inner, "anyOf": [*inner["anyOf"], reference]}
    told: dict[str, Any] = {key: inner.pop(key) for key in ("title", "description", "default") if key in inner}
    return {**told, "anyOf": [inner, reference]}
