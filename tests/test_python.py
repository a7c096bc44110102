"""lorabake in Python and in notebooks: what is public, what it takes, and how its results show themselves."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pydantic import BaseModel

from lorabake.baking import BakeResult
from lorabake.notebook import MOST_ROWS, Table, card
from lorabake.recipe import Recipe, load_recipe
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
