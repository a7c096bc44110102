"""The command line: exit codes, what goes where, and no traceback for a user's mistake."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import torch

from lorabake import __version__
from lorabake.cli import commands, lorabake, main
from lorabake.documents import VERSIONS
from lorabake.documents.schema import schema_of
from lorabake.recipe import recipe_schema
from tests import builders as b
from tests.builders import Q, W
from tests.documents import check


@dataclass
class Ended:
    """Hold what one call of the program printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def first(self) -> str:
        return self.err.splitlines()[0]


Cli = Callable[..., Ended]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Run the program in this process, in the folder of the test; any exception but its exit fails the test."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lorabake", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        if "--json" in arguments and captured.out and arguments[0] in VERSIONS:
            check(captured.out)
        code = ended.value.code
        return Ended(code if isinstance(code, int) else int(bool(code)), captured.out, captured.err)

    before = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    b.save(tmp_path / "base.safetensors", b.sd1(ema=True), metadata={"modelspec.title": "mine"})
    b.sd1_lora(tmp_path / "lora.safetensors")
    b.recipe(tmp_path)
    return tmp_path


def refused(ended: Ended, *words: str, code: int = 2) -> None:
    """Check that a call ended in one error that stands alone."""
    assert ended.code == code, ended
    assert ended.out == ""
    assert ended.first.startswith("error: ")
    assert "Traceback" not in ended.err
    assert len(ended.first) > len("error: ") + 10
    for word in words:
        assert word in ended.err


# -- bake ------------------------------------------------------------------------------------------------


def test_bake_says_what_it_did(cli: Cli, folder: Path) -> None:
    ended = cli("bake", "recipe.yaml")
    assert ended.code == 0
    lines = ended.err.splitlines()
    assert lines[0].startswith("lora 1    lora.safetensors at 1: 12 of 12 tensors applied")
    assert any(line.startswith("note: ") and "EMA" in line for line in lines)
    (line,) = ended.out.splitlines()
    assert re.fullmatch(r"output    out\.safetensors: [\d.]+ kB in [\d.]+ s .*, [\d.]+ [kMG]B/s, mostly \w+.*", line)
    assert (folder / "out.safetensors").exists()


def test_quiet_says_nothing_but_warnings(cli: Cli, folder: Path) -> None:
    assert cli("bake", "recipe.yaml", "--quiet") == Ended(0, "", "")


def test_json_and_report_say_the_same(cli: Cli, folder: Path) -> None:
    ended = cli("bake", "recipe.yaml", "--json", "--report", "report.json", "--no-fsync", "--workers", "1")
    assert ended.code == 0
    told = json.loads(ended.out)
    assert told == json.loads((folder / "report.json").read_text())
    assert told["bytes"] == (folder / "out.safetensors").stat().st_size
    digest = b.header(folder / "out.safetensors")[1]["sshs_model_hash"]
    assert told["data_sha256"] == [{"file": "out.safetensors", "sha256": digest}]
    lora = folder / "lora.safetensors"
    assert {"path": lora.name, "sha256": b.sha256(lora)} in told["inputs"]
    assert told["plan"]["loras"][0]["applied"] == 12
    assert {"seconds", "stages", "bottleneck", "peak_memory_bytes"} <= told.keys()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def link_to(name: str, hard: bool) -> Callable[[Path], str]:
    def link(folder: Path) -> str:
        (folder / "report.json").hardlink_to(folder / name) if hard else (folder / "report.json").symlink_to(name)
        return "report.json"

    return link


PLACES: dict[str, Callable[[Path], str]] = {
    "a missing folder": lambda folder: "nowhere/report.json",
    "a file as its folder": lambda folder: "recipe.yaml/report.json",
    "a folder": lambda folder: str((folder / "report.json").mkdir() or "report.json"),
    "the output": lambda folder: "out.safetensors",
    "the output's working file": lambda folder: "out.safetensors.partial",
    "the base": lambda folder: "../" + folder.name + "/base.safetensors",
    "the base, by a hard link": link_to("base.safetensors", hard=True),
    "the LoRA, by a symbolic link": link_to("lora.safetensors", hard=False),
    "the output, by a symbolic link": link_to("out.safetensors", hard=False),
    "the recipe, by a hard link": link_to("recipe.yaml", hard=True),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_report_that_cannot_be_is_refused_before_the_bake(cli: Cli, folder: Path, place: str) -> None:
    report = PLACES[place](folder)
    before = contents(folder)
    refused(cli("bake", "recipe.yaml", "--quiet", "--report", report), report)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["base.safetensors", "recipe.yaml", "out.safetensors"])
def test_a_report_of_verify_takes_the_place_of_nothing(cli: Cli, folder: Path, name: str) -> None:
    assert cli("bake", "recipe.yaml", "--quiet").code == 0
    (folder / "report").mkdir()
    (folder / "report" / "summary.md").hardlink_to(folder / name)
    before = contents(folder)
    refused(cli("verify", "recipe.yaml", "--stage", "structure", "--report", "report"), "report/summary.md")
    assert contents(folder) == before
    assert len([*(folder / "report").iterdir()]) == 1


def test_a_report_of_verify_does_not_go_into_the_checkpoint(cli: Cli, folder: Path) -> None:
    b.recipe(folder, output={"path": "out", "shard_size": "1GB"})
    assert cli("bake", "recipe.yaml", "--quiet").code == 0
    refused(cli("verify", "recipe.yaml", "--stage", "structure", "--report", "out/report"), "out/report")
    assert not (folder / "out" / "report").exists()


def test_output_and_overwrite(cli: Cli, folder: Path) -> None:
    assert cli("bake", "recipe.yaml", "-o", "other.safetensors").code == 0
    assert not (folder / "out.safetensors").exists()
    (folder / "out.safetensors").write_text("old")
    refused(cli("bake", "recipe.yaml", "--quiet"), "--overwrite")
    assert (folder / "out.safetensors").read_text() == "old"
    assert cli("bake", "recipe.yaml", "--overwrite").code == 0
    assert b.header(folder / "out.safetensors")[2] == b.header(folder / "other.safetensors")[2]


@pytest.mark.parametrize("device", ["banana", "cuda:99", "meta", "", "cpu:banana"])
def test_a_device_that_is_not_there(cli: Cli, folder: Path, device: str) -> None:
    if not device:
        assert cli("bake", "recipe.yaml", "--quiet", "--device", device).code in (0, 3)
        return
    ended = cli("bake", "recipe.yaml", "--quiet", "--device", device)
    if "banana" in device:
        refused(ended, f"there is no device '{device}'", "Give one of auto, cpu, cuda, xpu, mps")
    else:
        refused(ended, f"device '{device}'", "--device cpu", code=3)
    assert not list(folder.glob("out.*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["bake"],
        ["bake", "recipe.yaml", "--workers", "0"],
        ["bake", "recipe.yaml", "--workers", "many"],
        ["bake", "recipe.yaml", "--colour"],
        ["bake", "recipe.yaml", "extra"],
        ["bate", "recipe.yaml"],
        ["completion", "tcsh"],
        ["inspect"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage(cli: Cli, folder: Path, arguments: list[str]) -> None:
    ended = cli(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.first.startswith("error: ")
    assert len(ended.err.splitlines()) > 1, "it says what to do"
    assert not list(folder.glob("out.*"))


# -- plan ------------------------------------------------------------------------------------------------


def test_plan_foretells_the_bake_and_writes_nothing(cli: Cli, folder: Path) -> None:
    before = b.tree(folder)
    ended = cli("plan", "recipe.yaml")
    assert (ended.code, ended.err) == (0, "")
    assert b.tree(folder) == before
    rows = {line.split()[0]: line for line in ended.out.splitlines() if line[:1].strip()}
    assert {"base", "lora", "baked", "copied", "output", "memory", "note"} <= rows.keys()
    assert "Stable Diffusion 1.x" in rows["base"]
    assert "4 tensors" in rows["baked"]

    told = json.loads(cli("plan", "recipe.yaml", "--json").out)
    assert told["architecture"] == "sd1"
    assert told["baked"]["tensors"] == 4
    assert told["free_disk_bytes"] > 0
    assert cli("bake", "recipe.yaml").code == 0
    assert (folder / "out.safetensors").stat().st_size == told["output"]["bytes"]
    header, _, data = b.header(folder / "out.safetensors")
    assert told["baked"]["bytes"] + told["copied"]["bytes"] == len(data)
    assert told["baked"]["tensors"] + told["copied"]["tensors"] == len(header)


def test_plan_does_not_need_torch(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['lorabake', 'plan', 'recipe.yaml']\n"
        "from lorabake.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plan_into_a_folder_that_is_not_there_yet(cli: Cli, folder: Path) -> None:
    assert cli("plan", "recipe.yaml", "-o", "a/b/c/out.safetensors").code == 0
    assert not (folder / "a").exists()


def test_an_output_that_is_a_folder_gets_a_file_of_the_recipes_name(cli: Cli, folder: Path) -> None:
    (folder / "kept").mkdir()
    assert cli("bake", "recipe.yaml", "--quiet", "-o", "kept/").code == 0
    assert [path.name for path in (folder / "kept").iterdir()] == ["out.safetensors"]
    options = ("--base", "base.safetensors", "--lora", "lora.safetensors")
    refused(cli("bake", *options, "-o", "kept"), "kept: is a folder", "kept/out.safetensors")


def test_a_new_folder_is_never_made_silently(cli: Cli, folder: Path) -> None:
    refused(
        cli("bake", "recipe.yaml", "-o", "new/"), "Name it new.safetensors, or a file in a folder: new/out.safeten"
    )
    assert not (folder / "new").exists()
    assert (
        "note      the folder new is new, and will be made"
        in cli("plan", "recipe.yaml", "-o", "new/o.safetensors").out
    )
    assert (
        "note: the folder new is new, and will be made" in cli("bake", "recipe.yaml", "-o", "new/o.safetensors").err
    )


@pytest.mark.parametrize(
    ("strength", "blocks", "told"),
    [
        (0.8, {}, "0.8"),
        ({"unet": 0.5, "text_encoder": -0.2}, {}, "unet 0.5, text_encoder -0.2"),
        (1, {"*": 0.5}, "1 × blocks"),
    ],
)
def test_the_strength_of_each_lora_is_told(
    cli: Cli, folder: Path, strength: object, blocks: dict[str, float], told: str
) -> None:
    b.recipe(folder, loras=[{"path": "lora.safetensors", "strength": strength, "blocks": blocks}])
    for command, stream in (("plan", "out"), ("bake", "err")):
        assert f"lora 1    lora.safetensors at {told}: " in getattr(cli(command, "recipe.yaml"), stream)


def test_plan_fails_as_the_bake_would(cli: Cli, folder: Path) -> None:
    b.kohya(folder / "lora.safetensors", {"lora_unet_no_such_module": b.lora((W, W))})
    told, baked = cli("plan", "recipe.yaml"), cli("bake", "recipe.yaml")
    refused(told, "no_such_module")
    assert told == baked
    assert not list(folder.glob("out.*"))


# -- inspect, schema, completion, help -------------------------------------------------------------------


def test_inspect_a_checkpoint(cli: Cli, folder: Path) -> None:
    told = json.loads(cli("inspect", "base.safetensors", "--json").out)
    assert told["what"] == "checkpoint"
    assert told["family_title"] == "Stable Diffusion 1.x"
    assert {name for part in told["components"] for name in part["names"]} == {"unet", "text_encoder", "vae"}
    assert told["markers"] == ["v_pred"]
    assert told["bytes"] == (folder / "base.safetensors").stat().st_size
    words = cli("inspect", "base.safetensors").out
    assert "Stable Diffusion 1.x" in words
    assert "mine" in words


def test_inspect_a_lora(cli: Cli, folder: Path) -> None:
    b.kohya(
        folder / "lora.safetensors",
        {b.unet_lora(Q): b.lora((W, W), rank=3, alpha=1.5), b.unet_lora(b.FF): b.lora((8 * W, W), dora="row")},
        metadata={"ss_network_dim": "3", "ss_tag_frequency": json.dumps({"x": {"cat": 3, "dog": 9}})},
    )
    told = json.loads(cli("inspect", "lora.safetensors", "--json").out)
    assert told["what"] == "lora"
    assert told["ranks"] == [{"rank": 2, "count": 1}, {"rank": 3, "count": 1}]
    assert told["alphas"] == [{"alpha": 1.5, "source": "tensor", "count": 1, "note": None}]
    assert {(part["kind"], part["count"]) for part in told["kinds"]} == {("LoRA", 1), ("DoRA", 1)}
    assert [(part["names"], part["modules"]) for part in told["components"]] == [(["unet"], 2)]
    assert told["family_title"].startswith("Stable Diffusion 1.x, Stable Diffusion 2.x, ")
    assert told["family_by"] == "names"
    assert told["scales"] == [{"scale": 0.5, "count": 1}, {"scale": 1.0, "count": 1}]
    assert told["training"] == {"ss_network_dim": "3"}
    assert told["trigger_words"][0] == {"words": "dog", "count": 9}
    words = cli("inspect", "lora.safetensors").out
    assert "dog ×9" in words
    assert "(by names alone)" in words


def test_inspect_a_peft_folder(cli: Cli, tmp_path: Path) -> None:
    b.peft(tmp_path / "adapter", {"model.layers.0.self_attn.q_proj": b.lora((8, 8), rank=4)}, r=4, lora_alpha=8)
    told = json.loads(cli("inspect", "adapter", "--json").out)
    assert told["what"] == "lora"
    assert told["adapter_config"] == {"r": 4, "lora_alpha": 8.0, "rslora": False}
    assert told["ranks"] == [{"rank": 4, "count": 1}]
    assert cli("inspect", "adapter").code == 0


def test_inspect_folders_of_models(cli: Cli, tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "sd")
    b.llama(tmp_path / "llama", shards=2)
    assert json.loads(cli("inspect", "sd", "--json").out)["family_title"] == "Stable Diffusion 1.x"
    told = json.loads(cli("inspect", "llama", "--json").out)
    assert (told["what"], told["files"]) == ("checkpoint", 2)


def test_inspect_a_baked_file_shows_its_recipe(cli: Cli, folder: Path) -> None:
    cli("bake", "recipe.yaml")
    told = json.loads(cli("inspect", "out.safetensors", "--json").out)
    assert told["baked_by_lorabake"] == __version__
    assert told["recipe"]["loras"][0]["path"] == "lora.safetensors"
    assert told["inputs"]["loras"][0]["sha256"] == b.sha256(folder / "lora.safetensors")
    assert "lora.safetensors" in cli("inspect", "out.safetensors").out


COUNTED = {"kinds", "excluded", "components", "packed_weights", "dtypes", "training", "metadata", "digests", "inputs"}
"""What maps things that have names of their own, such as kinds and files, to what is said of each."""


def spaced(value: object, place: str = "") -> Iterator[str]:
    """Yield the keys with spaces of a record, but for the names of things."""
    if isinstance(value, list):
        for each in value:
            yield from spaced(each, place)
    elif isinstance(value, dict):
        for key, each in value.items():
            if " " in key and place not in COUNTED:
                yield f"{place}: {key}"
            yield from spaced(each, key)


def test_keys_of_json_have_no_spaces(cli: Cli, folder: Path) -> None:
    b.kohya(folder / "lora.safetensors", {b.unet_lora(Q): b.lora((W, W))}, {"modelspec.trigger_phrase": "a cat"})
    b.save(folder / "strange.safetensors", {"unet.x.lora_A.weight": torch.ones(2, 2), "step": torch.ones(1)})
    b.recipe(folder)
    runs = [
        ("plan", "recipe.yaml", "--json"),
        ("bake", "recipe.yaml", "--json"),
        ("verify", "recipe.yaml", "--json", "--stage", "structure", "--stage", "weights"),
        *(("inspect", f"{name}.safetensors", "--json") for name in ("base", "lora", "strange", "out")),
    ]
    told = {run[1] if run[0] == "inspect" else run[0]: json.loads(cli(*run).out) for run in runs}
    assert told["base.safetensors"]["outside_any_component"]
    assert told["lora.safetensors"]["seen_by"]
    assert [*spaced(told)] == []
    words = cli("inspect", "lora.safetensors").out
    assert {line[: len("trigger words")].rstrip() for line in words.splitlines()} >= {"trigger words", "seen by"}


@pytest.mark.parametrize("path", ["nothing.safetensors", ".", "recipe.yaml"])
def test_inspect_what_is_no_model(cli: Cli, folder: Path, path: str) -> None:
    (folder / "second.safetensors").write_bytes((folder / "base.safetensors").read_bytes())
    refused(cli("inspect", path))


def test_schema_is_the_recipes(cli: Cli) -> None:
    assert json.loads(cli("schema").out) == json.loads(json.dumps(recipe_schema()))
    assert cli("schema", "recipe").out == cli("schema").out


@pytest.mark.parametrize("name", VERSIONS)
def test_schema_of_every_document(cli: Cli, name: str) -> None:
    told = json.loads(cli("schema", name).out)
    assert told == schema_of(name)
    assert told["properties"]["lorabake"]["const"] == name
    assert [*told["properties"]][:2] == [*told["required"]][:2] == ["lorabake", "version"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(cli: Cli, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # click asks bash for its version, and warns where there is none of 4.4 or later
    monkeypatch.setattr("click.shell_completion.BashComplete._check_version", lambda *_: None)
    ended = cli("completion", shell)
    assert ended.code == 0
    assert "_LORABAKE_COMPLETE" in ended.out


@pytest.mark.parametrize(
    "arguments", [[], *([command] for command in commands())], ids=lambda a: " ".join(a) or "all"
)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(cli: Cli, arguments: list[str], flag: str) -> None:
    ended = cli(*arguments, flag)
    assert ended.code == 0
    assert ended.out.startswith("Usage: ")
    assert ended.err == ""
    if not arguments:
        assert all(f"  {command} " in ended.out for command in commands())


@pytest.mark.parametrize("name", commands())
def test_a_command_alone_has_the_same_options_for_help(name: str) -> None:
    """click makes a command's help option once, with the names that its first context has."""
    command = lorabake.get_command(click.Context(lorabake), name)
    assert command is not None
    option = command.get_help_option(command.context_class(command, info_name=name, **command.context_settings))
    assert option is not None
    assert option.opts == ["-h", "--help"]


def test_version(cli: Cli) -> None:
    assert __version__ in cli("--version").out


def test_the_program_as_a_process(folder: Path) -> None:
    run = [sys.executable, "-m", "lorabake"]
    environment = dict(os.environ, NO_COLOR="1")
    wrong = subprocess.run(
        [*run, "plan", "missing.yaml"], cwd=folder, capture_output=True, text=True, env=environment, check=False
    )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: missing.yaml: no such file\n  The folder has recipe.yaml.\n"
    right = subprocess.run(
        f"{sys.executable} -m lorabake inspect base.safetensors | head -c 1",
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (right.returncode, right.stderr) == (0, "")


# -- Mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: 1\nbase: base.safetensors\nloras: [lora.safetensors]\n", "missing key 'output'"),
        ("version: 2\nbase: a\noutput: {path: b}\n", "version must be 1"),
        ("{", "this { is never closed"),
        ("", "the recipe is empty"),
        ("version: 1\nbase: base.safetensors\nloras: [l.pt]\noutput: {path: o.safetensors}\n", "no such file"),
        ("version: 1\nbase: b\nloras: [lora.safetensors]\noutput: {path: o.safetensors}\n", "no such file"),
        (
            "version: 1\nbase: base.safetensors\nloras: [{path: lora.safetensors, strength: {unnet: 1}}]\n"
            "output: {path: o.safetensors}\n",
            "unnet",
        ),
        (
            "version: 1\nbase: base.safetensors\nloras: [{path: lora.safetensors, strength: {unet: 1}}]\n"
            "output: {path: o.safetensors}\n",
            "text_encoder",
        ),
        (
            "version: 1\nbase: base.safetensors\nloras: [{path: lora.safetensors, blocks: {nowhere.*: 1}}]\n"
            "output: {path: o.safetensors}\n",
            "nowhere.*",
        ),
        ("version: 1\nbase: {path: base.safetensors, variant: fp16}\nloras: [lora.safetensors]\n"
         "output: {path: o.safetensors}\n", "variant"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe(cli: Cli, folder: Path, text: str, words: str) -> None:
    (folder / "recipe.yaml").write_text(text)
    for command in ("plan", "bake"):
        refused(cli(command, "recipe.yaml"), words)
    assert not list(folder.glob("o*.safetensors*"))


@pytest.mark.parametrize(
    "output",
    ["o" * 250 + ".safetensors", "o" * 240 + ".safetensors", "base.safetensors/o.safetensors", "lora.safetensors"],
    ids=["long", "long with .partial", "below a file", "an input"],
)
def test_outputs_that_cannot_be(cli: Cli, folder: Path, output: str) -> None:
    before = b.tree(folder)
    ended = cli("bake", "recipe.yaml", "--quiet", "--overwrite", "-o", output)
    refused(ended)
    assert b.tree(folder) == before


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 4265380512\n")


def truncated(path: Path) -> None:
    b.save(path, b.sd1())
    os.truncate(path, path.stat().st_size - 10)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncated, "truncated"),
    "half a header": (lambda path: (b.save(path, b.sd1()), os.truncate(path, 100)), "truncated"),
    "html": (lambda path: path.write_text("<!DOCTYPE html><html><body>Log in</body></html>"), "an HTML page"),
    "pointer": (pointer, "a git-lfs pointer"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "a pickle"),
    "torch": (lambda path: torch.save({"a": torch.ones(1)}, path), "a zip archive or PyTorch pickle"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "zeros": (lambda path: path.write_bytes(bytes(100)), "zeros"),
    "noise": (lambda path: path.write_bytes(bytes(range(256))), "not SafeTensors"),
    "json": (lambda path: path.write_text("{}"), "JSON"),
    "missing": (lambda path: None, "no such file"),
    "link to nothing": (lambda path: path.symlink_to("nowhere"), "is a link to nothing"),
    "pipe": (lambda path: os.mkfifo(path), "not a regular file"),
    "empty folder": (lambda path: path.mkdir(), "no weights in this folder"),
}


@pytest.mark.parametrize("which", ["base", "lora", "vae"])
@pytest.mark.parametrize("sort", BAD_FILES)
def test_bad_files(cli: Cli, folder: Path, which: str, sort: str) -> None:
    make, words = BAD_FILES[sort]
    make(folder / "bad.safetensors")
    fields: dict[str, object] = {"loras": ["bad.safetensors"]} if which == "lora" else {which: "bad.safetensors"}
    b.recipe(folder, **fields)
    before = {path.name for path in folder.iterdir()}
    for command in ("plan", "bake"):
        ended = cli(command, "recipe.yaml")
        refused(ended, words, "bad.safetensors")
    refused(cli("inspect", "bad.safetensors"), words)
    assert {path.name for path in folder.iterdir()} == before


def test_a_pickle_that_runs_code_is_not_run(cli: Cli, folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(folder / "evil"),))

    (folder / "bad.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    b.recipe(folder, loras=["bad.pt"])
    refused(cli("bake", "recipe.yaml"), "bad.pt")
    assert not (folder / "evil").exists()


@pytest.mark.parametrize("what", ["a shard", "the index", "a listed tensor"])
def test_a_folder_with_something_missing(cli: Cli, tmp_path: Path, what: str) -> None:
    b.llama(tmp_path / "base", shards=2)
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    index = tmp_path / "base" / "model.safetensors.index.json"
    if what == "a shard":
        (tmp_path / "base" / "model-00002-of-00002.safetensors").unlink()
    elif what == "the index":
        index.unlink()
    else:
        described = json.loads(index.read_text())
        described["weight_map"]["model.extra.weight"] = "model-00002-of-00002.safetensors"
        index.write_text(json.dumps(described))
    b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})
    refused(cli("bake", "recipe.yaml"))
    assert not (tmp_path / "out").exists()


def raw_file(path: Path, entries: dict[str, tuple[str, list[int], bytes]]) -> None:
    """Write a SafeTensors file of any dtypes, by hand."""
    described, data = {}, b""
    for key, (dtype, shape, raw) in entries.items():
        described[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(described).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


NAME = b.unet_lora(Q)
DOWN, UP = ("F32", [1, W], bytes(4 * W)), ("F32", [W, 1], bytes(4 * W))
STRANGE_LORAS: dict[str, dict[str, tuple[str, list[int], bytes]]] = {
    "alpha of two values": {".alpha": ("F32", [2], bytes(8))},
    "alpha of none": {".alpha": ("F32", [0], b"")},
    "complex alpha": {".alpha": ("C64", [], bytes(8))},
    "four-bit alpha": {".alpha": ("F4", [2], bytes(1))},
    "complex factors": {".lora_up.weight": ("C64", [W, 1], bytes(8 * W))},
    "four-bit factors": {".lora_up.weight": ("F4", [W, 1], bytes(W // 2))},
    "factors in the floats of one maker": {".lora_up.weight": ("F8_E4M3FNUZ", [W, 1], bytes(W))},
    "an alpha in them": {".alpha": ("F8_E4M3FNUZ", [], bytes([64]))},
    "scale factors": {".lora_up.weight": ("F8_E8M0", [W, 1], bytes([255] * W))},
    "a factor of no dimensions": {".lora_down.weight": ("F32", [], bytes(4))},
    "a factor of one dimension": {".lora_up.weight": ("F32", [W], bytes(4 * W))},
    "a factor of other size": {".lora_up.weight": ("F32", [W + 1, 1], bytes(4 * (W + 1)))},
    "a magnitude of no dimensions": {".dora_scale": ("F32", [], bytes(4))},
    "a magnitude of other size": {".dora_scale": ("F32", [3, 1], bytes(12))},
    "a core of other size": {".lora_mid.weight": ("F32", [1, 2, 3, 3], bytes(72))},
    "an unknown tensor": {".something": ("F32", [1], bytes(4))},
    "another kind": {".hada_w1_a": ("F32", [1], bytes(4))},
}


@pytest.mark.parametrize("sort", STRANGE_LORAS)
def test_strange_loras(cli: Cli, folder: Path, sort: str) -> None:
    slots = {".lora_down.weight": DOWN, ".lora_up.weight": UP} | STRANGE_LORAS[sort]
    raw_file(folder / "lora.safetensors", {NAME + slot: entry for slot, entry in slots.items()})
    b.recipe(folder)
    refused(cli("bake", "recipe.yaml", "--quiet"), "lora.safetensors")
    assert not list(folder.glob("out.*"))


@pytest.mark.parametrize("sort", STRANGE_LORAS)
def test_inspect_strange_loras(cli: Cli, folder: Path, sort: str) -> None:
    slots = {".lora_down.weight": DOWN, ".lora_up.weight": UP} | STRANGE_LORAS[sort]
    raw_file(folder / "lora.safetensors", {NAME + slot: entry for slot, entry in slots.items()})
    assert cli("inspect", "lora.safetensors").code in (0, 2)


@pytest.mark.parametrize("dtype", ["F4", "C64", "F8_E8M0", "F8_E4M3FNUZ"])
def test_strange_dtypes_in_a_vae(cli: Cli, folder: Path, dtype: str) -> None:
    entries = {}
    for name, tensor in b.vae_file("ldm", seed=3).items():
        count = tensor.numel()
        size = {"F4": count // 2, "C64": 8 * count, "F8_E8M0": count}.get(dtype, count)
        entries[name] = (dtype, list(tensor.shape), bytes(size))
    raw_file(folder / "vae.safetensors", entries)
    b.recipe(folder, loras=[], vae="vae.safetensors")
    refused(cli("bake", "recipe.yaml", "--quiet"), "vae.safetensors")
    assert not list(folder.glob("out.*"))


def test_a_lora_of_another_family_is_named(cli: Cli, folder: Path) -> None:
    b.save(folder / "base.safetensors", b.sdxl())
    ended = cli("bake", "recipe.yaml")
    refused(ended, "lora.safetensors")
    assert not list(folder.glob("out.*"))
