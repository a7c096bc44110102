"""The documents: their schemas hold every key, describe every field, and refuse what is not theirs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError

from lorabake import load_recipe, plan
from lorabake.documents import VERSIONS, plain
from lorabake.documents.schema import RECORDS, schema_of
from tests import builders as b
from tests.documents import PROSE, check, validator


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    """Bake, and return the document."""
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(1)(24, 16)})
    b.kohya(tmp_path / "lora.safetensors", {"lora_unet_fc": b.lora((24, 16))})
    return check(b.run(b.recipe(tmp_path)).report())  # type: ignore[no-any-return]


def objects(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object that a schema describes."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield place, schema
        for key, inner in schema.items():
            yield from objects(inner, f"{place}.{key}")
    elif isinstance(schema, list):
        for inner in schema:
            yield from objects(inner, place)


@pytest.mark.parametrize("name", VERSIONS)
def test_schemas_are_strict_and_describe_every_field(name: str) -> None:
    described = dict(objects(schema_of(name)))
    assert len(described) > 1
    for place, schema in described.items():
        assert schema["additionalProperties"] is False, place
        assert {*schema["required"]} == {*schema["properties"]}, place
        assert schema["description"], place
        silent = [key for key, field in schema["properties"].items() if not {"description", "$ref"} & field.keys()]
        assert silent == [], place


def test_every_document_has_a_record() -> None:
    assert RECORDS.keys() == VERSIONS.keys()


@pytest.mark.parametrize("name", ["shape", "plan.shape", "plan.output.shape", "plan.loras.shape"])
def test_a_key_that_no_schema_has_is_refused(told: dict[str, Any], name: str) -> None:
    *folders, key = name.split(".")
    place: Any = told
    for folder in folders:
        place = place[folder][0] if isinstance(place[folder], list) else place[folder]
    place[key] = 1
    with pytest.raises(ValidationError, match="'shape' was unexpected"):
        validator("bake").validate(told)


@pytest.mark.parametrize("key", ["lorabake", "version", "bytes", "plan"])
def test_a_key_that_is_missing_is_refused(told: dict[str, Any], key: str) -> None:
    del told[key]
    with pytest.raises(ValidationError, match=f"'{key}' is a required property"):
        validator("bake").validate(told)


def test_the_plan_in_a_bake_is_the_plans_own(tmp_path: Path, told: dict[str, Any]) -> None:
    made = plan(load_recipe(tmp_path / "recipe.yaml")).report()
    assert plain(made) == told["plan"]


@pytest.mark.parametrize(
    "words", ["10.3 MB", "about 196 MiB", "AdaLoRA ×12", "5,966,382 bytes", "0.83 %", "12 tensors"]
)
def test_prose_is_found_in_a_value(told: dict[str, Any], words: str) -> None:
    assert PROSE.search(words)
    told["device"] = words
    with pytest.raises(AssertionError):
        check(told)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (math.nan, "NaN"),
        ((1.5, {"a": (None,)}), [1.5, {"a": [None]}]),
    ],
)
def test_numbers_that_json_cannot_write_become_words(value: object, written: object) -> None:
    assert plain(value) == written
