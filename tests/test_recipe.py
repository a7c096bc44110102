"""The recipe: its grammar, its normal form, and the exact message for every way to get it wrong."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabake.errors import ArgumentError, RecipeError, SurroundingsError
from lorabake.recipe import (
    MAX_BYTES,
    Base,
    Lora,
    Recipe,
    load_recipe,
    parse_recipe,
    recipe_of,
    recipe_schema,
    values_of,
)

BAD = sorted((Path(__file__).parent / "recipes" / "bad").glob("*.yaml"))
FOLDER = Path("/models")
SHA256 = "0123456789abcdef" * 4

SAVE = "Save the recipe as UTF-8: in Notepad by Save as, Encoding; in PowerShell by Set-Content -Encoding utf8."
SHORTEST = """\
A recipe has at least these four keys:
    version: 1
    base: model.safetensors
    loras: [style.safetensors]
    output: {path: baked.safetensors}"""
MANY = "more than 10000 values, counting what aliases repeat"

SHORT = """\
version: 1
base: base.safetensors
loras:
  - style.safetensors
output:
  path: out.safetensors
"""

FULL = f"""\
# yaml-language-server: $schema=recipe.schema.json
version: 1
base: {{path: base, sha256: {SHA256.upper()}, variant: fp16}}
loras:
  - style.safetensors
  - path: sub/character.safetensors
    sha256: {SHA256}
    strength: {{unet: 0.6, text_encoder: -1}}
    blocks: {{"up_blocks.*": .5, "down_blocks.*": 1e-3, "*": 2}}
    components: [unet, text_encoder]
    ignore: ["*.k_img", reward_head]
    trained_on: flux
vae: /models/vae.safetensors
compute_dtype: float64
output:
  path: out.safetensors
  dtype: {{vae: float32, unet: float16}}
  hash: false
  shard_size: 2GiB
verify:
  prompts: ["a portrait of a knight", a tree]
  negative_prompt: ""
  seed: 7
  steps: 20
  size: [512, 768]
  guidance: 7
"""


def parse(text: str) -> Recipe:
    return parse_recipe(text, FOLDER)


def message(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    return str(caught.value)


def with_strength(written: str) -> str:
    return SHORT.replace("- style.safetensors", f"- {{path: style.safetensors, strength: {written}}}")


class TestGrammar:
    def test_short_recipe_gets_defaults(self) -> None:
        recipe = parse(SHORT)
        assert recipe.base == Base(path="base.safetensors")
        assert recipe.loras == (Lora(path="style.safetensors", strength=1.0),)
        assert recipe.vae is None
        assert recipe.compute_dtype == "float32"
        assert (recipe.output.dtype, recipe.output.hash, recipe.output.shard_size) == ("keep", True, None)
        assert recipe.verify is None

    def test_full_recipe(self) -> None:
        recipe = parse(FULL)
        assert recipe.base == Base(path="base", sha256=SHA256, variant="fp16")
        assert recipe.loras[1] == Lora(
            path="sub/character.safetensors",
            sha256=SHA256,
            strength={"unet": 0.6, "text_encoder": -1.0},
            blocks={"up_blocks.*": 0.5, "down_blocks.*": 0.001, "*": 2.0},
            components=("unet", "text_encoder"),
            ignore=("*.k_img", "reward_head"),
            trained_on="flux",
        )
        assert recipe.vae is not None
        assert recipe.vae.path == "/models/vae.safetensors"
        assert recipe.output.dtype == {"vae": "float32", "unet": "float16"}
        assert recipe.output.shard_size == 2 << 30
        assert recipe.verify is not None
        assert recipe.verify.prompts == ("a portrait of a knight", "a tree")
        assert recipe.verify.size == (512, 768)
        assert recipe.verify.guidance == 7.0

    def test_order_of_blocks_is_kept(self) -> None:
        assert list(parse(FULL).loras[1].blocks) == ["up_blocks.*", "down_blocks.*", "*"]

    def test_byte_order_mark_and_crlf_are_allowed(self) -> None:
        assert parse("\ufeff" + SHORT.replace("\n", "\r\n")) == parse(SHORT)

    def test_aliases_are_allowed(self) -> None:
        recipe = parse(SHORT.replace("base: base", "base: &name base").replace("style.safetensors", "*name"))
        assert recipe.loras[0].path == recipe.base.path

    @pytest.mark.parametrize("extra", ["vae: vae.safetensors", "loras: [style.safetensors]"])
    def test_a_reason_to_bake(self, extra: str) -> None:
        parse(f"version: 1\nbase: base.safetensors\noutput: {{path: out.safetensors}}\n{extra}")

    def test_converting_is_a_reason_to_bake(self) -> None:
        assert parse("version: 1\nbase: base\noutput: {path: out, dtype: bfloat16}").loras == ()

    @pytest.mark.parametrize(
        ("written", "size"),
        [
            ("1", 1),
            ("5GB", 5 * 10**9),
            ("500MB", 5 * 10**8),
            ("2GiB", 2 << 30),
            ("3KiB", 3072),
            ("1TB", 10**12),
        ],
    )
    def test_shard_size(self, written: str, size: int) -> None:
        assert parse(SHORT + f"  shard_size: {written}").output.shard_size == size

    @pytest.mark.parametrize(("written", "size"), [("512", (512, 512)), ("[640, 480]", (640, 480)), ("null", None)])
    def test_picture_size(self, written: str, size: object) -> None:
        verify = parse(SHORT + f"verify: {{prompts: [a], size: {written}}}").verify
        assert verify is not None
        assert verify.size == size

    @pytest.mark.parametrize("size", ["0", "[0, 8]", "[8]", "[8, 8, 8]", "true", "[true, 8]", "8.0", "{}"])
    def test_bad_picture_size(self, size: str) -> None:
        assert "[width, height]" in message(SHORT + f"verify: {{prompts: [a], size: {size}}}")

    def test_recipes_are_frozen(self) -> None:
        with pytest.raises(ArgumentError, match=r"change\(recipe, {'output.path': 'other'}\)"):
            parse(SHORT).output.path = "other"
        with pytest.raises(ArgumentError, match="its strength cannot be removed"):
            del parse(SHORT).loras[0].strength


class TestScalars:
    """YAML 1.2's core schema, seen through the strength of a LoRA."""

    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ("1", 1.0),
            ("+1", 1.0),
            ("-0", 0.0),
            ("012", 12.0),
            ("0o14", 12.0),
            ("0x1F", 31.0),
            ("1e-3", 0.001),
            ("1E3", 1000.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("-.5e+1", -5.0),
            ("9" * 30, 1e30),
            ("9" * 300, 1e300),
            ("5e-324", 5e-324),
        ],
    )
    def test_numbers(self, written: str, value: float) -> None:
        assert parse(with_strength(written)).loras[0].strength == value

    @pytest.mark.parametrize(
        "written",
        [
            "yes",
            "no",
            "on",
            "off",
            "y",
            "12:30",
            "1_000",
            "2024-01-01",
            "0b1",
            "1e",
            ".",
            "0o8",
            "tRUE",
            "'1'",
            "١",
        ],
    )
    def test_text(self, written: str) -> None:
        assert "found the text" in message(with_strength(written))

    @pytest.mark.parametrize("written", ["true", "False", "null", "~", ".nan", ".NaN", ".inf", "-.INF", "1e999"])
    def test_no_numbers_either(self, written: str) -> None:
        assert "strength must be a" in message(with_strength(written))

    @pytest.mark.parametrize("path", ["yes", "12:30", "2024-01-01", "1e", "=", "C:\\loras\\a", "~/a", "a b.c"])
    def test_unquoted_paths(self, path: str) -> None:
        assert parse(SHORT.replace("style.safetensors", path)).loras[0].path == path


class TestFaults:
    @pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
    def test_message(self, file: Path) -> None:
        lines = file.read_bytes().decode().split("\n")
        expected = [line.removeprefix("# expect: ") for line in lines if line.startswith("# expect: ")]
        start = time.perf_counter()
        with pytest.raises(RecipeError) as caught:
            load_recipe(file)
        assert time.perf_counter() - start < 1
        assert str(caught.value) == "\n".join(expected).replace("{file}", str(file))

    def test_there_are_bad_recipes(self) -> None:
        assert len(BAD) > 35

    def test_missing_file(self, tmp_path: Path) -> None:
        self.check(tmp_path / "none.yaml", ": no such file")

    def test_folder(self, tmp_path: Path) -> None:
        self.check(tmp_path, ": is a folder, not a recipe\nGive the recipe, a YAML file, which may name this folder.")

    def test_path_with_nul(self) -> None:
        with pytest.raises(ArgumentError, match="path must be the path of a file or a folder"):
            load_recipe(Path("a\0b"))

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, tmp_path: Path) -> None:
        file = tmp_path / "recipe.yaml"
        file.write_text(SHORT)
        file.chmod(0)
        self.check(file, ": no permission to read it", SurroundingsError)

    def test_too_large(self, tmp_path: Path) -> None:
        file = tmp_path / "recipe.yaml"
        file.write_text(SHORT + "#" * MAX_BYTES)
        self.check(file, ": larger than 1048576 bytes, so it is hardly a recipe")

    @pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "\ufeff"])
    def test_empty(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        self.check(file, f":1:1: the recipe is empty\n{SHORTEST}")

    def test_not_utf8(self, tmp_path: Path) -> None:
        file = tmp_path / "recipe.yaml"
        file.write_bytes("version: 1\nbäse: é".encode() + b"\xff")
        self.check(file, f":2:8: not UTF-8: byte 0xff at offset 20\n{SAVE}")

    def test_utf16(self, tmp_path: Path) -> None:
        file = tmp_path / "recipe.yaml"
        file.write_bytes(SHORT.encode("utf-16-le"))
        remove = "Remove it. If there are many, save the recipe as UTF-8 text."
        self.check(file, f":1:2: the character U+0000 is not allowed\n{remove}")

    def test_utf16_with_its_mark(self, tmp_path: Path) -> None:
        file = tmp_path / "recipe.yaml"
        file.write_bytes(SHORT.encode("utf-16"))
        self.check(file, f": is a text in UTF-16, and a recipe is one in UTF-8\n{SAVE}")

    def test_too_many_values(self) -> None:
        assert message("x: [" + "1, " * 10_001 + "]").splitlines()[0].endswith(MANY)

    def test_chain_of_aliases(self) -> None:
        chain = "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 5000))
        assert MANY in message("a0: &a0 x\n" + chain)

    def test_long_text_is_cut(self) -> None:
        assert len(message(SHORT.replace("1", "x" * 9999))) < 200

    def test_every_line_names_the_file(self) -> None:
        text = "version: 2\nbase:\nloras: x\noutput: 1\n"
        for line, (row, column) in zip(message(text).split("\n"), [(1, 10), (2, 6), (3, 8), (4, 9)], strict=True):
            assert line.startswith(f"recipe:{row}:{column}: ")

    @staticmethod
    def check(path: Path, expected: str, error: type[Exception] = RecipeError) -> None:
        with pytest.raises(error) as caught:
            load_recipe(path)
        assert str(caught.value) == f"{path}{expected}"


class TestPlaces:
    def test_paths_are_relative_to_the_recipe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "recipe.yaml").write_text(SHORT)
        monkeypatch.chdir(tmp_path)
        recipe = load_recipe("sub/recipe.yaml")
        monkeypatch.chdir("/")
        assert recipe.folder == tmp_path / "sub"
        assert recipe.file == tmp_path / "sub" / "recipe.yaml"
        assert recipe.locate(recipe.base.path) == tmp_path / "sub" / "base.safetensors"
        assert recipe.locate("/elsewhere/a") == Path("/elsewhere/a")
        assert recipe.locate("~/$HOME") == Path.home() / "$HOME"
        assert recipe.locate("./~") == tmp_path / "sub" / "~"

    def test_text_has_no_file(self) -> None:
        assert parse(SHORT).file is None
        assert parse(SHORT).folder == FOLDER


class TestNormalForm:
    def test_short(self) -> None:
        assert parse(SHORT).normal_form() == {
            "base": {"path": "base.safetensors", "sha256": None, "variant": None},
            "compute_dtype": "float32",
            "loras": [
                {
                    "blocks": [],
                    "components": None,
                    "path": "style.safetensors",
                    "sha256": None,
                    "strength": 1.0,
                }
            ],
            "output": {"dtype": "keep", "hash": True, "shard_size": None},
            "vae": None,
            "version": 1,
        }

    def test_json_is_the_form(self) -> None:
        recipe = parse(FULL)
        text = recipe.normal_json()
        assert json.loads(text) == recipe.normal_form()
        assert text == json.dumps(recipe.normal_form(), separators=(",", ":"), ensure_ascii=False)
        assert '"blocks":[["up_blocks.*",0.5],["down_blocks.*",0.001],["*",2.0]]' in text
        assert '"vae":{"path":"vae.safetensors","sha256":null}' in text

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("out.safetensors", "elsewhere/other.safetensors"),
            ("/models/vae", "/mnt/disk/vae"),
            ("2GiB", "2147483648"),
            ("- style.safetensors", "- {path: ./style.safetensors, strength: 1}"),
            ("text_encoder: -1", "text_encoder: -1.0"),
            ("[unet, text_encoder]", "[text_encoder, unet]"),
            ('["*.k_img", reward_head]', '[reward_head, "*.k_img", reward_head]'),
            ("seed: 7", "seed: 8"),
            (SHA256.upper(), SHA256),
        ],
    )
    def test_what_does_not_matter(self, old: str, new: str) -> None:
        assert old in FULL
        assert parse(FULL.replace(old, new)).normal_json() == parse(FULL).normal_json()

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"up_blocks.*": .5, "down_blocks.*": 1e-3', '"down_blocks.*": 1e-3, "up_blocks.*": .5'),
            ("unet: 0.6", "unet: 0.60000000000000009"),
            ("hash: false", "hash: true"),
            ("float64", "float32"),
            ("components: [unet, text_encoder]", "components: [unet]"),
            ('ignore: ["*.k_img", reward_head]', "ignore: [reward_head]"),
            ("trained_on: flux", "trained_on: chroma"),
            ("variant: fp16", "variant: fp32"),
            ("2GiB", "2GB"),
        ],
    )
    def test_what_matters(self, old: str, new: str) -> None:
        assert old in FULL
        assert parse(FULL.replace(old, new)).normal_json() != parse(FULL).normal_json()


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20
).filter(str.strip)
PATHS = NAMES.filter(lambda path: bool(Path(path).name.strip()))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
DTYPES = st.sampled_from(["keep", "float32", "float16", "bfloat16"])
DIGESTS = st.none() | st.just(SHA256)


def mappings(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.dictionaries(NAMES, values, min_size=1, max_size=4)


LORAS = PATHS | st.fixed_dictionaries(
    {"path": PATHS},
    optional={
        "sha256": DIGESTS,
        "strength": NUMBERS | mappings(NUMBERS),
        "blocks": mappings(NUMBERS),
        "components": st.lists(NAMES, min_size=1, max_size=3),
        "ignore": st.lists(NAMES, min_size=1, max_size=3),
        "trained_on": NAMES,
    },
)
RECIPES = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "base": PATHS | st.fixed_dictionaries({"path": PATHS}, optional={"sha256": DIGESTS, "variant": NAMES}),
        "loras": st.lists(LORAS, min_size=1, max_size=3),
        "output": st.fixed_dictionaries(
            {"path": PATHS},
            optional={
                "dtype": DTYPES | mappings(DTYPES),
                "hash": st.booleans(),
                "shard_size": st.none() | st.integers(1, 10**15) | st.sampled_from(["5GB", "2GiB"]),
            },
        ),
    },
    optional={
        "vae": st.none() | PATHS | st.fixed_dictionaries({"path": PATHS}, optional={"sha256": DIGESTS}),
        "compute_dtype": st.sampled_from(["float32", "float64"]),
        "verify": st.fixed_dictionaries(
            {"prompts": st.lists(NAMES, min_size=1, max_size=2)},
            optional={
                "negative_prompt": st.just("") | NAMES,
                "seed": st.integers(0, 2**64),
                "steps": st.integers(1, 100),
                "size": st.integers(1, 2048) | st.lists(st.integers(1, 2048), min_size=2, max_size=2),
                "guidance": st.floats(0, 100),
            },
        ),
    },
)


def shuffled(value: object) -> object:
    """Reverse the order of keys wherever it has no meaning."""
    match value:
        case dict():
            return {key: value[key] if key == "blocks" else shuffled(value[key]) for key in reversed(list(value))}
        case list():
            return [shuffled(item) for item in value]
    return value


@st.composite
def near_misses(draw: st.DrawFn) -> str:
    """Damage a good recipe's text in a few places."""
    text = draw(st.sampled_from([SHORT, FULL]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = start + draw(st.integers(0, 5))
        junk = draw(st.text(":-?[]{},&*!|>'\"%@`#~<=. \n\t\\0x1eU\ud800\x85\u2028\ufeff", max_size=6))
        text = text[:start] + junk + text[stop:]
    return text


class TestProperties:
    @settings(deadline=None)
    @given(st.text() | st.text(":-?[]{},&*!|>'\"%@`#~<=. \n\t\\0x1eUab") | near_misses())
    def test_any_text_is_a_recipe_or_a_recipe_error(self, text: str) -> None:
        try:
            parse(text).normal_json().encode()
        except RecipeError as error:
            first, *rest = str(error).split("\n")
            example = "".join(f"\n{line}" for line in rest[1:])
            has_advice = rest and re.match("[A-Z]", rest[0]) and (not example or f"{rest[0]}{example}" == SHORTEST)
            for line in [first] if has_advice else [first, *rest]:
                assert re.match(r"recipe:[1-9]\d*:[1-9]\d*: .", line)

    @settings(deadline=None)
    @given(RECIPES)
    def test_strengths_are_exact(self, data: dict[str, list[object]]) -> None:
        for lora, written in zip(parse(yaml_text(data)).loras, data["loras"], strict=True):
            strength = written.get("strength", 1.0) if isinstance(written, dict) else 1.0
            assert repr(lora.strength) == repr(strength)

    @settings(deadline=None)
    @given(RECIPES)
    def test_normal_form_is_a_fixed_point(self, data: object) -> None:
        recipe = parse(yaml_text(data))
        form = json.loads(recipe.normal_json())
        for lora in form["loras"]:
            lora["blocks"] = dict(lora["blocks"])
        form["output"]["path"] = "again.safetensors"
        assert parse(yaml_text(form)).normal_json() == recipe.normal_json()

    @settings(deadline=None)
    @given(RECIPES, PATHS)
    def test_normal_form_ignores_key_order_folder_and_output_path(
        self, data: dict[str, dict[str, object]], path: str
    ) -> None:
        form = parse(yaml_text(data)).normal_json()
        other = shuffled({**data, "output": {**data["output"], "path": path}})
        assert parse_recipe(yaml_text(other), Path("/elsewhere")).normal_json() == form


def yaml_text(data: object) -> str:
    """Write JSON with YAML's long escapes: JSON's surrogate pairs are none in YAML."""
    text = json.dumps(data, ensure_ascii=False, indent=1)
    return re.sub(r"[^ -~\n]", lambda character: f"\\U{ord(character[0]):08x}", text)


class TestSchema:
    def test_identity(self) -> None:
        schema = recipe_schema()
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["$id"] == "urn:lorabake:recipe:1"
        assert json.loads(json.dumps(schema)) == schema

    def test_every_field_is_described_and_no_other_allowed(self) -> None:
        schema = recipe_schema()
        defined = schema["$defs"].values()  # type: ignore[attr-defined]
        objects = [schema, *(record for record in defined if record["type"] == "object")]
        assert len(objects) == 8
        for part in objects:
            assert part["additionalProperties"] is False
            assert part["title"]
            for field in part["properties"].values():
                assert field["description"].endswith(".")

    def test_agrees_with_the_parser(self) -> None:
        jsonschema = pytest.importorskip("jsonschema")
        jsonschema.Draft202012Validator.check_schema(recipe_schema())
        validator = jsonschema.Draft202012Validator(recipe_schema())
        for text in (SHORT, FULL):
            validator.validate(yaml.safe_load(text.replace("1e-3", "0.001")))
        names = [
            file
            for file in BAD
            if re.match(r"unknown|missing|strength-(text|true|null|list|empty|comp)|dtype|hash|shard|sha", file.stem)
        ]
        assert len(names) > 15
        for file in names:
            data = yaml.safe_load(file.read_text().replace(": yes", ": 'yes'"))
            if file.stem != "shard-size-zero":
                assert not validator.is_valid(data), file.stem


def test_import_is_light() -> None:
    script = "import sys, lorabake.recipe; print([m for m in ('torch', 'numpy', 'click') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_negative_zero_survives() -> None:
    strength = parse(with_strength("-0.0")).loras[0].strength
    assert isinstance(strength, float)
    assert math.copysign(1, strength) == -1


# -- Python's own values -------------------------------------------------------------------------------


def test_python_values_make_the_same_recipe() -> None:
    data = {
        "version": 1,
        "base": Path("base.safetensors"),
        "loras": ["style.safetensors"],
        "output": {"path": "out.safetensors"},
    }
    assert recipe_of(values_of(data, "recipe"), FOLDER) == parse_recipe(SHORT, FOLDER)


def test_faults_in_python_values_name_their_spot() -> None:
    data = {"version": 1, "base": "b", "loras": ["a", {"path": "c", "strenght": 1, 7: 2}], "output": {"path": "o"}}
    with pytest.raises(RecipeError) as caught:
        recipe_of(values_of(data, "recipe"), FOLDER)
    assert [*caught.value.lines] == [
        'recipe["loras"][1]: a key must be text, found the number 7; write it in quotes',
        """recipe["loras"][1]["strenght"]: unknown key 'strenght', did you mean 'strength'?""",
    ]


def test_endless_python_values_are_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(RecipeError, match="nested more than 64 deep"):
        recipe_of(values_of(endless, "recipe"), FOLDER)
