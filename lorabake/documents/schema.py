"""Describe documents as JSON Schemas (draft 2020-12), made from their records."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from lorabake.documents import VERSIONS

RECORDS: Mapping[str, str] = {
    "plan": "PlanDocument",
    "plan_batch": "PlanBatchDocument",
    "bake": "BakeDocument",
    "verify": "VerifyDocument",
    "verify_batch": "VerifyBatchDocument",
    "inspect": "InspectDocument",
    "check": "CheckDocument",
    "batch": "BatchDocument",
    "hash": "HashDocument",
    "error": "ErrorDocument",
    "metadata": "MetadataDocument",
}


class _Untitled(GenerateJsonSchema):
    """Leave out the titles of fields, which only repeat their keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema_of(name: str) -> dict[str, object]:
    """Return the JSON Schema of a document. It allows no key that it does not name."""
    record = getattr(import_module(f"lorabake.documents.{name}"), RECORDS[name])
    schema = _described(record)
    envelope = {
        "lorabake": {"const": name, "description": "The name of this sort of document."},
        "version": {
            "const": VERSIONS[name],
            "description": "It rises when a key goes away or changes its meaning. A new key does not raise it.",
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:lorabake:{name}:{VERSIONS[name]}",
        **schema,
        "title": f"lorabake {name}",
        "properties": {**envelope, **schema["properties"]},
        "required": [*envelope, *schema["required"]],
    }


def _described(record: type) -> dict[str, Any]:
    """Describe a record. Pydantic does not see the texts below inherited fields, so they come from the base."""
    schema = TypeAdapter(record).json_schema(mode="serialization", schema_generator=_Untitled)
    for base in record.__mro__[1:-1]:
        schema["properties"] |= _described(base)["properties"]
    return schema
