"""The JSON that lorabake writes: a typed record for each document, and the JSON Schema that is made of it.

Every document begins with its name and version: {"lorabake": "plan", "version": 2, …}. The version rises when a key
goes away or changes its meaning. A new key does not raise it.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from math import isfinite, isnan
from typing import Any, Final

VERSIONS: Final = {
    "plan": 2,
    "plan_batch": 1,
    "bake": 2,
    "verify": 3,
    "verify_batch": 1,
    "inspect": 2,
    "check": 1,
    "batch": 1,
    "hash": 1,
    "error": 1,
    "metadata": 1,
}
"""The documents, each with its version. Version 1 of verify was a report.json without a name."""


def document(name: str, record: object) -> dict[str, object]:
    """Return a document as values for JSON: its name and version, then the record's fields."""
    return {"lorabake": name, "version": VERSIONS[name], **fields_of(record)}


def fields_of(record: object) -> dict[str, object]:
    """Return a record's fields as values for JSON."""
    return {field.name: plain(getattr(record, field.name)) for field in fields(record)}  # type: ignore[arg-type]


def plain(value: object) -> Any:
    """Return a value that JSON can hold: numbers that it cannot write become "Infinity", "-Infinity" and "NaN"."""
    match value:
        case float() if not isfinite(value):
            return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case dict():
            return {str(key): plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
    return fields_of(value) if is_dataclass(value) else value
