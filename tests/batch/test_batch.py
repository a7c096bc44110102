"""Batches: the bytes of single bakes, one read of the base, and no recipe that another one's failure stops."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lorabake.baking import bake, plan
from lorabake.batch import BatchOptions, bake_all
from lorabake.batch.groups import Limits, memory_of, passes
from lorabake.cli import main
from lorabake.errors import FileError, MatchError, TargetError
from lorabake.matching.names import BaseNames
from lorabake.options import RunOptions
from lorabake.planning import Plan
from lorabake.planning import plan as make_plan
from lorabake.recipe import Recipe, load_recipe, load_recipes
from lorabake.sources import resolve
from lorabake.sources.evidence import inode_of
from lorabake.tensors.header import Header
from lorabake.tensors.once import once, shared
from lorabake.tensors.safetensors import read_header
from lorabake.tensors.small import content_of, noting
from lorabake.visible import size_of
from lorabake.writing.together import check_apart
from tests import builders as b
from tests.documents import validator

SWEEP = """version: 1
matrix:
  strength: [0.25, 0.5, 1]
  set:
    one: [lora.safetensors]
    two: [lora.safetensors, {path: other.safetensors, strength: "${strength}"}]
base: base.safetensors
loras: ${set}
output: {path: "out/${set}-${strength}.safetensors"}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    b.save(tmp_path / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(tmp_path / "lora.safetensors")
    b.sd1_lora(tmp_path / "other.safetensors", seed=7)
    (tmp_path / "out").mkdir()
    text = SWEEP.replace("one: [lora.safetensors]", "one: [{path: lora.safetensors, strength: '${strength}'}]")
    (tmp_path / "sweep.yaml").write_text(text)
    return tmp_path


def recipe(folder: Path, name: str, **fields: object) -> Recipe:
    """Write a recipe of this name, which bakes into an output of this name."""
    path = b.recipe(folder, **{"output": {"path": f"out/{name}.safetensors"}, **fields})
    return load_recipe(path.rename(folder / f"{name}.yaml"))


def options(workers: int = 1, **others: object) -> BatchOptions:
    return BatchOptions(run=RunOptions(device="cpu", workers=workers, fsync=False), **others)  # type: ignore[arg-type]


def run(*words: str) -> int:
    """Run the command as a process does; return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(["batch", *words, "--no-fsync", "--device", "cpu"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.mark.parametrize("workers", [1, 4])
def test_a_batch_writes_the_bytes_of_single_bakes(folder: Path, workers: int) -> None:
    recipes = load_recipes(folder / "sweep.yaml")
    outcomes = bake_all(recipes, options(workers))
    assert [outcome.status for outcome in outcomes] == ["baked"] * 6
    for each in recipes:
        alone = folder / "alone" / f"{each.name}.safetensors"
        alone.parent.mkdir(exist_ok=True)
        bake(each, RunOptions(device="cpu", workers=1, fsync=False), output=alone)
        together = each.locate(each.output.path)
        assert b.tensor_bytes(together) == b.tensor_bytes(alone), each.name
        assert together.read_bytes() == alone.read_bytes(), each.name


def test_outputs_on_one_base_are_baked_in_one_pass(folder: Path) -> None:
    shutil.copy(folder / "base.safetensors", folder / "second.safetensors")
    (folder / "link.safetensors").symlink_to("base.safetensors")
    made = [
        recipe(folder, "a"),
        recipe(folder, "b", base="second.safetensors"),
        recipe(folder, "c", base="link.safetensors"),
    ]
    begun: list[list[str]] = []

    def note(planned: Sequence[tuple[Plan, ...]], size: int) -> None:
        begun.extend([each.path.stem for each in together] for together in planned)
        assert size == sum(each.copied_bytes + each.baked_bytes for together in planned for each in together)

    bake_all(made, options(begun=note))
    assert begun == [["a", "c"], ["b"]]


def test_a_pass_is_bounded_by_memory(folder: Path) -> None:
    plans = [plan(each) for each in load_recipes(folder / "sweep.yaml")]
    assert [len(each) for each in passes(plans, Limits())] == [6]
    two = memory_of(plans[:2], 2)
    assert memory_of(plans[:1], 2) < two < memory_of(plans, 2)
    assert [len(each) for each in passes(plans, Limits(memory=two))] == [2, 2, 2]
    assert [len(each) for each in passes(plans, Limits(memory=1))] == [1] * 6


def test_a_pass_is_bounded_by_the_disk_and_open_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [plan(each) for each in load_recipes(folder / "sweep.yaml")]
    free = 2 * max(each.size for each in plans)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
    assert [len(each) for each in passes(plans, Limits())] == [2, 2, 2]
    monkeypatch.undo()
    monkeypatch.setattr("lorabake.batch.groups.open_files_allowed", lambda: 70)
    assert {len(each) for each in passes(plans, Limits())} == {1}


def test_a_recipe_that_fails_stops_none_of_the_others(folder: Path) -> None:
    name = b.unet_lora(b.Q)
    b.kohya(folder / "nan.safetensors", {name: {**b.lora((b.W, b.W)), "up": b.lora((b.W, b.W))["up"] * float("nan")}})
    made = [
        recipe(folder, "first"),
        recipe(folder, "gone", loras=["gone.safetensors"]),
        recipe(folder, "nan", loras=["nan.safetensors"]),
        recipe(folder, "last"),
    ]
    outcomes = bake_all(made, options())
    assert [outcome.status for outcome in outcomes] == ["baked", "failed", "failed", "baked"]
    assert "no such file" in str(outcomes[1].error)
    for error in (outcomes[1].error, outcomes[2].error):
        assert error is not None
        assert error.__traceback__ is error.__cause__ is error.__context__ is None, "nothing holds what was opened"
    assert not (folder / "out" / "nan.safetensors").exists()
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["first.safetensors", "last.safetensors"]


def test_fail_fast_begins_nothing_after_a_failure(folder: Path) -> None:
    made = [recipe(folder, "gone", loras=["gone.safetensors"]), recipe(folder, "last")]
    assert [outcome.status for outcome in bake_all(made, options(fail_fast=True))] == ["failed", "left"]
    assert not (folder / "out" / "last.safetensors").exists()


def test_what_is_there_already_is_not_baked_again(folder: Path) -> None:
    recipes = load_recipes(folder / "sweep.yaml")
    batch_of = [*recipes[:3]]
    assert {outcome.status for outcome in bake_all(batch_of, options())} == {"baked"}
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    again = bake_all(recipes, options())
    assert [outcome.status for outcome in again] == ["current"] * 3 + ["baked"] * 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (folder / "lora.safetensors").unlink()
    b.sd1_lora(folder / "lora.safetensors", seed=5)
    changed = bake_all(recipes, BatchOptions(run=RunOptions(device="cpu", fsync=False, overwrite=True)))
    assert {outcome.status for outcome in changed} == {"baked"}


def test_outputs_that_meet_stop_all_before_anything_is_written(folder: Path) -> None:
    one, two = recipe(folder, "one"), recipe(folder, "two", output={"path": "out/one.safetensors"})
    out = folder / "out" / "one.safetensors"
    with pytest.raises(TargetError) as error:
        bake_all([one, two], options())
    both = f"two recipes would write it: {folder}/one.yaml, and {folder}/two.yaml"
    assert str(error.value) == f"{out}: {both}\nGive each an output of its own."
    with pytest.raises(TargetError, match=f"one.safetensors: {folder}/one.yaml would write it twice"):
        bake_all([one, one], options())
    bake(one, options().run)
    with pytest.raises(TargetError, match="is an input of this recipe"):
        bake_all([one, recipe(folder, "three", base="out/one.safetensors")], options())


def test_an_interrupted_batch_keeps_what_is_finished(folder: Path) -> None:
    shutil.copy(folder / "base.safetensors", folder / "second.safetensors")
    made = [recipe(folder, "a"), recipe(folder, "b", base="second.safetensors")]

    def stop(outcome: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bake_all(made, options(ended=stop))
    assert [path.name for path in (folder / "out").iterdir()] == ["a.safetensors"]


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_tells_what_became_of_each(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    recipe(folder, "gone", loras=["gone.safetensors"])
    (folder / "broken.yaml").write_text("version: 2\n")
    assert run("sweep.yaml", "gone.yaml", "broken.yaml", "--only", "one-*", "--only", "gone", "--junit", "j.xml") == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [
        ["baked", f"out/one-{strength}.safetensors:"] for strength in ("0.25", "0.5", "1")
    ]
    assert lines[-1].startswith("5 outputs in ")
    assert lines[-1].endswith(" s: 3 baked, 2 failed")
    assert "3 outputs on 1 base, in 1 pass" in told.err
    assert "gone: " in told.err
    root = ElementTree.fromstring((folder / "j.xml").read_text())
    assert (root.get("tests"), root.get("failures")) == ("5", "2")


def test_a_shard_and_what_is_left_say_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    recipe(folder, "one")
    recipe(folder, "none", loras=["missing.safetensors"])
    assert run("none.yaml", "--shard", "1/2") == 2
    assert "shard 1/2: nothing to do, because every recipe failed" in capsys.readouterr().err
    ends = [run("one.yaml", "none.yaml", "--shard", f"{number}/9") for number in range(1, 10)]
    assert {*ends} == {1, 2}
    assert "nothing to do, because there is less work than there are shards" in capsys.readouterr().err
    run("one.yaml", "--shard", "1/1")
    assert "current   out/one.safetensors" in capsys.readouterr().out
    run("one.yaml", "none.yaml", "--fail-fast", "--force")
    assert "left      out/one.safetensors: not begun, because another one failed" in capsys.readouterr().out


def test_the_exit_code_tells_whether_anything_was_begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    recipe(folder, "gone", loras=["gone.safetensors"])
    recipe(folder, "good")
    assert run("gone.yaml", "nowhere.yaml") == 2
    assert run("gone.yaml", "--shard", "1/1") == 2
    assert run("gone.yaml", "good.yaml", "--shard", "1/1") == 1
    assert run("gone.yaml", "good.yaml") == 1, "what is there already was begun, too"


def test_a_disk_that_is_too_small_is_told_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert run("sweep.yaml", "--only", "one-1") == 0
    left = sum(plan(each).size for each in load_recipes(folder / "sweep.yaml") if each.name != "one-1")
    monkeypatch.setattr("lorabake.cli.batch.bake_all", only_begins)
    for free, is_told in ((left, False), (left - 1, True)):
        usage = shutil.disk_usage(folder)._replace(free=free)
        monkeypatch.setattr("lorabake.batch.groups.shutil.disk_usage", lambda _, usage=usage: usage)
        run("sweep.yaml")
        told = f"the outputs that are not there yet need {size_of(left)}, and {size_of(free)} are free"
        assert (told in capsys.readouterr().err) is is_told


def only_begins(recipes: Sequence[Recipe], options: BatchOptions) -> tuple[()]:
    plans = tuple(plan(each) for each in recipes)
    options.begun([plans], sum(each.size for each in plans))
    return ()


def test_too_little_memory_for_one_output_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert run("sweep.yaml", "--memory", "1MB", "--only", "one-1") == 0
    assert "a pass of one output takes about " in (told := capsys.readouterr().err)
    assert "of memory, more than --memory 1.0 MB" in told
    assert run("sweep.yaml", "--memory", "2GB", "--only", "one-1") == 0
    assert "of memory" not in capsys.readouterr().err


def test_the_command_prints_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert run("sweep.yaml", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passes"] == 1
    assert [output["name"] for output in told["outputs"]] == [
        "one-0.25", "two-0.25", "one-0.5", "two-0.5", "one-1", "two-1",
    ]  # fmt: skip
    assert told["outputs"][3]["choices"] == [{"axis": "strength", "value": "0.5"}, {"axis": "set", "value": "two"}]
    assert all(output["status"] == "baked" and len(output["data_sha256"]) == 1 for output in told["outputs"])


def test_a_value_of_every_recipe_can_be_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert run("sweep.yaml", "--only", "one-1", "--set", "output.dtype=bfloat16") == 0
    header = read_header(folder / "out" / "one-1.safetensors")
    assert "BF16" in {info.dtype for info in header.tensors.values()}
    assert run("sweep.yaml", "--set", "output.dtyp=bfloat16") == 2


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """Plan the sweep by the command; return what it printed."""
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "sweep.yaml", *words])
    told = capsys.readouterr()
    assert stopped.value.code == (2 if told.err else 0)
    return told.out, told.err


def test_plan_shows_a_table_of_the_outputs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    lines = planned(capsys)[0].splitlines()
    assert [line.split()[0] for line in lines[1:7]] == [
        f"out/{name}-{strength}.safetensors" for strength in ("0.25", "0.5", "1") for name in ("one", "two")
    ]
    assert lines[2].endswith("lora.safetensors at 1, other.safetensors at 0.25")
    assert lines[7].startswith("shared    the base by 6 outputs; ")
    assert "other.safetensors by 3" in lines[7]
    loras = sum((folder / name).stat().st_size for name in ("lora.safetensors", "other.safetensors"))
    assert lines[8].startswith("read      ")
    assert lines[8].endswith(f"of bases and {size_of(loras)} of LoRAs, in 1 pass")
    total = sum(plan(each).size for each in load_recipes(folder / "sweep.yaml"))
    assert lines[9].startswith(f"write     {size_of(total)} in 6 outputs; ")


def test_plan_counts_only_what_is_not_there_yet(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert run("sweep.yaml", "--only", "one-*", "--quiet") == 0
    (folder / "out" / "one-1.safetensors").write_bytes(b"another file")
    told = json.loads(planned(capsys, "--json")[0])
    assert [output["name"] for output in told["outputs"] if output["status"] == "current"] == ["one-0.25", "one-0.5"]
    due = [output for output in told["outputs"] if output["status"] == "due"]
    assert told["written_bytes"] == sum(output["plan"]["output"]["bytes"] for output in due)
    assert {"path": "other.safetensors", "outputs": 3} in told["shared"]
    validator("plan_batch").validate(told)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 0, told["written_bytes"] - 7))
    lines = planned(capsys)[0].splitlines()
    assert [line.split()[1] for line in lines[1:7]] == ["current", "to", "current", "to", "to", "to"]
    assert "current   2 outputs are there already, and not baked again" in lines
    assert lines[-1].startswith("warning   the disk has not enough room for all of them: 7 B are missing in ")
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run("sweep.yaml", "--overwrite", "--quiet") == 0
    told = json.loads(planned(capsys, "--json")[0])
    assert (told["passes"], told["base_bytes"], told["written_bytes"], told["disks"]) == (0, 0, 0, [])


@pytest.mark.parametrize("words", [["-o", "x.safetensors"], ["--estimate", "--json"], ["--save-recipe", "new.yaml"]])
def test_plan_says_which_options_are_for_one_output(
    words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    _, told = planned(capsys, *words)
    assert told.startswith(f"error: {words[0]} ")
    assert "sweep.yaml stands for 6: one-0.25, two-0.25, one-0.5, two-0.5 and 2 more\n  Choose one: --only" in told


@pytest.mark.parametrize("size", ["much", "-1", "2 GB"])
def test_a_wrong_size_is_refused(folder: Path, size: str) -> None:
    assert run(str(folder / "sweep.yaml"), "--memory", size) == 2


def test_without_ray_its_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(str(folder / "sweep.yaml"), "--engine", "ray", "--quiet") == 3
    advice = "Install what the engine takes: pip install 'lorabake[ray]'"
    assert capsys.readouterr().err == f"error: ray is not installed\n  {advice}\n"
    assert not [*(folder / "out").iterdir()]


# -- what many small recipes share ---------------------------------------------------------------------------


def swept(folder: Path, count: int) -> list[Recipe]:
    """Make recipes on one base with one LoRA, which differ in their strengths and outputs."""
    entries = [{"path": "lora.safetensors", "strength": 0.5 + number / 100} for number in range(count)]
    return [recipe(folder, f"o{number}", loras=[entry]) for number, entry in enumerate(entries)]


def test_files_are_read_once_however_many_recipes_name_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()

    def counted(path: Path) -> Header:
        read[path.name] += 1
        return read_header(path)

    monkeypatch.setattr("lorabake.tensors.checkpoint.read_header", counted)
    alone = [make_plan(resolve(each)) for each in swept(folder, 3)]
    assert read == {"base.safetensors": 3, "lora.safetensors": 3}
    with shared():
        together = [make_plan(resolve(each)) for each in swept(folder, 3)]
    assert read == {"base.safetensors": 4, "lora.safetensors": 4}
    assert [each.files for each in together] == [each.files for each in alone]
    assert [[step.patches for step in each.steps] for each in together] == [
        [step.patches for step in each.steps] for each in alone
    ]


def test_names_of_a_base_are_listed_once_also_for_loras_that_do_not_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b.kohya(folder / "foreign.safetensors", {b.unet_lora("input_blocks.9.nothing"): b.lora((b.W, b.W))})
    shutil.copy(folder / "base.safetensors", folder / "second.safetensors")
    foreign = [recipe(folder, f"f{number}", loras=["foreign.safetensors"]) for number in range(3)]
    alone = [make_plan(resolve(each)) for each in swept(folder, 2)]
    listed: list[BaseNames] = []

    def counted(*given: object) -> BaseNames:
        listed.append(BaseNames(*given))  # type: ignore[arg-type]
        return listed[-1]

    monkeypatch.setattr("lorabake.planning.BaseNames", counted)
    with shared():
        together = [make_plan(resolve(each)) for each in swept(folder, 2)]
        for each in foreign:
            with pytest.raises(MatchError, match="have no place on the base"):
                make_plan(resolve(each))
        assert len(listed) == 1
        make_plan(resolve(recipe(folder, "other", base="second.safetensors")))
    assert len(listed) == 2
    assert [each.ledgers for each in together] == [each.ledgers for each in alone]


def test_small_files_that_are_read_once_are_evidence_of_each_recipe(tmp_path: Path) -> None:
    place = tmp_path / "config.json"
    place.write_text("{}")
    make = partial(content_of, place)
    with shared():
        notes = []
        for _ in range(2):
            with noting() as read:
                assert once(make, "config", place) == b"{}"
            notes.append(read)
    assert notes[0] == notes[1] != {}
    place.write_text("[]")
    assert once(make, "config", place) == b"[]", "nothing is kept outside the block"


def test_what_fails_is_tried_again(tmp_path: Path) -> None:
    place = tmp_path / "late"
    with shared():
        with pytest.raises(FileError):
            once(partial(content_of, place), "late")
        place.write_text("there")
        assert once(partial(content_of, place), "late") == b"there"


def test_questions_to_the_disk_grow_with_the_outputs_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(count: int) -> int:
        plans = [make_plan(resolve(each)) for each in swept(folder, count)]
        calls = 0

        def counted(path: Path) -> object:
            nonlocal calls
            calls += 1
            return inode_of(path)

        with monkeypatch.context() as patch:
            patch.setattr("lorabake.planning.checks.inode_of", counted)
            check_apart(plans)
        return calls

    assert asked(8) == 4 * asked(2) > 0


def test_every_input_of_every_recipe_is_kept_from_being_written(folder: Path) -> None:
    plans = [make_plan(resolve(each)) for each in swept(folder, 3)]
    for name in ("lora.safetensors", "base.safetensors", "o1.yaml"):
        (folder / "link").unlink(missing_ok=True)
        (folder / "link").symlink_to(folder)
        with pytest.raises(TargetError, match="is an input of this recipe"):
            check_apart([*plans, replace(plans[0], path=folder / "link" / name)])
    with pytest.raises(TargetError, match="holds an input of this recipe"):
        check_apart([*plans, replace(plans[0], path=folder)])
