"""Recipes in options: what `--base`, `--lora`, `--set` and `--save-recipe` stand for, and that bytes are the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabake.cli import lorabake
from lorabake.errors import LorabakeError, RecipeError
from lorabake.recipe import Recipe, load_recipe, parse_recipe, recipe_of, recipe_schema, values_of
from lorabake.recipe.changes import moved, read_change, with_changes
from lorabake.recipe.options import Options
from lorabake.recipe.shape import is_path, parts_of
from lorabake.recipe.types import FILE
from lorabake.recipe.values import read_values
from lorabake.recipe.written import written
from lorabake.verification import embedded_recipe
from tests import builders as b

BASE = ("--base", "models/base.safetensors")
LORA = "models/lora.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with models in a folder of their own, and go there."""
    (tmp_path / "models").mkdir()
    (tmp_path / "recipes").mkdir()
    b.save(tmp_path / LORA.replace("lora.", "base."), b.sd1(extras=False))
    b.sd1_lora(tmp_path / LORA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> str:
    """Run a command in this process; it must end well. Return what it printed."""
    ended = CliRunner().invoke(lorabake, [*map(str, arguments)], standalone_mode=False)
    if ended.exception is not None:
        raise ended.exception
    assert not ended.return_value, ended.output
    return ended.output


def bake(*arguments: object) -> None:
    run("bake", *arguments, "--quiet", "--no-fsync", "--workers", 1, "--device", "cpu")


def same(one: str, other: str) -> bool:
    """Tell whether two bakes are equal but for the title, which is the output's name."""
    (tensors, said, data), (others, other_said, other_data) = b.header(Path(one)), b.header(Path(other))
    title = {"modelspec.title": ""}
    return tensors == others and data == other_data and said | title == other_said | title


# -- the bytes -------------------------------------------------------------------------------------------


def test_options_bake_what_a_recipe_bakes(folder: Path) -> None:
    loras = [LORA, {"path": LORA, "strength": {"unet": 0.5, "text_encoder": -0.25}}]
    b.recipe(folder, base=BASE[1], loras=loras, output={"path": "by_recipe.safetensors"})
    bake("recipe.yaml")
    bake(*BASE, "--lora", LORA, "--lora", f"{LORA}=unet:0.5, text_encoder:-.25", "-o", "by_options.safetensors")
    assert same("by_recipe.safetensors", "by_options.safetensors")
    assert b.header(Path("by_options.safetensors"))[1]["lorabake.recipe"] == load_recipe("recipe.yaml").normal_json()


@pytest.mark.parametrize("place", ["kept.yaml", "recipes/kept.yaml"])
def test_a_saved_recipe_bakes_the_same(folder: Path, place: str) -> None:
    bake(
        *BASE, "--lora", f"{LORA}=0.8", "-o", "out.safetensors", "--save-recipe", place, "--set", "loras.0.blocks.*=2"
    )
    bake(place, "-o", "again.safetensors")
    assert same("out.safetensors", "again.safetensors")
    recipe = load_recipe(place)
    assert recipe.locate(recipe.output.path).resolve() == folder / "out.safetensors"
    assert recipe.loras[0].blocks == {"*": 2}
    text = Path(place).read_text()
    assert "# The checkpoint that the LoRAs are baked into.\nbase: " in text
    bake(
        *BASE, "--lora", f"{LORA}=0.8", "-o", "out.safetensors", "--save-recipe", place, "--set", "loras.0.blocks.*=2"
    )
    assert Path(place).read_text() == text


def test_absolute_paths(folder: Path) -> None:
    bake("--base", folder / BASE[1], "--lora", f"{folder / LORA}=0.5", "-o", folder / "out.safetensors")
    b.recipe(folder, base=str(folder / BASE[1]), loras=[{"path": str(folder / LORA), "strength": 0.5}])
    bake("recipe.yaml", "-o", "again.safetensors")
    assert same("out.safetensors", "again.safetensors")


def test_a_recipe_with_changes_can_be_kept(folder: Path) -> None:
    b.recipe(folder / "recipes", base=f"../{BASE[1]}", loras=[f"../{LORA}"], output={"path": "../out.safetensors"})
    changed = ("--set", "loras.0.strength=0.5", "--set", "output.dtype=float32", "--save-recipe", "kept.yaml")
    bake("recipes/recipe.yaml", *changed, "-o", "new.safetensors")
    kept = load_recipe("kept.yaml")
    assert (kept.base.path, kept.loras[0].path, kept.output.path) == (BASE[1], LORA, "new.safetensors")
    bake("kept.yaml", "-o", "again.safetensors")
    assert same("new.safetensors", "again.safetensors")


def test_nothing_is_kept_of_a_bake_that_fails(folder: Path) -> None:
    with pytest.raises(LorabakeError):
        bake(*BASE, "--lora", "models/none.safetensors", "-o", "out.safetensors", "--save-recipe", "kept.yaml")
    Path("out.safetensors").write_bytes(b"mine")
    with pytest.raises(LorabakeError, match="exists"):
        bake(*BASE, "--lora", LORA, "-o", "out.safetensors", "--save-recipe", "kept.yaml")
    assert not Path("kept.yaml").exists()


# -- the other commands ----------------------------------------------------------------------------------


def test_a_bake_without_yaml_is_planned_and_verified_by_the_same_options(folder: Path) -> None:
    options = (*BASE, "--lora", f"{LORA}=0.8", "--set", "loras.0.components=[unet]", "-o", "out.safetensors")
    planned = json.loads(run("plan", *options, "--json"))
    assert [lora["applied"] for lora in planned["loras"]] == [9]
    bake(*options)
    assert "Verified" in run("verify", *options)
    assert "Verified" in run("verify", "out.safetensors")
    assert "Verified" in run("verify", "out.safetensors", *options[:-2])


def test_plan_keeps_a_recipe_too(folder: Path) -> None:
    run("plan", *BASE, "--lora", LORA, "-o", "out.safetensors", "--save-recipe", "kept.yaml")
    said = Options(None, (BASE[1],), (LORA,), output=Path("out.safetensors")).recipe()
    kept = load_recipe("kept.yaml")
    assert (kept.normal_json(), kept.output, kept.text) == (said.normal_json(), said.output, said.text)


def test_verify_can_change_what_a_header_says(folder: Path) -> None:
    bake(*BASE, "--lora", LORA, "-o", "out.safetensors")
    away = folder / "away"
    away.mkdir()
    (folder / LORA).rename(away / "lora.safetensors")
    read = embedded_recipe(
        Path("out.safetensors"), changes=["loras.0=away/lora.safetensors", "verify.prompts=[a cat]"]
    )
    assert read.locate(read.loras[0].path) == away / "lora.safetensors"
    assert read.verify is not None
    assert read.verify.prompts == ("a cat",)
    with pytest.raises(RecipeError, match=r"--set loras.0.strength=x: strength must be a number"):
        embedded_recipe(Path("out.safetensors"), changes=["loras.0.strength=x"])


def test_a_report_shows_the_recipe_that_options_stand_for(folder: Path) -> None:
    bake(*BASE, "--lora", LORA, "-o", "out.safetensors")
    options = (*BASE, "--lora", LORA, "-o", "out.safetensors", "--stage", "structure", "--json")
    shown = json.loads(run("verify", *options))["recipe"]["text"]
    assert parse_recipe(shown, folder).base.path == BASE[1]


# -- --set -----------------------------------------------------------------------------------------------

TEXT = "version: 1\nbase: b\nloras: [x, {path: y, strength: {unet: 1}}]\noutput: {path: o}\n"


def changed(*changes: str, here: str = "/models", text: str = TEXT) -> Recipe:
    folder = Path("/models")
    return recipe_of(
        with_changes(read_values(text, "recipe.yaml"), map(read_change, changes), Path(here), folder), folder
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("loras.0.strength=0.6", TEXT.replace("x,", "{path: x, strength: 0.6},")),
        (" loras.0.strength = -1e-3 ", TEXT.replace("x,", "{path: x, strength: -0.001},")),
        ("loras.1.strength.unet=2", TEXT.replace("unet: 1", "unet: 2")),
        ("loras.1.strength.vae=2", TEXT.replace("unet: 1", "unet: 1, vae: 2")),
        ("loras.1.strength=1", TEXT.replace("{unet: 1}", "1")),
        ("loras.0.blocks.up_blocks.0.*=.5", TEXT.replace("x,", "{path: x, blocks: {up_blocks.0.*: .5}},")),
        ('loras.0.ignore=["*.a", b]', TEXT.replace("x,", '{path: x, ignore: ["*.a", b]},')),
        ("loras.0=z: # 1", TEXT.replace("x,", '"z: # 1",')),
        ("loras=[z]", TEXT.replace("[x,", "[z] #")),
        ("base=1", TEXT.replace("base: b", "base: 1")),
        ('base="1"', TEXT.replace("base: b", 'base: "1"')),
        ("base.variant=fp16", TEXT.replace("base: b", "base: {path: b, variant: fp16}")),
        ("output.dtype=bfloat16", TEXT.replace("path: o", "path: o, dtype: bfloat16")),
        ("output.dtype.unet=bfloat16", TEXT.replace("path: o", "path: o, dtype: {unet: bfloat16}")),
        ("output.hash=false", TEXT.replace("path: o", "path: o, hash: false")),
        ("method={name: svd, rank: 4}", f"{TEXT}method: {{name: svd, rank: 4}}"),
        ("verify.prompts=[a cat]", f"{TEXT}verify: {{prompts: [a cat]}}"),
        ("vae=null", TEXT + "vae: null"),
    ],
)
def test_a_change_is_as_if_the_recipe_said_so(change: str, text: str) -> None:
    def outcome(make: Any) -> object:
        try:
            return make()
        except RecipeError as error:
            return [line.partition(": ")[2] for line in error.lines]

    assert outcome(lambda: changed(change)) == outcome(lambda: parse_recipe(text, Path("/models")))


def test_a_part_can_be_set_after_its_whole() -> None:
    recipe = changed("method=ties", "method.density=0.5", "verify.prompts=[a]", "verify.prompts.0=b")
    assert (recipe.method.name, recipe.method.density) == ("ties", 0.5)
    assert recipe.verify is not None
    assert recipe.verify.prompts == ("b",)


def test_faults_of_the_file_and_of_changes_come_together() -> None:
    with pytest.raises(RecipeError) as caught:
        changed("loras.0.strength=x", text=TEXT.replace("{unet: 1}", "y"))
    assert [line.partition(": strength")[0] for line in caught.value.lines] == [
        "--set loras.0.strength=x",
        "recipe.yaml:3:32",
    ]


def test_a_long_change_is_shown_in_short() -> None:
    with pytest.raises(RecipeError, match=r"^--set base.a{70}.*…: unknown key"):
        changed(f"base.{'a' * 5000}=1")


# -- paths -----------------------------------------------------------------------------------------------


def test_paths_of_options_start_from_the_current_folder() -> None:
    recipe = changed("base=b.safetensors", "loras.1={path: l}", "verify={prompts: [p], config: ../c}", here="/work")
    assert recipe.base.path == "../work/b.safetensors"
    assert [lora.path for lora in recipe.loras] == ["x", "../work/l"]
    assert recipe.verify is not None
    assert (recipe.verify.config, recipe.verify.prompts) == ("../c", ("p",))


def test_a_way_over_a_link_becomes_absolute(tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    assert moved("a", tmp_path, tmp_path / "link") == str(tmp_path / "a")
    assert moved("a", tmp_path, tmp_path / "far" / "away") == "../../a"
    assert moved("a", tmp_path / "link", tmp_path / "far" / "away") == "a"


@pytest.mark.parametrize("path", ["/a", "~/a", "https://host/a", "", " ", "a\0b"])
def test_what_is_no_relative_path_stays(path: str) -> None:
    assert moved(path, Path("/models"), Path("/work")) == path


def test_every_path_of_the_grammar_is_known_as_one() -> None:
    def paths(node: Any, place: tuple[str | int, ...]) -> Any:
        node = {**schema["$defs"][node["$ref"].rpartition("/")[2]], **node} if "$ref" in node else node
        if node.get("pattern") == FILE:
            yield place
        for name, inside in node.get("properties", {}).items():
            yield from paths(inside, (*place, name))
        for inside in node.get("anyOf", []):
            yield from paths(inside, place)
        if isinstance(node.get("items"), dict):
            yield from paths(node["items"], (*place, 0))

    schema: Any = recipe_schema()
    told = {*paths(schema, ())}
    assert {("base",), ("loras", 0, "path"), ("vae", "path"), ("output", "path"), ("verify", "config")} <= told
    assert all(map(is_path, told))
    others = [
        ("version",),
        ("loras",),
        ("loras", 0, "strength"),
        ("verify", "prompts", 0),
        ("method",),
        ("base", "variant"),
    ]
    assert not any(map(is_path, others))


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("loras.0.strength", ["loras", "0", "strength"]),
        ("loras.0.blocks.up.0.*", ["loras", "0", "blocks", "up.0.*"]),
        ("verify.prompts.0", ["verify", "prompts", "0"]),
        ("output.dtype.unet", ["output", "dtype", "unet"]),
        ("no.such.key", ["no", "such.key"]),
    ],
)
def test_parts_of_keys(key: str, parts: list[str]) -> None:
    assert parts_of(key) == parts


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has names that are not UTF-8")
def test_names_that_are_not_utf8_are_refused() -> None:
    name = os.fsdecode(b"l\xff")
    for options in (
        Options(None, ("b",), (name,), output=Path("o")),
        Options(None, ("b",), ("l",), output=Path(name)),
        Options(None, ("b",), ("l",), (f"vae={name}",), Path("o")),
    ):
        with pytest.raises(RecipeError, match="is not UTF-8: rename the file"):
            options.recipe()
    with pytest.raises(RecipeError, match="base must be text in UTF-8"):
        recipe_of(values_of({"version": 1, "base": name, "output": {"path": "o"}}, "recipe"), Path("/models"))


# -- whatever is written -------------------------------------------------------------------------------------

WORDS = (
    "base loras vae output verify method path strength blocks dtype prompts unet x . .. 0 1 -1 = == : , 0.5 1e999 { }"
)
SIGNS = "[ ] \" ' # ~ / - :// &a *a !!str null true é <lora:x:1>"
SNIPPETS = st.sampled_from([*WORDS.split(), *SIGNS.split(), " ", "\x00", "\n", "\ud800", "9" * 5000, "[" * 100])
TEXTS = st.lists(SNIPPETS, max_size=8).map("".join)
CHANGES = st.builds(
    "{}={}".format,
    st.lists(st.sampled_from(["base", "loras", "0", "1", "path", "strength", "verify", "output", "dtype", "x"])).map(
        ".".join
    ),
    TEXTS,
)


@given(TEXTS, st.lists(TEXTS, max_size=2), st.lists(CHANGES | TEXTS, max_size=3), st.booleans())
@settings(max_examples=400, deadline=None)
def test_whatever_options_say_is_a_recipe_or_one_error(
    base: str, loras: list[str], changes: list[str], is_saved: bool
) -> None:
    save = Path("/nowhere/kept.yaml") if is_saved else None
    options = Options(None, (base,), tuple(loras), tuple(changes), Path("out.safetensors"), save)
    try:
        recipe = options.recipe()
    except RecipeError:
        return
    assert recipe.text is not None
    kept = parse_recipe(recipe.text, recipe.folder)
    assert (kept.normal_json(), kept.verify, kept.output) == (recipe.normal_json(), recipe.verify, recipe.output)


# -- the text --------------------------------------------------------------------------------------------

NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=12
) | st.sampled_from(
    [
        "1e3",
        "0o17",
        "0x1F",
        "yes",
        "null",
        "~",
        ".inf",
        "12:30",
        "a: b",
        "a #b",
        "- a",
        "C:\\models",
        "",
        "=",
        "<<",
        "1_0",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | NAMES,
    lambda inside: st.lists(inside, max_size=3).map(tuple) | st.dictionaries(NAMES, inside, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["base", "loras", "verify"]), VALUES, min_size=1))
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_read_as_it_was(data: dict[str, object]) -> None:
    text = written(data)
    assert read_values(text, "recipe.yaml").data == data
    assert yaml.safe_load(text).keys() == data.keys()
