"""The second account stands by itself: what it shares with the bake, and that it shares no arithmetic."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import lorabake.reference
from lorabake.execution import methods as executed
from lorabake.planning.steps import Method
from lorabake.reference import methods
from tests.test_structure import imported

FOLDER = Path(lorabake.reference.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))

# What of the kinds' own folder may be known beside the records of settings: names of slots, and how a shape is
# flattened.
OF_KINDS = {"dora.MAGNITUDES", "programs.SCALE_OF_ALPHA_0", "shapes.matrix"}
# What a kind may be asked: of shapes and slots, never of values.
ASKED = {"rank", "summed_terms", "operands", "alpha_of"}


def told() -> set[str]:
    """Return the folders that the first lines say are shared."""
    return set(re.findall(r"`(\w+)`", (lorabake.reference.__doc__ or "").split("It shares no arithmetic")[0]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_it_imports_what_its_first_lines_say_alone(path: Path) -> None:
    used = {name.split(".")[0] for name in imported(path)} - {"reference"}
    assert used <= told()


def test_its_first_lines_name_nothing_that_it_does_not_use() -> None:
    used = {name.split(".")[0] for path in FILES for name in imported(path)} - {"reference"}
    assert told() == used


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_it_knows_no_mathematics_of_a_kind(path: Path) -> None:
    of_kinds = {name for name in imported(path) if name.startswith("adapters")}
    records = {name for name in of_kinds if name.endswith(("Settings", "Draws", "NO_SETTINGS"))}
    assert of_kinds - records <= {f"adapters.{name}" for name in OF_KINDS}
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value).endswith("kind")
    }
    assert called <= ASKED


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_it_decodes_nothing_by_a_codec(path: Path) -> None:
    of_codecs = {name for name in imported(path) if name.startswith("codecs")}
    assert of_codecs <= {f"codecs.codec.{name}" for name in ("Stored", "Showing", "WEIGHT")}
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value).endswith("codec")
    }
    assert not called & {"decode", "encode"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_only_draws_know_torch(path: Path) -> None:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    assert "torch" not in names or path.name == "draws.py"


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_masks_are_drawn_again_as_the_bake_draws_them(name: str) -> None:
    method = Method(name, density=0.3, seed=7)
    own = methods.masks_of(method, "fc.weight", 5, [0, 2], 1000)
    theirs = executed.masks_of(method, "fc.weight", 5, [0, 2], 1000)
    assert len(own) == 2
    assert all(np.array_equal(one, other) for one, other in zip(own, theirs, strict=True))
    assert not np.array_equal(own[0], own[1])
