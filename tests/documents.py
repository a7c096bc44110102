"""Check a document: by its JSON Schema, and that its values are for programs, its keys for good."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from lorabake.documents.names import NO_FIGURES
from lorabake.documents.schema import schema_of
from lorabake.inspection import inspect as look
from lorabake.report.record import compose
from lorabake.verification.findings import Verification

WORDS = {"message", "note", "notes", "texts", "prompt", "text", "traceback", "reason", "details"}
"""Fields for people, and texts that are the user's own or a model's."""

FOREIGN = {"recipe", "inputs", "training", "metadata", "adapter_config", "lora_adapter_metadata", "words"}
"""Fields with what a file says of itself, as it says it."""

PROSE = re.compile(r"×|±|\d (?:[kMGT]i?)?B\b|\d (?:bytes|tensors|modules|values|files|missing|ulp|dB|%)|\babout \d")
"""What belongs into a message: sizes with units, counts in words."""


@cache
def validator(name: str) -> Draft202012Validator:
    schema = schema_of(name)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def strings(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the strings of a document that are not for people, each with its place."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in WORDS | FOREIGN:
                yield from strings(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, place)
    elif isinstance(value, str):
        yield place, value


def keys(value: object) -> Iterator[str]:
    """Yield all keys that are lorabake's own."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from keys(inner) if key not in FOREIGN else ()
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


def check(text: str | Mapping[str, object]) -> Any:
    """Check a document and return what it holds, as JSON gives it back."""
    read = json.loads(text if isinstance(text, str) else json.dumps(text))
    errors = [f"{error.json_path}: {error.message}" for error in validator(read["lorabake"]).iter_errors(read)]
    assert not errors, "\n".join(errors)
    assert not [(place, told) for place, told in strings(read) if PROSE.search(told)]
    assert not [key for key in keys(read) if not re.fullmatch(r"[a-z][a-z0-9_]*", key)]
    return read


def inspect(path: Path) -> dict[str, Any]:
    """Inspect a file, check the document, and write its lists of counts as maps, which are shorter to compare."""
    found = check(look(path))
    ways: dict[str, Any] = {
        "dtypes": lambda part: part["dtype"],
        "kinds": lambda part: part["kind"] or "/".join(part["slots"]),
        "ranks": lambda part: str(part["rank"]),
        "scales": lambda part: f"{part['scale']:g}",
        "alphas": lambda part: part["note"] or f"{part['alpha']:g} ({part['source']})".removesuffix(" (tensor)"),
        "packed_weights": lambda part: part["format"],
    }
    counts = {name: {way(part): part["count"] for part in found[name]} for name, way in ways.items()}
    return {**found, **counts, "problems": " ".join(part["message"] for part in found["problems"])}


def checked(verification: Verification) -> Verification:
    """Check the document of a verification, and that findings have figures beside words; return what was given."""
    check(compose(verification))
    for finding in verification.findings:
        assert finding.figures != NO_FIGURES or not finding.measured, finding
    return verification
