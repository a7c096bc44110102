"""What is this path? Each way to write what is no plain path is told, and what is near a missing file is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorabake.errors import FileError, RecipeError
from lorabake.inspection import inspect
from lorabake.paths import WRITINGS, check_there
from lorabake.recipe import load_recipe, parse_recipe
from lorabake.sources import resolve
from tests import builders as b

FETCHED = "fetch it with lorabake.fetch(recipe)"

SAID = {
    "https://huggingface.co/org/name/resolve/main/a/x.safetensors?download=true": (
        "url",
        "This is a web address of Hugging Face: as an input of a recipe, write hf://org/name@main/a/x.safetensors, "
        f"and {FETCHED}.",
    ),
    "hf://org/name@main/x.safetensors": (
        "url",
        "This is an address of Hugging Face, and only the inputs of a recipe can have one: write a path.",
    ),
    "https://example.org/download/1": (
        "url",
        "This is a web address: as an input of a recipe, write {path: https://…, sha256: 64 HEX DIGITS}, "
        f"and {FETCHED}.",
    ),
    "s3://bucket/x.safetensors": (
        "url",
        "This is an address, and lorabake fetches only hf://… and https://…: download the file, and write its path.",
    ),
    "file:///home/u/x.pt": ("url", "This is a web address of a file on this machine: write /home/u/x.pt"),
    "<lora:x:0.8>": (
        "tag",
        "This is the tag of a LoRA in a prompt: write {path: x.safetensors, strength: 0.8}, "
        "or as an option x.safetensors=0.8",
    ),
    " <lyco:x> ": ("tag", "This is the tag of a LoRA in a prompt: write x.safetensors"),
    "'x.pt'": ("quoted", "The quotation marks inside the text count as part of the path: write x.pt without them."),
    '"C:\\x.pt"': (
        "quoted",
        "The quotation marks inside the text count as part of the path: write C:\\x.pt without them.",
    ),
    "\u201cx.pt\u201d": (
        "quoted",
        "The quotation marks inside the text count as part of the path: write x.pt without them.",
    ),
    "a/x.pt:0.8": ("strength", "A strength is a key of its own: {path: a/x.pt, strength: 0.8}"),
    "x.pt ": ("spaced", "The path begins or ends with a space: write 'x.pt'"),
    " $HOME/x.pt": ("spaced", "The path begins or ends with a space: write '$HOME/x.pt'"),
    "$LORABAKE_TEST/x.pt": (
        "variable",
        "Environment variables such as $LORABAKE_TEST have no meaning here: write /models/x.pt",
    ),
    "a/${NOT_SET_AT_ALL}/x.pt": (
        "variable",
        "Environment variables such as ${NOT_SET_AT_ALL} have no meaning here: write the whole path, or one that "
        "begins with ~ for your home folder. For an axis, add matrix: {NOT_SET_AT_ALL: [VALUE, VALUE]} "
        "to the recipe.",
    ),
    "%LORABAKE_TEST%\\sub\\x.pt": (
        "variable",
        "Environment variables such as %LORABAKE_TEST% have no meaning here: write /models/sub/x.pt",
    ),
    "C:\\Users\\me\\x.pt": ("drive", "This is a path of Windows. Under WSL, write /mnt/c/Users/me/x.pt"),
    "d:/x.pt": ("drive", "This is a path of Windows. Under WSL, write /mnt/d/x.pt"),
    "\\\\nas\\models\\x.pt": (
        "share",
        "This is a network share of Windows: write the folder in which this machine has mounted it.",
    ),
    "models\\sub\\x.pt": ("backslashes", "This has backslashes between folders: write models/sub/x.pt"),
    "org/some-name_1.5": (
        "hub",
        f"If this is the id of a model on Hugging Face, write hf://org/some-name_1.5, and {FETCHED}.",
    ),
}

PLAIN = (
    "x.pt",
    "loras/x.safetensors",
    "../a/b",
    "./a/b",
    "/a/b",
    "~/a",
    "a b.safetensors",
    "a #1.pt",
    "a/b/c",
    "ü.pt",
)


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORABAKE_TEST", "/models")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NOT_SET_AT_ALL", raising=False)
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def hint(path: Path, written: str | None = None) -> str:
    """Return what is said of a path without a file, after its first line."""
    with pytest.raises(FileError) as caught:
        check_there(path, written)
    first, *rest = caught.value.args
    assert first == f"{path}: no such file"
    return "\n".join(rest)


@pytest.mark.parametrize("text", SAID)
def test_writings_are_told(tmp_path: Path, text: str) -> None:
    assert hint(tmp_path / text, text) == SAID[text][1]


@pytest.mark.parametrize("text", [*SAID, *PLAIN])
def test_no_text_is_of_two_writings(text: str) -> None:
    fitting = [writing.name for writing in WRITINGS if writing.pattern.fullmatch(text)]
    assert fitting == ([SAID[text][0]] if text in SAID else [])


def test_every_writing_has_an_example() -> None:
    assert {writing.name for writing in WRITINGS} == {name for name, _ in SAID.values()}


def test_what_is_there_is_taken_as_it_stands(tmp_path: Path) -> None:
    for text in SAID:
        if "/" not in text:
            (tmp_path / text).touch()
            check_there(tmp_path / text, text)


def test_a_model_in_the_cache_is_named(tmp_path: Path) -> None:
    snapshot = tmp_path / "home/.cache/huggingface/hub/models--org--name/snapshots/0123"
    snapshot.mkdir(parents=True)
    told = hint(tmp_path / "org/name", "org/name")
    assert told == "If this is the id of a model on Hugging Face, you have it: write hf://org/name"


@pytest.mark.parametrize(
    ("written", "there", "told"),
    [
        ("base.safetensor", "base.safetensors", "The folder has base.safetensors: did you mean that?"),
        ("Base.SafeTensors", "base.safetensors", "The folder has base.safetensors: did you mean that?"),
        ("base.ckpt", "base.safetensors", "The folder has base.safetensors: did you mean that?"),
        ("base", "base.safetensors", "The folder has base.safetensors: did you mean that?"),
        ("my style.pt", "my_style.pt", "The folder has my_style.pt: did you mean that?"),
        ("stlye.pt", "style.pt", "The folder has style.pt: did you mean that?"),
        ("u\u0308.pt", "\u00fc.pt", "The folder has \u00fc.pt: did you mean that?"),
        ("sub/style.pt", "sub/stile.pt", "The folder has stile.pt: did you mean that?"),
        ("x.safetensors", "quite another.safetensors", "The folder has quite another.safetensors."),
        ("x.safetensors", "notes.txt", ""),
        ("lroas/style.pt", "loras/style.pt", "{root} has no folder 'lroas': did you mean loras?"),
        ("loras/x.pt", "x.pt", "{root} has no folder 'loras': x.pt lies in {root} itself."),
        ("far/away/x.pt", "loras/style.pt", "{root} has no folder 'far'."),
        ("style.pt/x.pt", "style.pt", "{root}/style.pt is a file, not a folder."),
        ("style", "style #2.pt", "The folder has 'style #2.pt': in YAML, what follows ' #' is a comment, so put the "
                                 "path in quotes."),
        ("loras/style", "loras/style.pt", "The folder has style.pt: did you mean that?"),
    ],
)  # fmt: skip
def test_near_names(tmp_path: Path, written: str, there: str, told: str) -> None:
    root = tmp_path / "work"
    (root / there).parent.mkdir(parents=True)
    (root / there).touch()
    assert hint(root / written, written) == told.format(root=root)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("neom.safetensors", "neon.safetensors"),
        ("nein.safetensors", "neon.safetensors"),
        ("neon.safetensor", "neon.safetensors"),
        ("neo.safetensors", "neon.safetensors"),
        ("NEON", "neon.safetensors"),
        ("neon.ckpt", "neon.safetensors"),
        ("noen.md", "neon.md"),
        ("sweep.yml", "sweep.yaml"),
        ("swep.yam", "sweep.yaml"),
        ("style-0.7", "style-0.8.safetensors"),
        ("blorb", "blorp"),
    ],
)
def test_of_several_near_names_the_most_similar_of_the_same_kind_is_meant(
    tmp_path: Path, written: str, meant: str
) -> None:
    files = (
        "neon.safetensors",
        "neon.md",
        "neo.txt",
        "sweep.csv",
        "sweep.yaml",
        "style-0.8.md",
        "style-0.8.safetensors",
    )
    for name in files:
        (tmp_path / name).touch()
    (tmp_path / "blorp").mkdir()
    assert hint(tmp_path / written, written) == f"The folder has {meant}: did you mean that?"


def test_a_file_beside_the_command_and_not_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "base.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert hint(tmp_path / "recipes/base.safetensors", "base.safetensors") == (
        "The current folder has it, and a path in a recipe starts from the recipe's folder: write ../base.safetensors"
    )


@pytest.mark.parametrize("field", ["base", "loras", "vae"])
def test_inputs_of_a_recipe_are_asked_for_as_they_are_written(tmp_path: Path, field: str) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    given = "models\\x.safetensors"
    path = b.recipe(tmp_path, **{field: [given] if field == "loras" else given})
    with pytest.raises(FileError) as caught:
        resolve(load_recipe(path))
    assert caught.value.args[1].startswith(f"The recipe names it at {path}:")
    assert caught.value.args[2] == "This has backslashes between folders: write models/x.safetensors"


def test_dots_are_taken_out_of_paths_where_that_is_the_same(tmp_path: Path) -> None:
    for name in ("recipes", "far/away"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    base = "version: 1\nloras: [x.pt]\noutput: {path: ../out/o.safetensors}\nbase: "
    for folder, written, located in (
        ("recipes", "../b.pt", f"{tmp_path}/b.pt"),
        ("recipes", "../far/away/../../b.pt", f"{tmp_path}/b.pt"),
        ("recipes", "../link/../b.pt", f"{tmp_path}/recipes/../link/../b.pt"),
        ("recipes", "../none/../b.pt", f"{tmp_path}/recipes/../none/../b.pt"),
        ("recipes", "b..pt", f"{tmp_path}/recipes/b..pt"),
        ("link", "../b.pt", f"{tmp_path}/link/../b.pt"),
    ):
        recipe = parse_recipe(f"{base}{written}\n", tmp_path / folder)
        assert str(recipe.locate(recipe.base)) == located
    with pytest.raises(FileError, match=rf"^{tmp_path}/b\.pt: no such file"):
        resolve(parse_recipe(f"{base}../b.pt\n", tmp_path / "recipes"))


def test_inspect_asks_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match="write hf://org/name, and fetch it"):
        inspect(Path("https://huggingface.co/org/name"))


@pytest.mark.parametrize(
    ("lines", "place", "told", "text"),
    [
        ("base: s3://bucket/x.safetensors", "2:7", "base is {!r}", "s3://bucket/x.safetensors"),
        ("base: b.pt\nloras: ['<lora:x:0.8>']", "3:9", "{!r} is no path", "<lora:x:0.8>"),
    ],
)
def test_a_recipe_refuses_what_can_be_no_path(tmp_path: Path, lines: str, place: str, told: str, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(f"version: 1\n{lines}\noutput: {{path: o.safetensors, dtype: float32}}\n", tmp_path)
    assert str(caught.value) == f"recipe:{place}: {told.format(text)}. {SAID[text][1]}"


def test_a_home_folder_is_not_in_what_outputs_carry(tmp_path: Path) -> None:
    text = "version: 1\nbase: {}\noutput: {{path: o.safetensors, dtype: float32}}\n"
    homely = parse_recipe(text.format("~/models/base.pt"), tmp_path)
    whole = parse_recipe(text.format(f"{tmp_path}/home/models/base.pt"), tmp_path)
    assert homely.locate(homely.base.path) == tmp_path / "home/models/base.pt"
    assert homely.normal_json() == whole.normal_json()
    assert os.fspath(tmp_path) not in homely.normal_json()
