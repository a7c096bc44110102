"""Verification's wings: each looks in its own way, and knows no more of the others than it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

import lorabake.verification
from tests.test_structure import imported

FOLDER = Path(lorabake.verification.__file__).parent
# What a wing may import of the others: digests of files are headers' business, and weights tell them.
TAKES = {"structure": set(), "weights": {"structure.digests"}, "samples": set()}


def test_beside_the_wings_lie_the_story_and_the_findings() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} == {
        "__init__.py",
        "stages.py",
        "many.py",
        "findings.py",
        "environment.py",
        "summary.py",
        "converted.py",
        "provenance.py",
        "thumbnail.py",
    }
    assert {path.name for path in FOLDER.iterdir() if (path / "__init__.py").is_file()} == TAKES.keys()


@pytest.mark.parametrize("wing", TAKES)
def test_a_wing_takes_nothing_else_of_another(wing: str) -> None:
    others = TAKES.keys() - {wing}
    for path in (FOLDER / wing).glob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "verification" and parts[1] in others:
                assert ".".join(parts[1:3]) in TAKES[wing], f"{path.name} imports {name}"


def test_findings_know_no_wing() -> None:
    names = [name.split(".") for name in imported(FOLDER / "findings.py")]
    assert not [parts for parts in names if parts[0] == "verification" and parts[1] in TAKES]
