"""The documents: their schemas hold every key, describe every field, and refuse what is not theirs."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import ValidationError

from lorabake import load_recipe, plan
from lorabake.cli import main
from lorabake.documents import VERSIONS, plain
from lorabake.documents.names import ErrorKind, Unit
from lorabake.documents.schema import RECORDS, schema_of
from lorabake.documents.verify import Stage, Status, Verdict
from lorabake.errors import LorabakeError
from lorabake.planning.cautions import cautions_of_recipe
from lorabake.planning.record import warnings_of
from lorabake.recipe import parse_recipe
from lorabake.verification import ORDER, findings
from tests import builders as b
from tests.documents import PROSE, check, validator

ROOT = Path(__file__).resolve().parent.parent


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


def test_the_names_in_schemas_are_those_of_the_program() -> None:
    assert {*get_args(Status)} == {*findings.Status}
    assert {*get_args(Verdict)} == {*findings.Verdict}
    assert {*get_args(Stage)} == {*ORDER}


def test_every_document_has_a_record() -> None:
    assert RECORDS.keys() == VERSIONS.keys()


def test_the_page_of_commands_names_every_document() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    section = page.partition("## `lorabake schema`")[2].partition("\n## ")[0]
    assert [name for name in VERSIONS if not re.search(rf"`(?:lorabake schema )?{name}`", section)] == []


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


# -- docs/json.md ------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```sh\n(lorabake (\w+) [^\n]*)\n```\n\n```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
VARYING = {"seconds", "sync_seconds", "peak_memory_bytes", "free_disk_bytes", "sha256", "bottleneck", "relative"}
"""Values that are others on another machine."""

ELSEWHERE = "/home/me/lorabake"
"""The folder in which the page's examples are run."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes and their inputs, as a reader has it, and what the page bakes."""
    folder = tmp_path_factory.mktemp("reader")
    left_out = shutil.ignore_patterns("inputs", "__pycache__")
    shutil.copytree(ROOT / "recipes", folder / "recipes", ignore=left_out)
    script = [sys.executable, ROOT / "recipes" / "make_inputs.py", folder / "recipes" / "inputs"]
    subprocess.run(script, check=True, capture_output=True)
    b.run(folder / "recipes" / "per_component.yaml")
    return folder


def missing(shown: Any, told: Any, place: str = "") -> Iterator[str]:
    """Yield what an example shows that a document does not hold; entries of lists may stand anywhere."""
    if isinstance(shown, dict) and isinstance(told, dict):
        for key, value in shown.items():
            if key not in told:
                yield f"{place}.{key}"
            elif key not in VARYING:
                yield from missing(value, told[key], f"{place}.{key}")
            elif type(value) is not type(told[key]):
                yield f"{place}.{key}: {told[key]!r}"
    elif isinstance(shown, list) and isinstance(told, list):
        yield from (f"{place}: {entry}" for entry in shown if all([*missing(entry, each)] for each in told))
    elif shown != told:
        yield f"{place}: {told!r}"


def test_the_page_shows_every_document() -> None:
    assert [json.loads(shown)["lorabake"] for _, _, shown in EXAMPLES] == [*VERSIONS]


@pytest.mark.parametrize(("command", "shown"), [(command, shown) for command, _, shown in EXAMPLES])
def test_the_page_shows_what_is_printed(
    command: str, shown: str, reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(reader)
    words = shlex.split(command)[1:]
    with pytest.raises(SystemExit):
        main([*words, *(["--force"] if words[0] == "bake" else [])])  # the output is there already
    assert not [*missing(json.loads(shown), check(capsys.readouterr().out.replace(str(reader), ELSEWHERE)))]


def test_the_page_shows_a_warning_as_it_is(reader: Path) -> None:
    recipe = (reader / "recipes" / "per_component.yaml").read_text().replace("strength: 0.5", "strength: 12")
    made = plan(parse_recipe(recipe.replace("    components: [unet] ", "    #"), reader / "recipes"))
    (warning,) = map(plain, warnings_of(cautions_of_recipe(made)))
    assert warning == json.loads(re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1])


def test_the_page_tells_every_unit_and_verdict() -> None:
    rows = "\n".join(re.findall(r"^\| `.*?\|", PAGE, re.MULTILINE))
    named = {*re.findall(r"`(\w+)`", rows)} - {"verdict", "unit", "kind"}
    assert named == {*get_args(Unit)} | {*get_args(Verdict)} | {*get_args(ErrorKind)}


def test_every_sort_of_error_has_a_name_of_its_own() -> None:
    kinds = [kind for kind in LorabakeError.__subclasses__() if kind.__module__ == "lorabake.errors"]
    assert sorted(kind.kind for kind in kinds) == sorted({*get_args(ErrorKind)} - {"usage", "interrupted"})


@pytest.mark.parametrize(
    ("arguments", "kind", "place"),
    [
        (["plan", "recipe.yaml"], "recipe", ("recipe.yaml", 1, 10)),
        (["plan", "nothing.yaml"], "recipe", ("nothing.yaml", None, None)),
        (["inspect", "a: b.safetensors"], "file", ("a: b.safetensors", None, None)),
        (["plan", "--lora", "x"], "recipe", (None, None, None)),
        (["plan", "--nonsense"], "usage", (None, None, None)),
        (["bake", "recipe.yaml", "--device", "gpu"], "recipe", ("recipe.yaml", 1, 10)),
    ],
)
def test_a_failure_is_a_document_too(
    arguments: list[str],
    kind: str,
    place: tuple[str | None, int | None, int | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a: b.safetensors").write_text("nothing of the sort")
    (tmp_path / "recipe.yaml").write_text("version: 3\nbase: b\nloras: [{path: a, strenght: 1}]\noutput: {path: c}\n")
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    printed = capsys.readouterr()
    told = check(printed.out)
    assert (told["lorabake"], told["kind"], told["exit_code"]) == ("error", kind, ended.value.code)
    assert (told["path"], told["line"], told["column"]) == place
    assert printed.err.startswith(f"error: {told['message']}\n")
    if place[1]:
        assert [fault["line"] for fault in told["faults"]] == [1, 3]
