"""`lorabake check` without and with models, and errors as annotations that GitHub shows beside a recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lorabake.checking import Checked, recipes_in
from lorabake.checking import check as check_recipes
from lorabake.cli import commands, lorabake, main
from lorabake.cli.messages import messages
from tests import builders as b


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    b.save(folder / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(folder / "lora.safetensors")
    return folder


def run(*words: str) -> int:
    """Run the command line as a process does; return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def check(path: Path, *, with_inputs: bool = False) -> Checked:
    """Check a recipe that stands for one output."""
    ((checked,),) = check_recipes([path], with_inputs=with_inputs)
    return checked


def written(folder: Path, name: str = "recipe.yaml", **fields: object) -> Path:
    path = b.recipe(folder, **fields)
    return path.rename(folder / name)


# -- check ---------------------------------------------------------------------------------------------------


def test_a_recipe_is_planned_where_its_models_are(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(models, "good.yaml")
    assert check(path).state == "planned"
    assert run("check", str(path)) == 0
    assert capsys.readouterr().out == f"ok        {path}: planned, 1 LoRA into base.safetensors\n"


def test_a_recipe_alone_passes_unless_the_models_are_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path)
    found = check(path)
    assert (found.state, found.missing) == ("checked", ("base.safetensors", "lora.safetensors"))
    found = check(path, with_inputs=True)
    assert found.state == "failed"
    assert str(found.error).startswith("not there: base.safetensors, lora.safetensors")


def test_what_a_plan_refuses_fails(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    path = written(tmp_path, loras=[{"path": "lora.safetensors", "blocks": {"up_blocks.9.*": 1}}])
    found = check(path)
    assert found.state == "failed"
    assert "blocks pattern 'up_blocks.9.*' matches no module" in str(found.error)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"strength": {"unett": 0.5}}, "no component is called 'unett'; nearest: unet"),
        ({"components": ["clip"]}, "no component is called 'clip'; write text_encoder"),
        ({"trained_on": "fluks"}, "trained_on: no family is called 'fluks'; nearest: flux"),
        ({"blocks": {"down_block.*": 0.5}}, "fits no module of a known family\nDid you mean down_blocks.*?"),
        ({"blocks": {"input_block.1.*": 0.5}}, "Did you mean input_blocks.1.*?"),
    ],
)
def test_names_are_checked_without_models(tmp_path: Path, lora: dict[str, object], words: str) -> None:
    found = check(written(tmp_path, loras=[{"path": "lora.safetensors", **lora}]))
    assert found.state == "failed"
    assert words in str(found.error)


@pytest.mark.parametrize("glob", ["down_blocks.*", "*.attn2.*", "text_encoder.*", "layers.3.*", "my_own_module.*"])
def test_patterns_that_may_be_right_pass(tmp_path: Path, glob: str) -> None:
    path = written(tmp_path, loras=[{"path": "lora.safetensors", "blocks": {glob: 0.5}}])
    assert check(path).state == "checked"


def test_a_full_disk_is_told_where_the_models_are_asked_for(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(models, "full.yaml")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 1))
    assert check(path).state == "planned"
    found = check(path, with_inputs=True)
    assert found.error is not None
    assert found.error.exit_code == 3
    assert "its disk has 1 B free" in str(found.error)


def test_a_folder_means_its_recipes_without_locks(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "deep/c.yaml", "a.lock.yaml", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in recipes_in([tmp_path])]
    assert found == ["a.yml", "b.yaml", "deep/c.yaml"]


def test_one_failed_recipe_hides_no_other(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = models / "several"
    folder.mkdir()
    (folder / "a.yaml").write_text("version: 2\n")
    written(folder, "b.yaml", base="../base.safetensors", loras=["../lora.safetensors"])
    assert run("check", str(folder), "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert [(recipe["state"], recipe["exit_code"]) for recipe in found["recipes"]] == [("failed", 2), ("planned", 0)]
    assert run("check", str(folder)) == 2
    assert capsys.readouterr().out.endswith("2 recipes, 1 failed\n")
    (models / "none").mkdir()
    assert run("check", str(models / "none")) == 2


# -- several outputs -----------------------------------------------------------------------------------------

SWEEP = """version: 1
matrix:
  strength: [0.5, 1]
  lora: [lora, other]
base: base.safetensors
loras: [{path: "${lora}.safetensors", strength: "${strength}"}]
output: {path: "out/${lora}-${strength}.safetensors"}
"""


def sweep(folder: Path, name: str, text: str = SWEEP) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_matrix_is_checked_output_by_output_and_told_in_a_line(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    path = sweep(tmp_path, "sweep.yaml")
    assert run("check", str(path)) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"ok        {path}: 2 outputs planned into base.safetensors",
        f"ok        {path}: 2 outputs, the recipe alone; not here: other.safetensors",
    ]
    assert run("check", str(path), "--only", "lora-*", "--json") == 0
    found = json.loads(capsys.readouterr().out)["recipes"]
    assert [(each["name"], each["state"]) for each in found] == [("lora-0.5", "planned"), ("lora-1", "planned")]
    assert found[1]["choices"] == [{"axis": "strength", "value": "1"}, {"axis": "lora", "value": "lora"}]
    assert run("check", str(path), "--only", "wax-*") == 2
    assert "no output has such a name" in capsys.readouterr().err


def test_a_failure_of_many_outputs_is_told_once_with_their_names(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (tmp_path / "other.safetensors").write_text("no model")
    path = sweep(tmp_path, "sweep.yaml")
    assert run("check", str(path)) == 2
    told = capsys.readouterr()
    assert told.err.count("other.safetensors") == 1
    assert told.err.splitlines()[-1] == "  In 2 of 4 outputs: other-0.5, other-1"
    assert told.out == f"ok        {path}: 2 outputs planned into base.safetensors\n"


def test_the_disk_has_to_hold_all_outputs_of_a_recipe(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep(models, "room.yaml")
    ((one, *_),) = check_recipes([path], ["lora-1"])
    assert one.plan is not None
    free = one.plan.size + 1
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(free, 0, free))
    assert run("check", str(path), "--with-inputs", "--only", "lora-1") == 0
    assert run("check", str(path), "--with-inputs", "--only", "lora-*") == 3
    assert ": 2 outputs need " in capsys.readouterr().err


def test_the_hooks_of_pre_commit_call_the_command() -> None:
    hooks = yaml.safe_load((Path(__file__).parent.parent / ".pre-commit-hooks.yaml").read_text())
    assert {hook["id"] for hook in hooks} == {"lorabake-check", "lorabake-check-system"}
    for hook in hooks:
        program, command, *options = hook["entry"].split()
        assert (program, command) == ("lorabake", "check")
        lorabake.get_command(None, command).make_context(command, [*options, "a.yaml"])  # type: ignore[union-attr,arg-type]


# -- annotations ---------------------------------------------------------------------------------------------


def annotations(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_each_fault_of_a_recipe_is_on_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a,b:c.yaml"
    path.write_text("version: 1\nbase: b.safetensors\nlora: [x]\noutput: {path: o, dtyp: 100%}\n")
    assert run("plan", str(path), "--format", "github") == 2
    escaped = str(path).replace(":", "%3A").replace(",", "%2C")
    first, second, *rest = annotations(capsys)
    assert first.startswith(f"::error file={escaped},line=3,col=1,title=lorabake::unknown key 'lora'")
    assert second.startswith(f"::error file={escaped},line=4,col=19,title=lorabake::unknown key 'dtyp'")
    assert all(line.startswith("::error ") for line in rest)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"base": "bsae.safetensors"}, 2),
        ({"loras": ["lora.safetensors", "lroa.safetensors"]}, 5),
        ({"loras": [{"path": "lora.safetensors", "strength": 1, "blocks": {"up_blocks.9.*": 1}}]}, 4),
        ({"output": {"path": "base.safetensors"}}, 6),
    ],
)
def test_an_error_about_a_file_is_on_the_line_that_names_it(
    models: Path, fields: dict[str, object], line: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(models, "wrong.yaml", **fields)
    assert run("plan", str(path), "--format=github") == 2
    (told,) = annotations(capsys)
    assert told.startswith(f"::error file={path},line={line},col=")


def test_paths_are_told_from_the_top_of_the_repository(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(models, "gone.yaml", base="gone.safetensors")
    monkeypatch.chdir(models)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(models.parent))
    monkeypatch.setenv("LORABAKE_FORMAT", "github")
    assert run("plan", "gone.yaml") == 2
    (told,) = annotations(capsys)
    assert told.startswith(f"::error file={models.name}/gone.yaml,line=2,col=7,title=lorabake::")
    assert "%0A" in told


def test_a_wrong_command_line_and_options_without_a_file_have_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--lore", "x", "--format", "github") == 2
    assert annotations(capsys)[0].startswith("::error title=lorabake::lorabake plan has no option --lore")
    assert run("plan", "--base", "gone.safetensors", "--lora", "x=1", "-o", "y", "--format", "github") == 2
    assert annotations(capsys)[0].startswith("::error title=lorabake::")


def test_warnings_are_annotations_and_names_cannot_forge_one(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "%0A::error::forged.safetensors"
    shutil.copy(models / "lora.safetensors", models / name)
    path = written(models, "warned.yaml", loras=[{"path": name, "strength": 50}, "lora.safetensors"])
    assert run("plan", str(path), "--format", "github") == 0
    told = annotations(capsys)
    assert told
    assert all(line.startswith("::warning file=") and "%250A" in line for line in told)


def test_a_mismatch_is_annotated_and_printed(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(models, "other.yaml", output={"path": "lora.safetensors"}, loras=[{"path": "copy.safetensors"}])
    shutil.copy(models / "lora.safetensors", models / "copy.safetensors")
    assert run("verify", str(path), "--stage", "structure", "--format", "github") == 1
    printed = capsys.readouterr()
    assert "Mismatch" in printed.out
    told = [line for line in printed.err.splitlines() if line.startswith("::")]
    assert told
    assert all(line.startswith(f"::error file={path},line=") for line in told)
    assert any("fail keys" in line for line in told)


def test_every_command_has_the_option_and_begins_as_text() -> None:
    for name in commands():
        command = lorabake.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert any("--format" in parameter.opts for parameter in command.params), name
    messages.begin([])
    assert messages.form == "text"
