"""lorabake in Python and in notebooks: what is public, what it takes, and how its results show themselves."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import inspect
import re
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from pydantic import BaseModel

import lorabake
from lorabake.errors import ArgumentError, LorabakeError, RecipeError
from lorabake.notebook import MOST_ROWS, Table, card
from lorabake.recipe import Lora, Output, Recipe, Verify, load_recipe, parse_recipe
from lorabake.recipe.given import recipe_given
from lorabake.results import BakeResult
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Finding, PromptSample, Status, Verification
from tests import builders

HOSTILE = '<img src=x onerror="alert(1)">&\u202e'
ELEMENTS = {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
MOST = 1000
"""Most letters that any object may show of itself."""


@dataclasses.dataclass(frozen=True)
class Baked:
    """Hold a tiny bake, and what its verification found."""

    folder: Path
    recipe: Recipe
    result: BakeResult
    verification: Verification


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Baked:
    folder = tmp_path_factory.mktemp("python")
    builders.save(folder / "base.safetensors", builders.sd1())
    builders.sd1_lora(folder / f"{HOSTILE}.safetensors")
    path = builders.recipe(folder, loras=[f"{HOSTILE}.safetensors"], output={"dtype": "bfloat16", "allow_loss": True})
    result, recipe = builders.run(path), load_recipe(path)
    return Baked(folder, recipe, result, verify(recipe, None, VerifyOptions(stages=("structure", "weights"))))


# -- short forms -----------------------------------------------------------------------------------------


def below(value: object, seen: dict[int, object]) -> Iterator[object]:
    """Yield every object of lorabake's that hangs below a value."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    if type(value).__module__.startswith("lorabake"):
        yield value
    parts: list[object] = []
    if dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, BaseModel):
        parts = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, (tuple, list, set, frozenset)):
        parts = [*value]
    for part in parts:
        yield from below(part, seen)


def test_everything_shows_itself_in_a_few_letters(baked: Baked) -> None:
    lengths: dict[str, int] = {}
    seen: dict[int, object] = {}
    for root in (baked.result, baked.verification, baked.recipe):
        for value in below(root, seen):
            name = type(value).__qualname__
            lengths[name] = max(lengths.get(name, 0), len(repr(value)), len(str(value)))
    assert {"BakeResult", "Plan", "Verification", "Recipe", "Checkpoint", "Step", "KeyMap"} <= lengths.keys()
    assert not {name: length for name, length in lengths.items() if length > MOST}


def test_short_forms_do_not_grow_with_what_they_hold() -> None:
    text = "x" * 5000
    values: list[object] = [
        Finding("weights.baked", Status.FAIL, text, text, text, text),
        PromptSample(text, 0, {}, {}),
        VerifyOptions(stages=("structure",)),
        Recipe.model_validate(
            {
                "version": 1,
                "base": {"path": text},
                "loras": ({"path": text, "blocks": {f"{number}": 1.0 for number in range(5000)}},),
                "output": {"path": text},
            }
        ),
    ]
    for value in [part for whole in values for part in below(whole, {})]:
        assert len(repr(value)) <= MOST
        assert len(str(value)) <= MOST or isinstance(value, str)


def test_short_forms_say_what_matters(baked: Baked) -> None:
    plan = baked.result.plan
    assert repr(baked.recipe) == "<Recipe 1 LoRA into 'base.safetensors': 'out.safetensors'>"
    assert re.fullmatch(r"<Plan 'out.safetensors' \([\d.]+ kB\): 1 LoRA; \d+ of \d+ tensors baked>", repr(plan))
    assert repr(baked.result).startswith(repr(plan).replace("Plan", "BakeResult")[:-1])
    assert re.search(r" in \d+\.\d s on cpu", repr(baked.result))
    assert re.fullmatch(r"<Verification Verified 'out.safetensors': \d+ pass.*>", repr(baked.verification))
    assert repr(plan.copies[0]).startswith("Copy(")
    assert "\n" not in repr(baked.verification.findings[0])


# -- cards in notebooks -----------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collect a card's elements, and check that they are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def cards(baked: Baked) -> dict[str, str]:
    shown = {"plan": baked.result.plan, "result": baked.result, "verification": baked.verification}
    return {name: value._repr_html_() for name, value in shown.items()}


@pytest.mark.parametrize("name", ["plan", "result", "verification"])
def test_a_card_is_html_in_which_no_name_is_obeyed(baked: Baked, name: str) -> None:
    html = cards(baked)[name]
    page = Page(html)
    assert {*page.elements} <= ELEMENTS
    assert HOSTILE[:-1] in page.text, "the name is told, as text"
    assert "\u202e" not in html


def test_cards_tell_the_ledger_and_the_verdict(baked: Baked) -> None:
    told = {name: Page(html).text for name, html in cards(baked).items()}
    (ledger,) = baked.result.plan.ledgers
    assert f"{ledger.applied} of {ledger.tensors}" in told["plan"]
    assert "survives" not in told["plan"]
    assert f"{ledger.applied} of {ledger.tensors}" in told["result"]
    assert "survives" in told["result"], "into bfloat16 a bake estimates what is kept"
    assert baked.result.data_sha256["out.safetensors"] in told["result"]
    assert told["verification"].startswith("Verified out.safetensors: ")
    assert "weights.baked" in told["verification"]


def test_a_failed_check_stands_before_those_that_passed(baked: Baked) -> None:
    failed = Finding("weights.baked", Status.FAIL, "conv.weight", "2", "1", "other values")
    html = dataclasses.replace(baked.verification, findings=(*baked.verification.findings, failed))._repr_html_()
    assert Page(html).text.startswith("Mismatch")
    assert html.index("conv.weight") < html.index("<details>")


def test_a_card_of_very_much_is_cut() -> None:
    html = card("Plan", "", [Table("all", ("key",), [("x" * 5000,)] * 5000), Table("none", ("key",), [])])
    assert html.count("<tr>") == 1 + MOST_ROWS
    assert "… and 4900 more" in html
    assert "none" not in html
    assert len(html) < 50_000


# -- what is public ---------------------------------------------------------------------------------------


def test_every_public_name_is_there_and_type_checkers_see_it() -> None:
    tree = ast.parse(Path(lorabake.__file__).read_text(encoding="utf-8"))
    checking = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = [
        (alias.name, node.module)
        for block in checking
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(name for name, _ in seen) == sorted(lorabake.__all__)
    assert {*lorabake.__all__, "__version__"} <= {*dir(lorabake)}
    for name, module in seen:
        assert getattr(lorabake, name) is getattr(sys.modules[module or ""], name), name
    assert (Path(lorabake.__file__).parent / "py.typed").exists()


def test_every_error_is_public() -> None:
    kinds = {name for name in lorabake.__all__ if name.endswith("Error")}
    assert kinds == {"LorabakeError", *(kind.__name__ for kind in LorabakeError.__subclasses__() if is_own(kind))}


def is_own(kind: type) -> bool:
    return kind.__module__ == "lorabake.errors"


def test_importing_lorabake_and_listing_it_imports_nothing_else() -> None:
    code = (
        "import sys, lorabake; dir(lorabake); lorabake.__all__;"
        "print([name for name in sys.modules if name.startswith('lorabake.') or name in ('pydantic', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", lorabake.__all__)
def test_every_public_name_has_a_docstring_of_its_own(name: str) -> None:
    told = inspect.getdoc(getattr(lorabake, name)) or ""
    assert told.split("\n")[0].endswith((".", ";", ":")) or "." in told
    assert not told.startswith(name), "a dataclass's own signature is no docstring"


INNER = {
    "LockedInput": {"files", "beside", "own"},
    "verify": {"recipe"},
    "Plan": {"sources", "files", "copies", "steps", "embeddings", "patches", "identity", "layout", "given"},
    "Learned": {"vectors"},
    "Recipe": {"wanted"},
    "Source": {"address"},
    "publish": {"steps"},  # what the command shows meanwhile
}
"""What the workings of a bake are made of: no caller needs their types."""


def hinted(public: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a function takes and returns, or what a class holds and what its methods give, with their types."""
    names = {"Plan": lorabake.Plan, "BaseModel": BaseModel, "Pixels": np.ndarray}
    if not isinstance(public, type):
        yield from typing.get_type_hints(inspect.unwrap(public), localns=names).items()
        return
    yield from typing.get_type_hints(public, localns=names).items()
    for name, value in vars(public).items():
        method = value.fget if isinstance(value, property) else value
        if not name.startswith("_") and inspect.isfunction(method) and not name.startswith("model_"):
            yield from ((name, kind) for kind in typing.get_type_hints(method, localns=names).values())


def own_types(kind: Any) -> Iterator[type]:
    """Yield the classes of lorabake's that a type is made of; a protocol is no class that anybody makes."""
    if isinstance(kind, type) and kind.__module__.startswith("lorabake") and not getattr(kind, "_is_protocol", False):
        yield kind
    for part in typing.get_args(kind):
        for inner in part if isinstance(part, list) else [part]:
            yield from own_types(inner)


@pytest.mark.parametrize("name", lorabake.__all__)
def test_every_type_that_a_public_name_takes_or_gives_is_public(name: str) -> None:
    hidden = {
        f"{part}: {kind.__qualname__}"
        for part, kinds in hinted(getattr(lorabake, name))
        if part not in INNER.get(name, set()) and not part.startswith("_")
        for kind in own_types(kinds)
        if getattr(lorabake, kind.__name__, None) is not kind
    }
    assert not hidden, "export it in lorabake/__init__.py, or say in INNER that no caller needs it"


def test_the_api_page_shows_every_public_name() -> None:
    page = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
    shown = re.findall(r"^::: lorabake\.(\w+)$", page, re.MULTILINE)
    assert sorted(shown) == sorted(lorabake.__all__)


@pytest.mark.parametrize("name", ["bake", "plan", "verify", "estimate", "fetch"])
def test_help_names_the_keywords_that_take_a_recipe_s_place(name: str) -> None:
    keys = [*lorabake.RecipeKeys.__annotations__]
    shown = inspect.signature(getattr(lorabake, name)).parameters
    assert [*shown][-len(keys) :] == keys
    assert {key for key in keys if f"`{key}`" not in (lorabake.plan.__doc__ or "")} == {"version"}


# -- the examples in docstrings ---------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with a recipe, its base and its LoRA."""
    builders.save(tmp_path / "base.safetensors", builders.sd1())
    builders.sd1_lora(tmp_path / "lora.safetensors")
    builders.recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examples() -> dict[str, doctest.DocTest]:
    """Return the examples of everything public, and of its methods."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found: dict[str, doctest.DocTest] = {}
    for name in lorabake.__all__:
        public = getattr(lorabake, name)
        for test in finder.find(
            public, name, module=types.ModuleType(public.__module__), globs={"lorabake": lorabake}
        ):
            if test.examples:
                found[test.name] = test
    return found


@pytest.mark.parametrize("name", sorted(examples()))
def test_examples_in_docstrings_are_true(workplace: Path, name: str) -> None:
    if name in ("verify", "verify_all", "write_report"):
        lorabake.bake("recipe.yaml")
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples()[name], out=report.append, clear_globs=False)
    assert not report, "".join(report)


def test_what_people_call_first_has_an_example() -> None:
    assert {
        *("bake", "plan", "estimate", "verify", "write_report", "inspect", "load_recipe", "change"),
        *("RunOptions", "VerifyOptions"),
    } <= examples().keys()


# -- three ways to give a recipe --------------------------------------------------------------------------


def test_a_file_a_mapping_and_keywords_bake_the_same_bytes(workplace: Path) -> None:
    options = lorabake.RunOptions(fsync=False)
    content: dict[str, Any] = {"version": 1, "base": "base.safetensors", "loras": ["lora.safetensors"]}
    ways = [
        lorabake.bake("recipe.yaml", options),
        lorabake.bake(Path("recipe.yaml"), options, output="b.safetensors"),
        lorabake.bake({**content, "output": {"path": "c.safetensors"}}, options),
        lorabake.bake(
            base=Path("base.safetensors"), loras=["lora.safetensors"], output="d.safetensors", options=options
        ),
        lorabake.bake(
            base="base.safetensors", loras={Path("lora.safetensors"): np.float32(1)}, output="e.safetensors"
        ),
        lorabake.bake(lorabake.plan({**content, "output": Path("f.safetensors")}), options),
    ]
    assert [way.path.name for way in ways] == [f"{name}.safetensors" for name in ("out", *"bcdef")]
    assert len({sha256 for way in ways for sha256 in way.data_sha256.values()}) == 1


def test_mappings_say_all_that_yaml_says(workplace: Path) -> None:
    given = recipe_of(
        base={"path": "base.safetensors"},
        loras={"lora.safetensors": {"strength": {"unet": np.float64(0.5), "text_encoder": 2}, "ignore": ["*.none"]}},
        method="sum",
        compute_dtype="float64",
        output={"path": "out.safetensors", "dtype": "float16", "hash": False},
    )
    (lora,) = given.loras
    assert lora.strength == {"unet": 0.5, "text_encoder": 2}
    assert lora.ignore == ("*.none",)
    assert given.output.dtype == "float16"
    assert not given.output.hash
    assert given.text is not None
    assert parse_recipe(given.text, workplace).model_dump() == given.model_dump()
    assert given.folder == workplace


def recipe_of(**keys: Any) -> Recipe:
    return recipe_given(None, keys)


def test_strengths_by_component_are_no_entry(workplace: Path) -> None:
    assert recipe_of(base="b", loras={"a": {"unet": 0.5}}, output="o").loras[0].strength == {"unet": 0.5}
    assert recipe_of(base="b", loras={"a": {"trained_on": "sd1"}}, output="o").loras[0].strength == 1
    assert [lora.path for lora in recipe_of(base="b", loras={"a": 1, "b": -2}, output="o").loras] == ["a", "b"]


def test_verify_takes_what_bake_took(workplace: Path) -> None:
    options = lorabake.VerifyOptions(
        stages=["structure"], samples=lorabake.SampleOptions(prompts=["a"], size=[64, 64])
    )
    plan = lorabake.plan("recipe.yaml", "other.safetensors")
    result = lorabake.bake(plan)
    keys: dict[str, Any] = {"base": "base.safetensors", "loras": ["lora.safetensors"]}
    for verification in (
        lorabake.verify("recipe.yaml", "other.safetensors", options),
        lorabake.verify("recipe.yaml", output="other.safetensors", options=options),
        lorabake.verify({**keys, "output": {"path": "other.safetensors"}}, options=options),
        lorabake.verify(**keys, output="other.safetensors", options=options),
        lorabake.verify(baked="other.safetensors", **keys, options=options),
        lorabake.verify(plan, options=options),
        lorabake.verify(result, options=options),
    ):
        assert verification.is_true
        assert verification.baked.name == "other.safetensors"
    with pytest.raises(lorabake.FileError, match="no such file"):
        lorabake.verify("recipe.yaml", options=options)


def test_lists_become_tuples_and_numbers_python_s_own() -> None:
    samples = lorabake.SampleOptions(
        prompts=["a", "b"],
        size=[64, 32],
        strengths=np.array([1.0, 0.5]),
        seed=np.int64(7),
        guidance=4,
        steps=np.int8(2),
    )
    assert samples.prompts == ("a", "b")
    assert samples.sides == (64, 32)
    assert samples.strengths == (0.5, 1.0)
    assert [type(value) for value in (samples.seed, samples.steps, samples.guidance)] == [int, int, float]
    assert lorabake.VerifyOptions(stages="weights").stages == ("weights",)
    assert lorabake.SampleOptions(size=64).sides == (64, 64)


# -- a baked file alone, what changes, what survives, reports ---------------------------------------------


def test_a_baked_file_is_verified_without_its_recipe(workplace: Path) -> None:
    options = lorabake.VerifyOptions(stages=["structure", "weights"])
    lorabake.bake("recipe.yaml")
    (workplace / "away").mkdir()
    (workplace / "out.safetensors").rename(workplace / "away" / "baked.safetensors")
    for verification in (
        lorabake.verify("away/baked.safetensors", options=options),
        lorabake.verify(baked=Path("away/baked.safetensors"), options=options),
        lorabake.verify("away/baked.safetensors", inputs=workplace, options=options),
    ):
        assert verification.is_true
        assert verification.baked.name == "baked.safetensors"
    other = lorabake.verify(
        "away/baked.safetensors", base="base.safetensors", loras={"lora.safetensors": 0.5}, options=options
    )
    assert other.verdict is lorabake.Verdict.MISMATCH
    with pytest.raises(lorabake.FileError, match=r"holds no recipe.*\n.*lorabake\.verify\(recipe, baked\)"):
        lorabake.verify("base.safetensors", options=options)
    with pytest.raises(lorabake.FileError, match=r"inputs of its recipe are not in .*away: (.|\n)*inputs=\["):
        lorabake.verify("away/baked.safetensors", inputs="away", options=options)
    with pytest.raises(ArgumentError, match="Leave inputs out"):
        lorabake.verify("recipe.yaml", inputs="away", options=options)


def test_a_changed_recipe_is_another_one(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = lorabake.load_recipe("recipe.yaml")
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    paths = {"output.path": "new.safetensors", "loras.0.blocks.*": np.float32(2)}
    changed = lorabake.change(recipe, {"loras.0.strength": {"unet": 0.5, "text_encoder": 0}, **paths})
    assert recipe.loras[0].strength == 1
    assert changed.loras[0].strength == {"unet": 0.5, "text_encoder": 0}
    assert changed.loras[0].blocks == {"*": 2}
    assert lorabake.plan(changed).path == workplace / "elsewhere" / "new.safetensors"
    assert parse_recipe(changed.text or "", workplace).model_dump() == changed.model_dump()
    assert lorabake.change(changed, {}).model_dump() == changed.model_dump()


def test_an_estimate_is_what_the_command_prints(workplace: Path) -> None:
    estimate = lorabake.estimate("recipe.yaml", output="other.safetensors")
    assert estimate.plan.path.name == "other.safetensors"
    assert estimate.survival == {0: pytest.approx(1, abs=0.01)}
    coarse = {key: tensor.bfloat16() for key, tensor in builders.sd1().items()}
    builders.save(workplace / "base.safetensors", coarse)
    weak = lorabake.estimate(lorabake.plan(lorabake.change("recipe.yaml", {"loras.0.strength": 1e-6})))
    assert weak.survival == {0: pytest.approx(0, abs=0.01)}
    assert [caution.check for caution in weak.cautions] == ["resolution"]
    with pytest.raises(lorabake.ChangeLostError):
        lorabake.bake(weak.plan)


def test_a_report_is_written_with_all_its_forms(workplace: Path) -> None:
    lorabake.bake("recipe.yaml")
    found = lorabake.verify("recipe.yaml", options=lorabake.VerifyOptions(stages=["structure"]))
    files = lorabake.write_report(found, "report")
    assert files.keys() == {"html", "json", "junit", "markdown"}
    assert all((workplace / path).is_file() for path in files.values())


# -- wrong arguments --------------------------------------------------------------------------------------

ENDLESS: list[object] = []
ENDLESS.append(ENDLESS)
GIVEN: dict[str, Any] = {"base": "base.safetensors", "loras": ["lora.safetensors"], "output": "out.safetensors"}


def bake(**changes: Any) -> object:
    return lorabake.bake(**{**GIVEN, **changes})


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "nothing": (lambda: lorabake.bake(), "there is no recipe"),
    "a number": (lambda: lorabake.bake(5), "a recipe cannot be the number 5"),  # type: ignore[arg-type]
    "a list": (lambda: lorabake.plan(["recipe.yaml"]), "a recipe cannot be a list"),  # type: ignore[arg-type]
    "a result": (lambda: lorabake.plan(lorabake.bake("recipe.yaml")), "cannot be a BakeResult"),  # type: ignore[arg-type]
    "bytes": (lambda: lorabake.load_recipe(b"recipe.yaml"), "path must be a path"),  # type: ignore[arg-type]
    "a descriptor": (lambda: lorabake.load_recipe(0), "path must be a path"),  # type: ignore[arg-type]
    "an empty path": (lambda: lorabake.plan(""), "must be the path of a file or a folder"),
    "a path with NUL": (lambda: lorabake.inspect("a\0b"), "must be the path of a file or a folder"),
    "no path to inspect": (lambda: lorabake.inspect(None), "not nothing"),  # type: ignore[arg-type]
    "a missing file": (lambda: lorabake.inspect("nowhere.safetensors"), "nowhere.safetensors"),
    "a recipe and keywords": (lambda: lorabake.bake("recipe.yaml", base="b"), "or the keywords base, not both"),
    "output as a number": (lambda: lorabake.plan("recipe.yaml", 5), "output must be a path"),  # type: ignore[arg-type]
    "options as a path": (lambda: lorabake.bake("recipe.yaml", "out"), "must be RunOptions"),  # type: ignore[arg-type]
    "options as a mapping": (lambda: lorabake.verify("r", options={}), "must be VerifyOptions"),  # type: ignore[arg-type]
    "an option as a keyword": (lambda: bake(overwrite=True), "overwrite is no key of a recipe: it is an option"),
    "a plan and more": (lambda: lorabake.bake(lorabake.plan("recipe.yaml"), output="o"), "a plan says all"),
    "a plan to plan": (lambda: lorabake.plan(lorabake.plan("recipe.yaml")), "cannot be a Plan"),  # type: ignore[arg-type]
    "no list of recipes": (lambda: lorabake.bake_together("recipe.yaml"), "takes a list"),
    "a list of wrong ones": (lambda: lorabake.bake_together([3]), "cannot be the number 3"),  # type: ignore[list-item]
    "a missing key": (lambda: lorabake.plan(base="b", loras=["l"]), "recipe: missing key 'output'"),
    "an unknown key": (lambda: bake(lora="x"), "lora: unknown key 'lora'"),
    "an unknown key below": (lambda: bake(loras=[{"path": "l", "strenght": 1}]), "loras[0]['strenght']: unknown key"),
    "a strength as text": (lambda: bake(loras={"a": "0.8"}), "loras['a']: strength must be a number"),
    "a strength as text in a list": (
        lambda: bake(loras=[{"path": "a", "strength": "0.8"}]),
        "loras[0]['strength']: strength must be a number",
    ),
    "a strength as None": (lambda: bake(loras={"a": None}), "loras['a']: strength must be"),
    "an infinite strength": (lambda: bake(loras={"a": float("inf")}), "loras['a']: strength must be a finite number"),
    "a base as None": (lambda: lorabake.plan({**GIVEN, "base": None}), "recipe['base']: base must be"),
    "a base as bytes": (lambda: bake(base=b"base"), "base: base must be"),
    "a LoRA as a pair": (lambda: bake(loras=[("a", 0.8)]), "loras[0]: each of loras must be"),
    "LoRAs as a path": (lambda: bake(loras="lora.safetensors"), "loras: loras must be a list"),
    "LoRAs as a set": (lambda: bake(loras={"lora.safetensors"}), "loras: loras must be a list"),
    "one LoRA twice": (lambda: bake(loras={"a": 1, Path("a"): 2}), "loras: duplicate key 'a'"),
    "a key that is no text": (lambda: lorabake.plan({1: 2}), "recipe: a key must be text"),  # type: ignore[dict-item]
    "an endless list": (lambda: bake(loras=ENDLESS), "loras: a recipe has at most"),
    "very many values": (lambda: bake(loras=["a"] * 20_000), "loras: a recipe has at most"),
    "a huge number": (lambda: bake(loras={"a": 10**5000}), "loras['a']: a number has at most 40 digits"),
    "a huge version": (lambda: bake(version=10**5000), "version: a number has at most 40 digits"),
    "half a character": (lambda: bake(base="\ud800"), "base: the text holds bytes that are not UTF-8"),
    "a module": (lambda: bake(base=np), "base: base must be"),
    "a function": (lambda: bake(verify=len), "verify: verify must be a mapping"),
    "an array": (lambda: bake(loras=np.zeros(3)), "loras: loras must be a list"),
    "a base and LoRAs without names": (
        lambda: lorabake.bake("base.safetensors", ["a"], "out"),  # type: ignore[call-arg, arg-type]
        'bake: too many positional arguments\nWrite bake("recipe.yaml"), bake({"base": …, …}), or bake(base=…',
    ),
    "a base and LoRAs without an output": (
        lambda: lorabake.bake("base.safetensors", ["a"]),  # type: ignore[arg-type]
        "options must be RunOptions(…), not ['a']\nWrite bake(",
    ),
    "too much to plan": (lambda: lorabake.plan("b", "l", "o"), "plan: too many positional"),  # type: ignore[call-arg]
    "nothing to inspect": (lambda: lorabake.inspect(), "missing a required argument: 'path'"),  # type: ignore[call-arg]
    "a strange keyword": (
        lambda: lorabake.load_recipe("r", folder="f"),  # type: ignore[call-arg]
        "unexpected keyword argument 'folder'",
    ),
    "an option that there is not": (
        lambda: lorabake.RunOptions(worker=2),  # type: ignore[call-arg]
        "RunOptions has no 'worker', did you mean 'workers'?",
    ),
    "options without names": (
        lambda: lorabake.VerifyOptions(*range(20)),  # type: ignore[arg-type]
        "VerifyOptions: too many arguments",
    ),
    "a device by another name": (lambda: lorabake.RunOptions(device="gpu"), "no device 'gpu', did you mean 'cuda'?"),
    "a device that nothing has": (
        lambda: lorabake.SampleOptions(device="banana"),
        "there is no device 'banana'\nGive one of auto, cpu, cuda, xpu, mps",
    ),
    "a recipe's value is set": (
        lambda: setattr(lorabake.load_recipe("recipe.yaml").loras[0], "strength", 0.5),
        "its strength cannot be set\nMake another: lorabake.change(recipe, {'loras.0.strength': 0.5}).",
    ),
    "a recipe by its class": (lambda: lorabake.Recipe(base=3), "Recipe: version: Field required"),  # type: ignore[call-arg, arg-type]
    "changes as a text": (lambda: lorabake.change("recipe.yaml", "a=1"), "changes must be"),  # type: ignore[arg-type]
    "a change without a LoRA": (
        lambda: lorabake.change("recipe.yaml", {"strength": 0.5}),
        "changes['strength']: say which LoRA: 'loras.0.strength': 0.5",
    ),
    "a change of a wrong type": (
        lambda: lorabake.change("recipe.yaml", {"loras.0.strength": "x"}),
        "changes['loras.0.strength']: strength must be",
    ),
    "a change of no key": (lambda: lorabake.change("recipe.yaml", {"loras..": 1}), "'loras..' is no key"),
    "no report's verification": (lambda: lorabake.write_report("v", "r"), "must be what verify returned"),  # type: ignore[arg-type]
    "workers 0": (lambda: lorabake.RunOptions(workers=0), "workers must be a whole number, 1 or more, not 0"),
    "workers as text": (lambda: lorabake.RunOptions(workers="2"), "workers must be"),  # type: ignore[arg-type]
    "workers as True": (lambda: lorabake.RunOptions(workers=True), "workers must be"),
    "workers as None": (lambda: lorabake.RunOptions(workers=None), "workers must be"),  # type: ignore[arg-type]
    "a device as a number": (lambda: lorabake.RunOptions(device=0), "device must be the name"),  # type: ignore[arg-type]
    "overwrite as text": (lambda: lorabake.RunOptions(overwrite="yes"), "overwrite must be True"),  # type: ignore[arg-type]
    "progress as True": (lambda: lorabake.RunOptions(progress=True), "must be a function"),  # type: ignore[arg-type]
    "warn as None": (lambda: lorabake.RunOptions(warn=None), "warn must be a function"),  # type: ignore[arg-type]
    "an unknown stage": (lambda: lorabake.VerifyOptions(stages=["weight"]), "did you mean 'weights'?"),
    "no stage": (lambda: lorabake.VerifyOptions(stages=[]), "stages must be a list of texts"),
    "stages as a number": (lambda: lorabake.VerifyOptions(stages=3), "stages must be a list"),  # type: ignore[arg-type]
    "a sample of nothing": (lambda: lorabake.VerifyOptions(sample_weights=0), "sample_weights must be"),
    "samples as a mapping": (lambda: lorabake.VerifyOptions(samples={}), "samples must be"),  # type: ignore[arg-type]
    "a size of three": (lambda: lorabake.SampleOptions(size=[1, 2, 3]), "size must be a side"),
    "a negative size": (lambda: lorabake.SampleOptions(size=(64, -1)), "size must be a whole number, 1 or more"),
    "prompts of numbers": (lambda: lorabake.SampleOptions(prompts=[1]), "prompts must be"),  # type: ignore[list-item]
    "a negative seed": (lambda: lorabake.SampleOptions(seed=-1), "seed must be a whole number, 0 or more"),
    "guidance as NaN": (lambda: lorabake.SampleOptions(guidance=float("nan")), "guidance must be a finite number"),
    "strengths as text": (lambda: lorabake.SampleOptions(strengths="0.5"), "strengths must be"),  # type: ignore[arg-type]
    "strengths as None": (lambda: lorabake.SampleOptions(strengths=None), "strengths must be"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_an_error_of_lorabake(workplace: Path, name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(LorabakeError) as raised:
        call()
    assert message in str(raised.value)
    assert raised.value.exit_code == 2
    assert len(str(raised.value)) < MOST


def test_every_fault_of_a_mapping_is_told_at_once(workplace: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        lorabake.plan({"base": 1, "loras": [{"path": "a", "strength": "x"}], "outputs": 3})
    assert len(raised.value.lines) == 4


def test_an_argument_s_error_says_what_to_write(workplace: Path) -> None:
    with pytest.raises(ArgumentError) as raised:
        lorabake.bake(**GIVEN, workers=3)
    assert raised.value.lines[1] == "Write options=RunOptions(workers=…)."


STRANGE: dict[str, object] = {
    "True": True,
    "a huge number": 10**6000,
    "NaN": float("nan"),
    "a complex number": 1j,
    "no text": "",
    "a long text": "a" * 5000,
    "NUL": "\0",
    "half a character": "\ud800",
    "an address": "https://example.org/a/b",
    "bytes": b"base.safetensors",
    "a list": [None],
    "a mapping": {"a": 1},
    "a mapping of numbers": {1: 2},
    "a set": {1},
    "a range": range(3),
    "an iterator": iter([]),
    "an object": object(),
    "a function": len,
    "a class": int,
    "a module": np,
    "a function of NumPy's": np.shape,
    "an array without a length": np.array(1.0),
    "an array of one": np.zeros(1),
    "an array": np.zeros(3),
    "a text of NumPy's": np.str_("a"),
    "a tensor": torch.tensor(0.5),
    "a decimal": Decimal("0.5"),
    "a path of bytes": type("P", (), {"__fspath__": lambda self: b"base.safetensors"})(),
    "an error": ValueError("x"),
}


def calls_with(value: Any) -> Iterator[Callable[[], object]]:
    """Yield calls that have a value in each place where one can be given."""
    entry = {"path": "lora.safetensors"}
    for key in (*Recipe.model_fields, "unknown"):
        yield lambda key=key: lorabake.plan(**{**GIVEN, key: value})
        yield lambda key=key: lorabake.plan({**GIVEN, key: value})
    for key in Lora.model_fields:
        yield lambda key=key: lorabake.plan(**{**GIVEN, "loras": [{**entry, key: value}]})
    for key in Output.model_fields:
        yield lambda key=key: lorabake.plan(**{**GIVEN, "output": {"path": "o.safetensors", key: value}})
    for key in Verify.model_fields:
        yield lambda key=key: lorabake.plan(**GIVEN, verify={"prompts": ["a"], key: value})
    yield lambda: lorabake.plan(**{**GIVEN, "loras": {"lora.safetensors": value}})
    yield lambda: lorabake.plan(value)
    yield lambda: lorabake.plan("recipe.yaml", value)
    yield lambda: lorabake.bake("recipe.yaml", value)
    yield lambda: lorabake.bake_together(value)
    yield lambda: lorabake.verify("recipe.yaml", value)
    yield lambda: lorabake.load_recipe(value)
    yield lambda: lorabake.inspect(value)
    for options in (lorabake.RunOptions, lorabake.VerifyOptions, lorabake.SampleOptions):
        for field in dataclasses.fields(options):
            yield lambda options=options, field=field: options(**{field.name: value})


@pytest.mark.parametrize("name", STRANGE)
def test_no_value_in_any_place_fails_otherwise_than_by_an_error_of_lorabake(workplace: Path, name: str) -> None:
    errors: list[LorabakeError] = []
    for call in calls_with(STRANGE[name]):
        try:
            call()
        except LorabakeError as error:
            errors.append(error)
    assert errors
    assert {error.exit_code for error in errors} <= {2, 3}
    assert max(len(str(error)) for error in errors) < 3 * MOST


# -- the bar in notebooks ---------------------------------------------------------------------------------


class Shell:
    """Stand for IPython's shell: with a kernel in a notebook, without one in a terminal."""

    def __init__(self, kernel: object) -> None:
        self.kernel = kernel
        self.config = {"IPKernelApp": {}} if kernel else {}


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Record the bars of tqdm that were closed: title, total, and how far each was."""
    closed: list[tuple[str, int, int]] = []

    class Recorded:
        def __init__(self, *, total: int, desc: str, **_: object) -> None:
            self.total, self.desc, self.n, self.is_open = total, desc, 0, True

        def update(self, count: int) -> None:
            self.n += count

        def set_description(self, desc: str, **_: object) -> None:
            self.desc = desc

        def close(self) -> None:
            assert self.is_open
            self.is_open = False
            closed.append((self.desc, self.total, self.n))

    monkeypatch.setattr("tqdm.auto.tqdm", Recorded)
    return closed


def enter(monkeypatch: pytest.MonkeyPatch, kernel: object) -> None:
    module = types.ModuleType("IPython")
    module.get_ipython = lambda: Shell(kernel)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", module)


def test_a_notebook_shows_how_far_a_bake_and_a_verification_are(
    workplace: Path, bars: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, object())
    result = lorabake.bake("recipe.yaml")
    assert bars == [("baking", total := result.plan.copied_bytes + result.plan.baked_bytes, total)]
    lorabake.verify("recipe.yaml", options=lorabake.VerifyOptions(stages=["structure", "weights"]))
    (_, total, done) = bars[-1]
    assert total >= done > 0


def test_a_bar_is_closed_when_a_bake_fails(
    workplace: Path, bars: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, object())
    monkeypatch.setattr("lorabake.baking.check_inputs", Mock(side_effect=lorabake.FileError("changed")))
    with pytest.raises(lorabake.FileError, match="changed"):
        lorabake.bake("recipe.yaml")
    assert len(bars) == 1


def test_who_shows_progress_or_wants_none_gets_no_bar(
    workplace: Path, bars: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, object())
    seen: list[int] = []
    lorabake.bake("recipe.yaml", lorabake.RunOptions(progress=seen.append))
    lorabake.bake("recipe.yaml", lorabake.RunOptions(bar=False, overwrite=True))
    quiet = lorabake.VerifyOptions(stages=["structure", "weights"], bar=False)
    lorabake.verify("recipe.yaml", options=quiet)
    assert not bars
    assert sum(seen) > 0


@pytest.mark.parametrize("kernel", [None, "no IPython"])
def test_elsewhere_the_library_prints_nothing(
    workplace: Path,
    bars: list[tuple[str, int, int]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kernel: object,
) -> None:
    if kernel is None:
        enter(monkeypatch, None)
    result = lorabake.bake("recipe.yaml")
    lorabake.verify(result.plan, options=lorabake.VerifyOptions(stages=["structure", "weights"]))
    lorabake.inspect("lora.safetensors")
    assert not bars
    assert capfd.readouterr() == ("", "")
