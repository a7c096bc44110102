"""Statements of provenance: their form by the published schemas, what they name, and what `verify` computes again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from jsonschema import Draft202012Validator, ValidationError

import lorabake
from lorabake.artifacts.statement import statement_of, timestamp, write_statement
from lorabake.cli import lorabake as command
from lorabake.errors import ArgumentError, FileError
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Finding, Status
from tests import builders as b
from tests.documents import checked

SCHEMA = json.loads((Path(__file__).parent / "statement.schema.json").read_text())
Statement = dict[str, Any]


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("file")
    b.save(folder / "base.safetensors", b.sd1())
    b.sd1_lora(folder / "lora.safetensors")
    b.run(b.recipe(folder))
    return folder


@pytest.fixture(scope="module")
def baked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    b.sd1_folder(folder / "base")
    (folder / "base" / "unet" / "note.txt").write_text("side file")
    b.sd1_lora(folder / "lora.safetensors")
    b.run(b.recipe(folder, base="base", output={"path": "out"}))
    return folder


@pytest.fixture
def folder(baked: Path, tmp_path: Path) -> Path:
    """Return a copy of base, LoRA, recipe and output."""
    return Path(shutil.copytree(baked, tmp_path / "copy"))


@pytest.fixture
def pipeline(baked_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the same, where base and output are folders."""
    return Path(shutil.copytree(baked_folder, tmp_path / "copy"))


def stated(folder: Path, output: str = "out.safetensors", **options: Any) -> Statement:
    plan = lorabake.plan(folder / "recipe.yaml")
    written: Statement = json.loads(write_statement(plan, folder / output, **options).read_text())
    return written


def look(folder: Path, output: str = "out.safetensors") -> dict[str, list[Finding]]:
    """Let `verify` look at the statement alone; return the findings by check."""
    options = VerifyOptions(stages=["provenance"])
    verification = checked(verify(folder / "recipe.yaml", folder / output, options))
    found: dict[str, list[Finding]] = {}
    for finding in (row for row in verification.findings if row.stage == "provenance"):
        found.setdefault(finding.check.partition(".")[2], []).append(finding)
    return found


def failed(found: dict[str, list[Finding]]) -> list[tuple[str, str]]:
    """List what failed: each check with its subject."""
    return [(name, row.subject) for name, rows in found.items() for row in rows if row.status is Status.FAIL]


def rewritten(place: Path, change: Callable[[Statement], object]) -> None:
    """Change a statement."""
    statement = json.loads(place.read_text())
    change(statement)
    place.write_text(json.dumps(statement))


# -- the form --------------------------------------------------------------------------------------------


def test_a_statement_is_what_the_specifications_say(folder: Path) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    statement = stated(folder, date="2026-11-29")
    Draft202012Validator(SCHEMA).validate(statement)
    del statement["subject"][0]["digest"]
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMA).validate(statement)


@pytest.mark.oracle
def test_a_statement_is_what_the_published_protocol_buffers_say(folder: Path) -> None:
    pytest.importorskip("in_toto_attestation")
    from google.protobuf.json_format import MessageToDict, Parse, ParseError
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
    from in_toto_attestation.v1.statement import Statement as Checked
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    statement = stated(folder, date="2026-11-29T12:00:00+02:00")
    message = Parse(json.dumps(statement), Message())  # an unknown field is an error
    Checked.copy_from_pb(message).validate()
    provenance = Parse(json.dumps(statement["predicate"]), Provenance())
    assert MessageToDict(provenance)["runDetails"]["metadata"] == {"finishedOn": "2026-11-29T10:00:00Z"}
    assert MessageToDict(provenance)["buildDefinition"] == statement["predicate"]["buildDefinition"]
    with pytest.raises(ParseError):
        Parse(json.dumps({**statement["predicate"], "materials": []}), Provenance())


def test_a_statement_names_the_output_the_inputs_the_recipe_and_lorabake(folder: Path) -> None:
    statement = stated(folder)
    definition, run = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    sha256 = b.sha256(folder / "out.safetensors")
    assert statement["subject"] == [{"name": "out.safetensors", "digest": {"sha256": sha256}}]
    inputs = [
        (each["name"], each["digest"]["sha256"], each["annotations"]) for each in definition["resolvedDependencies"]
    ]
    assert inputs == [
        ("base.safetensors", b.sha256(folder / "base.safetensors"), {"role": "base"}),
        ("lora.safetensors", b.sha256(folder / "lora.safetensors"), {"role": "loras.0"}),
    ]
    assert definition["externalParameters"] == {"recipe": lorabake.load_recipe(folder / "recipe.yaml").normal_form()}
    assert definition["internalParameters"] == {"device": "cpu"}
    assert run == {"builder": {"id": run["builder"]["id"], "version": {"lorabake": lorabake.__version__}}}


def test_a_folder_is_stated_file_by_file_beside_it(pipeline: Path) -> None:
    statement = stated(pipeline, "out")
    assert (pipeline / "out.intoto.json").is_file()
    found = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    assert found == {f"out/{name}": b.sha256(pipeline / "out" / name) for name in b.tree(pipeline / "out")}
    names = {each["name"] for each in statement["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert names == {"lora.safetensors", *(f"base/{name}" for name in b.tree(pipeline / "base"))}


def test_small_files_that_decide_something_and_learned_embeddings_are_stated(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.peft(tmp_path / "lora", {"text_model.encoder.layers.0.self_attn.q_proj": b.lora((b.TEXT, b.TEXT))})
    b.run(b.recipe(tmp_path, loras=["lora"]))
    names = [each["name"] for each in stated(tmp_path)["predicate"]["buildDefinition"]["resolvedDependencies"]]
    assert names == ["base.safetensors", "lora/adapter_model.safetensors", "lora/adapter_config.json"]


def test_shards_and_their_index_are_stated(tmp_path: Path) -> None:
    b.llama(tmp_path / "base", shards=2)
    recipe = {"base": "base/model.safetensors.index.json", "loras": [], "output": {"path": "out", "dtype": "float16"}}
    b.run(b.recipe(tmp_path, **recipe))
    names = {each["name"] for each in stated(tmp_path, "out")["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert names == {f"base/{name}" for name in b.tree(tmp_path / "base")}
    assert not failed(look(tmp_path, "out"))


def test_inputs_of_the_hub_have_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, cache = "0123456789" * 4, tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    snapshot = cache / "models--org--Base" / "snapshots" / commit
    b.save(snapshot / "sd" / "base.safetensors", b.sd1())
    (cache / "models--org--Base" / "refs").mkdir()
    (cache / "models--org--Base" / "refs" / "main").write_text(commit)
    b.sd1_lora(tmp_path / "lora.safetensors")
    b.run(b.recipe(tmp_path, base="hf://org/Base/sd/base.safetensors"))
    statement = stated(tmp_path)
    Draft202012Validator(SCHEMA).validate(statement)
    base, lora = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert (base["name"], base["uri"]) == ("hf://org/Base/sd/base.safetensors", f"pkg:huggingface/org/Base@{commit}")
    assert "uri" not in lora
    assert not failed(look(tmp_path))
    rewritten(tmp_path / "out.intoto.json", lambda s: dependencies(s)[0].update(uri="pkg:huggingface/other/Base@1"))
    assert failed(look(tmp_path)) == [("input", "hf://org/Base/sd/base.safetensors")]


def test_the_same_bake_has_the_same_statement(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    stated(folder)
    other = tmp_path_factory.mktemp("other")
    for name in ("base.safetensors", "lora.safetensors", "recipe.yaml"):
        shutil.copy(folder / name, other / name)
    b.run(other / "recipe.yaml", workers=1)
    stated(other)
    assert (folder / "out.intoto.json").read_bytes() == (other / "out.intoto.json").read_bytes()


def test_a_statement_has_no_date_unless_one_is_given(folder: Path) -> None:
    assert "metadata" not in stated(folder)["predicate"]["runDetails"]
    assert stated(folder, date="2026-11-29")["predicate"]["runDetails"]["metadata"] == {
        "finishedOn": "2026-11-29T00:00:00Z"
    }
    assert not failed(look(folder))


@pytest.mark.parametrize("date", ["yesterday", "2026-13-01", "29.11.2026"])
def test_a_date_of_nothing_is_refused(date: str) -> None:
    with pytest.raises(ArgumentError, match="give a date such as 2026-11-29"):
        timestamp(date)


def test_an_input_that_changed_after_the_plan_is_not_stated(folder: Path) -> None:
    plan = lorabake.plan(folder / "recipe.yaml")
    b.sd1_lora(folder / "lora.safetensors", seed=9)
    with pytest.raises(FileError, match=r"lora\.safetensors: changed after the bake had read it"):
        statement_of(plan)


# -- the command -----------------------------------------------------------------------------------------


def run(*arguments: object) -> Any:
    return CliRunner().invoke(command, [*map(str, arguments)], standalone_mode=False)


def test_bake_writes_a_statement_where_it_is_asked_for(folder: Path) -> None:
    result = run("bake", folder / "recipe.yaml", "--provenance", "--date", "2026-11-29")
    assert result.exception is None
    assert "statement " in result.stderr
    assert json.loads((folder / "out.intoto.json").read_text()) == stated(folder, date="2026-11-29")


def test_bake_replaces_a_statement_but_no_other_file(folder: Path) -> None:
    (folder / "out.intoto.json").write_text('{"_type": "https://in-toto.io/Statement/v1"}')
    result = run("bake", folder / "recipe.yaml", "--provenance")
    assert "exists and holds something else than the statement of a bake" in str(result.exception)
    stated(folder, date="2026-11-29")
    assert run("bake", folder / "recipe.yaml", "--provenance").exception is None
    assert "metadata" not in json.loads((folder / "out.intoto.json").read_text())["predicate"]["runDetails"]


def test_a_date_without_a_statement_is_refused(folder: Path) -> None:
    assert "Give --provenance, too." in str(run("bake", folder / "recipe.yaml", "--date", "2026-11-29").exception)


def test_verify_looks_at_a_statement_only_where_one_lies(folder: Path) -> None:
    arguments = ("verify", folder / "recipe.yaml")
    assert "provenance" not in run(*arguments).stdout
    stated(folder)
    assert "provenance (" in run(*arguments).stdout
    assert "provenance (" not in run(*arguments, "--stage", "structure").stdout
    (folder / "out.intoto.json").unlink()
    result = run(*arguments, "--stage", "provenance")
    assert "no statement of provenance lies beside" in result.stdout
    assert result.return_value == 2


# -- what verify recomputes ------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["out.safetensors", "out"])
def test_a_true_statement_passes_with_a_finding_for_each_claim(request: pytest.FixtureRequest, output: str) -> None:
    folder = request.getfixturevalue("pipeline" if output == "out" else "folder")
    statement = stated(folder, output)
    found = look(folder, output)
    assert {row.status for rows in found.values() for row in rows} == {Status.PASS}
    assert [row.subject for row in found["subject"]] == [each["name"] for each in statement["subject"]]
    dependencies = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [row.subject for row in found["input"]] == [each["name"] for each in dependencies]
    assert found.keys() == {"subject", "input", "recipe", "builder"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_flipped_byte_of_the_output_is_found(folder: Path) -> None:
    stated(folder)
    flip(folder / "out.safetensors")
    assert failed(look(folder)) == [("subject", "out.safetensors")]


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "model_index.json"])
def test_a_changed_file_of_a_folder_is_found(pipeline: Path, name: str) -> None:
    stated(pipeline, "out")
    path = pipeline / "out" / name
    path.write_text(path.read_text() + "\n") if name.endswith("json") else flip(path)
    assert failed(look(pipeline, "out")) == [("subject", f"out/{name}")]


def test_exchanged_files_of_a_folder_are_found_though_their_digests_are_known(pipeline: Path) -> None:
    stated(pipeline, "out")
    one, other = (pipeline / "out" / name for name in ("unet/config.json", "vae/config.json"))
    texts = one.read_text(), other.read_text()
    other.write_text(texts[0]), one.write_text(texts[1])
    assert failed(look(pipeline, "out")) == [("subject", "out/unet/config.json"), ("subject", "out/vae/config.json")]


def test_an_added_file_is_found_and_one_that_programs_load_fails(pipeline: Path) -> None:
    stated(pipeline, "out")
    (pipeline / "out" / "README.md").write_text("a card is no part of the model")
    (pipeline / "out" / "notes.txt").write_text("hello")
    (row,) = [row for row in look(pipeline, "out")["subject"] if row.status is not Status.PASS]
    assert (row.status, row.measured) == (Status.WARN, "1 more")
    assert "'notes.txt'" in row.note
    (pipeline / "out" / "unet" / "diffusion_pytorch_model.fp16.bin").write_bytes(b"")
    (pipeline / "out" / "pipeline.py").write_text("")
    (row,) = [row for row in look(pipeline, "out")["subject"] if row.status is Status.FAIL]
    assert row.measured == "2 more"


def test_a_missing_file_is_found(pipeline: Path) -> None:
    stated(pipeline, "out")
    (pipeline / "out" / "unet" / "note.txt").unlink()
    assert failed(look(pipeline, "out")) == [("subject", "out/unet/note.txt")]


def test_a_swapped_lora_is_found(folder: Path) -> None:
    stated(folder)
    b.sd1_lora(folder / "lora.safetensors", seed=9)
    assert failed(look(folder)) == [("input", "lora.safetensors")]


def test_a_base_of_the_same_layout_and_other_weights_is_found(folder: Path) -> None:
    stated(folder)
    b.save(folder / "base.safetensors", b.sd1(seed=5))
    assert failed(look(folder)) == [("input", "base.safetensors")]


def test_another_recipe_is_found(folder: Path) -> None:
    stated(folder)
    b.recipe(folder, loras=[{"path": "lora.safetensors", "strength": 0.5}])
    found = look(folder)
    assert failed(found) == [("recipe", "out.intoto.json")]
    assert "recipe.loras[0].strength is 1.0 there and 0.5 here" in found["recipe"][0].note


def test_an_output_with_another_name_is_recognised_by_its_digest(folder: Path) -> None:
    stated(folder)
    for name in ("out.safetensors", "out.intoto.json"):
        (folder / name).rename(folder / name.replace("out", "other"))
    found = look(folder, "other.safetensors")
    assert not failed(found)
    assert found["subject"][0].note.endswith("under the name 'out.safetensors'")


def test_inputs_with_other_paths_are_recognised_by_their_digests(folder: Path) -> None:
    stated(folder)
    (folder / "lora.safetensors").rename(folder / "renamed.safetensors")
    (folder / "models").mkdir()
    (folder / "base.safetensors").rename(folder / "models" / "sd.safetensors")
    b.recipe(folder, base="models/sd.safetensors", loras=["renamed.safetensors"])
    assert failed(look(folder)) == []
    b.sd1_lora(folder / "renamed.safetensors", seed=9)
    assert {("input", "renamed.safetensors"), ("input", "lora.safetensors")} <= {*failed(look(folder))}


def test_a_folder_with_another_name_is_compared_file_by_file(pipeline: Path) -> None:
    stated(pipeline, "out")
    (pipeline / "out").rename(pipeline / "other")
    (pipeline / "out.intoto.json").rename(pipeline / "other.intoto.json")
    assert not failed(look(pipeline, "other"))


def test_inputs_that_lie_elsewhere_under_other_names_are_recognised(folder: Path) -> None:
    stated(folder)
    (folder / "models").mkdir()
    for name, other in (("base", "models/mine"), ("lora", "models/style")):
        (folder / f"{name}.safetensors").rename(folder / f"{other}.safetensors")
    arguments = ("verify", folder / "out.safetensors", "--inputs", folder / "models", "--stage", "provenance")
    result = run(*arguments)
    assert result.return_value == 0, result.stdout
    assert "under the name 'base.safetensors'" in result.stdout
    b.sd1_lora(folder / "models" / "style.safetensors", seed=9)
    assert run(*arguments).return_value != 0


ZEROS = "0" * 64
LIES: dict[str, tuple[Callable[[Statement], object], tuple[str, str]]] = {
    "a surplus subject": (
        lambda s: s["subject"].append({"name": "more", "digest": {"sha256": ZEROS}}),
        ("subject", "more"),
    ),
    "a subject twice": (lambda s: s["subject"].append(s["subject"][0]), ("subject", "out.safetensors")),
    "no subject": (lambda s: s.pop("subject"), ("subject", "out.safetensors")),
    "a subject of another form": (lambda s: s["subject"].__setitem__(0, 7), ("subject", "out.safetensors")),
    "an input with another digest": (
        lambda s: dependencies(s)[0]["digest"].update(sha256=ZEROS),
        ("input", "base.safetensors"),
    ),
    "an input less": (lambda s: dependencies(s).pop(), ("input", "lora.safetensors")),
    "an input more": (
        lambda s: dependencies(s).append({**dependencies(s)[1], "name": "hidden.safetensors"}),
        ("input", "hidden.safetensors"),
    ),
    "an input in another role": (
        lambda s: dependencies(s)[1].update(annotations={"role": "vae"}),
        ("input", "lora.safetensors"),
    ),
    "a source that the recipe does not name": (
        lambda s: dependencies(s)[0].update(uri="https://example.org/base.safetensors"),
        ("input", "base.safetensors"),
    ),
    "inputs of another form": (
        lambda s: s["predicate"]["buildDefinition"].update(resolvedDependencies="all"),
        ("input", "base.safetensors"),
    ),
    "another strength": (
        lambda s: parameters(s)["recipe"]["loras"][0].update(strength=2.0),
        ("recipe", "out.intoto.json"),
    ),
    "an unknown parameter": (lambda s: parameters(s).update(also="this"), ("recipe", "out.intoto.json")),
    "another lorabake": (
        lambda s: s["predicate"]["runDetails"]["builder"]["version"].update(lorabake="9"),
        ("builder", "out.intoto.json"),
    ),
    "no builder": (lambda s: s["predicate"].pop("runDetails"), ("builder", "out.intoto.json")),
}


def dependencies(statement: Statement) -> list[Any]:
    return statement["predicate"]["buildDefinition"]["resolvedDependencies"]  # type: ignore[no-any-return]


def parameters(statement: Statement) -> Statement:
    return statement["predicate"]["buildDefinition"]["externalParameters"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("lie", LIES)
def test_each_claim_that_is_not_so_fails(folder: Path, lie: str) -> None:
    stated(folder)
    change, found = LIES[lie]
    rewritten(folder / "out.intoto.json", change)
    assert found in failed(look(folder))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 200 + "]" * 200, "\x00"])
def test_a_statement_that_cannot_be_read_fails(folder: Path, text: str) -> None:
    (folder / "out.intoto.json").write_text(text)
    assert failed(look(folder)) == [("form", "out.intoto.json")]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(predicateType="https://spdx.dev/Document"),
        lambda s: s["predicate"]["buildDefinition"].update(buildType="https://example.org/make"),
        lambda s: s.update(predicate=None),
    ],
)
def test_a_statement_about_something_else_is_left_alone(folder: Path, change: Callable[[Statement], object]) -> None:
    stated(folder)
    rewritten(folder / "out.intoto.json", change)
    found = look(folder)
    assert [(row.status, row.check) for rows in found.values() for row in rows] == [(Status.SKIP, "provenance.form")]


def test_learned_embeddings_are_stated_and_verified(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.save(
        tmp_path / "lora.safetensors",
        {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": torch.ones(2, b.TEXT),
         "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": torch.ones(b.TEXT, 2),
         "bundle_emb.cat.string_to_param.*": torch.ones(1, b.TEXT)},
    )  # fmt: skip
    b.run(b.recipe(tmp_path))
    assert [each["name"] for each in stated(tmp_path)["subject"]] == ["out.safetensors", "out.cat.safetensors"]
    flip(tmp_path / "out.cat.safetensors")
    assert failed(look(tmp_path)) == [("subject", "out.cat.safetensors")]
