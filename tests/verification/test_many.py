"""Several outputs: one report, one look at each, the base's pictures once, and no output that stops another."""

from __future__ import annotations

import gc
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import lorabake
from lorabake import RunOptions, Verdict, VerifiedOutput, VerifyOptions, bake_all, load_recipes, verifying
from lorabake.batch import BatchOptions
from lorabake.cli import main
from lorabake.planning import Plan
from lorabake.recipe import Recipe
from lorabake.verification.samples.album import Album, Drawn, facts_of_base
from lorabake.verifying import verify_all
from tests import builders as b
from tests.documents import check

SWEEP = """version: 1
matrix:
  strength: [0.5, 1]
  set:
    one: [{path: lora.safetensors, strength: "${strength}"}]
    two: [lora.safetensors, {path: other.safetensors, strength: "${strength}"}]
base: base.safetensors
loras: ${set}
output: {path: "out/${set}-${strength}.safetensors"}
"""
FAST = VerifyOptions(stages=("structure", "weights"))


def baked(recipes: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
    run = RunOptions(device="cpu", workers=1, fsync=False, overwrite=True)
    outcomes = bake_all(recipes, BatchOptions(run=run))
    assert {outcome.status for outcome in outcomes} <= {"baked", "current"}
    return recipes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bake a sweep of four outputs."""
    folder = tmp_path_factory.mktemp("sweep")
    b.save(folder / "base.safetensors", {"fc.weight": b.Values(1)(24, 16), "rest.weight": b.Values(2)(8, 8)})
    b.kohya(folder / "lora.safetensors", {"lora_unet_fc": b.lora((24, 16))})
    b.kohya(folder / "other.safetensors", {"lora_unet_fc": b.lora((24, 16), seed=3)})
    (folder / "sweep.yaml").write_text(SWEEP)
    baked(load_recipes(folder / "sweep.yaml"))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a copy of it."""
    for path in made.rglob("*"):
        if path.is_file():
            place = tmp_path / path.relative_to(made)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spoil(path: Path) -> None:
    """Change the last byte of the data."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x55
    path.write_bytes(data)


def run(*words: str) -> int:
    """Run the command as a process does; return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main([*words])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def looked_at(*words: str) -> int:
    return run("verify", *words, "--stage", "structure", "--stage", "weights")


# -- verdicts -----------------------------------------------------------------------------------------------


def test_every_output_of_a_matrix_is_verified(folder: Path) -> None:
    batch = verify_all(load_recipes("sweep.yaml"), FAST)
    assert [output.name for output in batch.outputs] == ["one-0.5", "two-0.5", "one-1", "two-1"]
    assert {output.verdict for output in batch.outputs} == {Verdict.VERIFIED}
    assert (batch.verdict, batch.exit_code, batch.is_true) == (Verdict.VERIFIED, 0, True)
    assert batch.counts == {"verified": 4}


def test_one_alone_finds_what_one_of_several_finds(folder: Path) -> None:
    recipes = load_recipes("sweep.yaml")
    batch = verify_all(recipes, FAST)
    for recipe, output in zip(recipes, batch.outputs, strict=True):
        assert lorabake.verify(recipe, options=FAST).findings == output.findings


def test_an_output_that_is_missing_or_differs_stops_none_of_the_others(folder: Path) -> None:
    (folder / "out" / "one-0.5.safetensors").unlink()
    spoil(folder / "out" / "two-0.5.safetensors")
    seen: list[str] = []
    batch = verify_all(load_recipes("sweep.yaml"), FAST, ended=lambda output: seen.append(output.word))
    assert seen == ["failed", "mismatch", "verified", "verified"]
    assert [output.exit_code for output in batch.outputs] == [2, 1, 0, 0]
    assert (batch.verdict, batch.exit_code) == (Verdict.MISMATCH, 1)
    assert "no such file" in str(batch.outputs[0].error)
    assert repr(batch) == "<VerifiedBatch of 4 outputs: 2 verified, 1 failed, 1 mismatch>"


def test_without_a_difference_the_worst_exit_code_counts(folder: Path) -> None:
    (folder / "out" / "one-0.5.safetensors").unlink()
    batch = verify_all(load_recipes("sweep.yaml"), FAST)
    assert (batch.verdict, batch.exit_code, batch.is_true) == (Verdict.NOT_FINISHED, 2, False)
    assert verify_all([], FAST).exit_code == 2


def test_a_lora_that_is_gone_fails_its_outputs_alone(folder: Path) -> None:
    (folder / "other.safetensors").unlink()
    batch = verify_all(load_recipes("sweep.yaml"), FAST)
    assert [output.word for output in batch.outputs] == ["verified", "failed", "verified", "failed"]


def test_a_stop_leaves_a_report_on_what_was_looked_at(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    look = verifying.verify_one

    def looking(*given: Any) -> Any:
        seen.append(given)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return look(*given)

    monkeypatch.setattr(verifying, "verify_one", looking)
    assert looked_at("sweep.yaml", "--report", "report") == 130
    assert "2 of 4 outputs were looked at; report: report/index.html" in capsys.readouterr().err
    told = json.loads((folder / "report" / "report.json").read_text())
    assert [output["verdict"] for output in told["outputs"]] == ["verified", "verified", "failed", "failed"]
    assert "it was not looked at, because the command was stopped" in (folder / "report" / "index.html").read_text()


def test_a_page_that_is_no_report_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "site").mkdir()
    (folder / "site" / "index.html").write_text("<p>mine</p>")
    for words in (["verify", "sweep.yaml", "--report", "site"], ["batch", "sweep.yaml", "--verify", "site"]):
        assert run(*words) == 2
        assert "site/index.html: is there, and is no report of lorabake's" in capsys.readouterr().err
    assert (folder / "site" / "index.html").read_text() == "<p>mine</p>"
    for _ in range(2):
        assert looked_at("sweep.yaml", "--only", "one-1", "--report", "own") == 0
        assert looked_at("sweep.yaml", "--report", "own") == 0


def test_plans_and_errors_are_let_go_with_each_output(folder: Path) -> None:
    """Else memory would grow with the number of outputs."""
    (folder / "out" / "two-1.safetensors").unlink()
    held: list[int] = []

    def ended(output: VerifiedOutput) -> None:
        gc.collect()
        held.append(sum(type(each) is Plan for each in gc.get_objects()))

    batch = verify_all(load_recipes("sweep.yaml"), FAST, report=folder / "report", ended=ended)
    assert len(batch.outputs) == 4
    assert max(held) == held[0]


# -- the command --------------------------------------------------------------------------------------------


def test_the_command_prints_a_line_for_each_output_and_a_summary(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder / "out" / "two-0.5.safetensors")
    assert looked_at("sweep.yaml") == 1
    told = capsys.readouterr()
    assert re.findall(r"^(\w+) +([\w.-]+) \(", told.out, re.MULTILINE) == [
        ("Verified", "one-0.5"),
        ("Mismatch", "two-0.5"),
        ("Verified", "one-1"),
        ("Verified", "two-1"),
    ]
    assert re.search(r"^  fail values +rest\.weight", told.out, re.MULTILINE)
    last = told.out.splitlines()[-1]
    assert re.fullmatch(
        r"Mismatch: 3 of 4 outputs are what the recipe says \(3 verified, 1 mismatch; [\d.]+ s\)", last
    )


def test_quiet_prints_what_is_wrong_and_the_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out" / "one-0.5.safetensors").unlink()
    assert looked_at("sweep.yaml", "--quiet", "--report", "report") == 2
    told = capsys.readouterr()
    assert told.out.count("\n") == 1
    assert told.out.startswith("Not finished: 3 of 4 outputs are what the recipe says (3 verified, 1 failed; ")
    assert re.match(r"error: one-0\.5: \S+one-0\.5\.safetensors: no such file\n  Bake it first", told.err)


def test_files_folders_and_only_choose_what_is_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipes").mkdir()
    for name in ("a", "b"):
        text = SWEEP.replace("base: ", "base: ../").replace("lora.saf", "../lora.saf").replace("other.", "../other.")
        text = text.replace("[0.5, 1]", "[0.5]").replace('"out/', '"../out/').replace("sets", name)
        (folder / "recipes" / f"{name}.yaml").write_text(text)
    (folder / "recipes" / "bad.yaml").write_text("version: 1\n")
    assert looked_at("recipes") == 2
    told = capsys.readouterr()
    assert "(4 verified, 1 failed; " in told.out
    assert re.search(r"error: recipes/bad\.yaml:1:1: ", told.err)
    assert looked_at("recipes/a.yaml", "sweep.yaml", "--only", "two-*") == 0
    assert re.findall(r"^Verified +([\w.-]+) \(", capsys.readouterr().out, re.MULTILINE) == [
        "two-0.5",
        "two-0.5",
        "two-1",
    ]
    assert looked_at("sweep.yaml", "--only", "three") == 2
    assert "no output has such a name" in capsys.readouterr().err


def test_one_output_of_a_matrix_is_told_of_as_any_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert looked_at("sweep.yaml", "--only", "two-1", "--json") == 0
    assert check(capsys.readouterr().out)["lorabake"] == "verify"


def test_baked_files_are_verified_by_the_recipes_in_their_headers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert looked_at("out/one-1.safetensors", "out/two-1.safetensors", "--inputs", ".") == 0
    assert "Verified: all 2 outputs are what their recipes say (2 verified; " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sweep.yaml", "out/one-1.safetensors"), "write lorabake verify sweep.yaml --baked out/one-1.safetensors"),
        (("sweep.yaml", "sweep.yaml", "-o", "x.safetensors"), "x.safetensors: is one checkpoint"),
        (("sweep.yaml", "--inputs", "."), "--inputs is for a FILE without its recipe"),
        (("sweep.yaml", "sweep.yaml", "--base", "base.safetensors"), "sweep.yaml: stands without an option"),
        (("sweep.yaml", "-o", "x.safetensors"), "stands for 4 outputs"),
        (("sweep.yaml", "--report", "out/one-1.safetensors"), "out/one-1.safetensors"),
        (("sweep.yaml", "--junit", "nowhere/junit.xml"), "nowhere/junit.xml: the report cannot be written"),
    ],
)
def test_options_that_several_outputs_cannot_have_are_refused(
    folder: Path, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", *words) == 2
    assert told in capsys.readouterr().err


def test_github_is_told_on_the_line_of_the_recipe(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(folder))
    spoil(folder / "out" / "two-0.5.safetensors")
    (folder / "out" / "one-1.safetensors").unlink()
    assert looked_at("sweep.yaml", "--format", "github") == 1
    told = capsys.readouterr()
    lines = [line for line in (told.out + told.err).splitlines() if line.startswith("::error")]
    assert any(line.startswith("::error file=sweep.yaml,") and "two-0.5: fail values" in line for line in lines)
    assert any(line.startswith("::error file=sweep.yaml,") and "one-1.safetensors: no such" in line for line in lines)


# -- the report ---------------------------------------------------------------------------------------------


def test_the_report_has_every_form_and_a_page_for_each_output(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out" / "one-0.5.safetensors").unlink()
    spoil(folder / "out" / "two-0.5.safetensors")
    assert looked_at("sweep.yaml", "--report", "report", "--junit", "all.xml") == 1
    report = folder / "report"
    assert sorted(path.name for path in report.iterdir()) == [
        "index.html",
        "junit.xml",
        "outputs",
        "report.json",
        "summary.md",
    ]
    told = check((report / "report.json").read_text())
    assert (told["lorabake"], told["verdict"], told["exit_code"]) == ("verify_batch", "mismatch", 1)
    assert [output["verdict"] for output in told["outputs"]] == ["failed", "mismatch", "verified", "verified"]
    assert told["outputs"][0]["error"][0] == "out/one-0.5.safetensors: no such file"
    assert told["outputs"][1]["choices"] == [{"axis": "strength", "value": "0.5"}, {"axis": "set", "value": "two"}]
    pages = [output["page"] for output in told["outputs"]]
    assert pages == [None, *(f"outputs/{name}/index.html" for name in ("two-0.5", "one-1", "two-1"))]
    page = (report / "index.html").read_text()
    assert {*re.findall(r'href="([^"#:]+)"', page)} == {*pages[1:]}
    for place in pages[1:]:
        (up,) = re.findall(r'<a href="([^"#]+)">all outputs', (report / place).read_text())
        assert ((report / place).parent / up).resolve() == report / "index.html"
    for name in ("index.html", "report.json", "junit.xml", "summary.md"):
        assert str(folder) not in (report / name).read_text()
    suites = [*ElementTree.parse(report / "junit.xml").getroot()]
    assert [suite.get("name") for suite in suites] == ["one-0.5", "two-0.5", "one-1", "two-1"]
    assert [(suite.get("errors"), suite.get("failures") != "0") for suite in suites] == [
        ("1", False),
        ("0", True),
        ("0", False),
        ("0", False),
    ]
    cases = Counter(case.tag for suite in suites for each in suite for case in each)
    assert cases["error"] == 1
    assert cases["failure"] == sum(int(suite.get("failures") or 0) for suite in suites)
    assert ElementTree.parse(folder / "all.xml").getroot().get("tests") == str(sum(map(len, suites)))


def test_json_of_several_is_one_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert looked_at("sweep.yaml", "--json") == 0
    told = check(capsys.readouterr().out)
    assert told["counts"] == [{"verdict": "verified", "count": 4}]
    assert {output["page"] for output in told["outputs"]} == {None}


def test_outputs_of_one_name_have_pages_of_their_own(folder: Path) -> None:
    recipes = load_recipes("sweep.yaml")[:1]
    batch = verify_all([*recipes, *recipes], VerifyOptions(stages=("structure",)), report="report")
    pages = [output.page for output in batch.outputs]
    assert pages == ["outputs/one-0.5/index.html", "outputs/one-0.5-2/index.html"]
    assert all((folder / "report" / str(page)).is_file() for page in pages)


def test_junit_of_one_output_is_that_of_its_report(folder: Path) -> None:
    assert looked_at("sweep.yaml", "--only", "two-1", "--junit", "one.xml", "--report", "report") == 0
    own, told = (ElementTree.parse(folder / name).getroot() for name in ("one.xml", "report/junit.xml"))
    assert [[case.get("name") for case in suite] for suite in own] == [
        [case.get("name") for case in suite] for suite in told
    ]


# -- batch --verify -----------------------------------------------------------------------------------------


def test_batch_verifies_what_it_has_baked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (folder / "out").iterdir():
        path.unlink()
    (folder / "gone.yaml").write_text(
        "version: 1\nbase: base.safetensors\nloras: [no.safetensors]\noutput: {path: out/gone.safetensors}\n"
    )
    words = ("--verify", "report", "--no-fsync", "--device", "cpu")
    assert run("batch", "sweep.yaml", *words) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-1].startswith("Verified: all 4 outputs are what their recipes say (4 verified; ")
    assert "lorabake batch sweep.yaml --verify report" in (folder / "report" / "summary.md").read_text()
    assert run("batch", "sweep.yaml", "gone.yaml", "--json", *words) == 1
    told = capsys.readouterr()
    outputs = check(told.out)["outputs"]
    assert [(output["status"], output["verdict"]) for output in outputs] == [("current", "verified")] * 4 + [
        ("failed", "failed")
    ]
    page = (folder / "report" / "index.html").read_text()
    assert (
        "<span>no.safetensors: no such file</span><br><span>The recipe names it at gone.yaml:3:9.</span><br>" in page
    )


def test_a_report_shows_a_missing_file_as_the_recipe_names_it(folder: Path) -> None:
    (folder / "recipes").mkdir()
    (folder / "recipes" / "gone.yaml").write_text(
        "version: 1\nbase: ../base.safetensors\nloras: [demo/no.safetensors]\noutput: {path: gone.safetensors}\n"
    )
    assert run("batch", str(folder / "recipes"), "--verify", "report", "--no-fsync", "--device", "cpu") != 0
    page = (folder / "report" / "index.html").read_text()
    assert (
        "<span>demo/no.safetensors: no such file</span><br><span>The recipe names it at gone.yaml:3:9.</span>" in page
    )
    assert str(folder) not in page


def test_a_shard_is_verified_when_all_are_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("batch", "sweep.yaml", "--shard", "1/2", "--verify", "report") == 2
    assert "the outputs are complete when all shards are over" in capsys.readouterr().err


# -- what bases made, kept ------------------------------------------------------------------------------------


def test_an_album_tells_bases_prompts_and_settings_apart(made: Path, tmp_path: Path) -> None:
    plan = lorabake.plan(load_recipes(made / "sweep.yaml")[0])
    album = Album(tmp_path)
    facts = facts_of_base(plan)
    drawn = Drawn(np.ones((4, 2, 2), np.float32), np.full((16, 16, 3), 7, np.uint8))
    album.keep_picture((facts, "a cat", 20), drawn)
    kept = album.picture((facts_of_base(plan), "a cat", 20))
    assert kept is not None
    assert (kept.latents == drawn.latents).all()
    assert (kept.picture == drawn.picture).all()
    assert album.picture((facts, "a dog", 20)) is None
    assert album.picture((facts, "a cat", 21)) is None
    assert album.tokens((facts, "a cat", 20)) is None
    other = tmp_path / "other"
    other.mkdir()
    for path in made.glob("*.*"):
        (other / path.name).write_bytes(path.read_bytes())
    assert facts_of_base(lorabake.plan(load_recipes(other / "sweep.yaml")[0])) != facts
