"""What the rest of the package asks of kinds: questions, never the variables that kinds set to answer them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lorabake
from lorabake.adapters import kinds
from lorabake.adapters.kind import Delta, Kind, Product, Replacement
from lorabake.reference.formulas import FORMULAS
from lorabake.reference.formulas.products import PRODUCTS

PACKAGE = Path(lorabake.__file__).parent
OUTSIDE = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "adapters")
SHAPES = Product, Delta, Replacement

# What of a kind's variables may be read elsewhere: names, which slots are what, and two answers.
ASKED = {
    *("name", "title", "parameter"),
    *("required", "markers", "numbers", "integers", "drawn"),
    *("adds", "may_sum_weight"),
}


def variables() -> set[str]:
    """Collect the class variables that kinds may set."""
    return {name for cls in (*Kind.__mro__, *SHAPES) for name in vars(cls).get("__annotations__", {})}


def asked(path: Path) -> Iterator[str]:
    """Yield the attributes of kinds that a file reads, whatever it calls them: patch.kind, kinds[0], EXPERTS."""
    of_kinds = re.compile(r"(?:\bkind|\bkinds\[.*\]|EXPERTS)\Z")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and of_kinds.search(ast.unparse(node.value)):
            yield node.attr


def test_the_variables_are_found() -> None:
    assert variables() > ASKED
    assert {
        "by_rows",
        "by_place",
        "is_stored",
        "underlies",
        "reads_weight",
        "whole_in",
        "alpha_is_scale",
    } < variables()


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_other_module_reads_what_kinds_set(path: Path) -> None:
    assert {*asked(path)} & variables() <= ASKED


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_other_module_tells_the_shapes_apart(path: Path) -> None:
    names = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "lorabake.adapters.kind"
        for alias in node.names
    }
    assert names <= {"Kind"}


def test_each_answer_is_asked() -> None:
    assert {name for path in OUTSIDE for name in asked(path)} >= ASKED


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_a_kind_is_of_one_shape(kind: Kind) -> None:
    (shape,) = (each for each in SHAPES if isinstance(kind, each))
    own = {Product: "factors", Delta: "delta", Replacement: "value"}[shape]
    assert getattr(type(kind), own) is not getattr(shape, own)
    assert kind.adds == (shape is not Replacement)


# -- settings ---------------------------------------------------------------------------------------------------


def record_in(annotation: str) -> str:
    """Return the record of settings that an annotation names: TermsOf[RoadSettings] -> RoadSettings."""
    inner = re.fullmatch(r"(?:TermsOf|PlaceOf)\[(.*)\]", annotation)
    return inner[1] if inner else {"Terms": "Settings", "Place": "Settings"}.get(annotation, annotation)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_a_kind_takes_the_settings_that_it_makes(kind: Kind) -> None:
    """No type says it: a patch holds a kind beside its settings."""
    made = inspect.signature(kind.settings).return_annotation
    taken = [
        inspect.signature(getattr(kind, method)).parameters[name].annotation
        for method, name in (
            *((method, "terms") for method in ("factors", "prepare", "delta")),
            *((method, "settings") for method in ("unsettled", "redrawn", "follow", "working_values")),
        )
        if hasattr(kind, method)
    ]
    assert {record_in(each) for each in taken} - {"Any", "TermsOf[Any]"} <= {made, "Settings"}
    assert all(
        inspect.signature(getattr(kind, each)).return_annotation in (made, "Settings")
        for each in ("redrawn", "follow")
    )


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_a_formula_takes_the_settings_of_its_kind(kind: Kind) -> None:
    formula = PRODUCTS.get(kind.name) or FORMULAS[kind.name]
    taken = record_in(inspect.signature(formula).parameters["place"].annotation)
    assert taken in (inspect.signature(kind.settings).return_annotation, "Settings")
