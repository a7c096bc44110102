"""A test that is skipped says what makes it run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.skips import ADVICE, advice_for

TESTS = Path(__file__).resolve().parent
WORDED_ELSEWHERE = {"NOT_MADE[name]", "str(error).strip().splitlines()[0]", "MISSING or 'nothing is missing'"}
"""Reasons that a library words, a table, or a function that says what to install (tests/report/browser.py)."""


def text_of(node: ast.expr) -> str:
    """Return a text of the source, with … for what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) if isinstance(part, ast.Constant) else "…" for part in parts)
    return ast.unparse(node)


def reasons() -> Iterator[str]:
    """Yield every reason for which a test of this suite may be skipped."""
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("pytest."):
                continue
            called = ast.unparse(node.func)
            said = next((word.value for word in node.keywords if word.arg == "reason"), None)
            if called == "pytest.mark.skipif" and said is not None:
                yield text_of(said)
            elif called == "pytest.importorskip":
                yield text_of(said) if said is not None else f"could not import {ast.literal_eval(node.args[0])!r}"
            elif called == "pytest.skip" and node.args:
                yield text_of(node.args[0])


def test_every_reason_has_its_advice() -> None:
    told = {*reasons()}
    assert len(told) >= 40
    own = {reason for reason in told if re.search(r"(pip|apt|apt-get) install", reason)}
    assert {reason for reason in told - WORDED_ELSEWHERE - own if not advice_for(reason)} == set()


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in ADVICE])
def test_every_advice_has_a_reason(pattern: str) -> None:
    assert any(re.search(pattern, reason) for reason in reasons())


SKIPPED = """
import pytest

def test_here():
    pytest.skip("no C compiler here to build what counts system calls")
"""

SKIPPED_WHOLE = """
import pytest

pytest.importorskip("gguf_that_is_not_there", reason="could not import 'gguf'")
"""


def test_the_advice_is_printed(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_one.py").write_text(SKIPPED)
    (tmp_path / "test_whole.py").write_text(SKIPPED_WHOLE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert "what counts system calls - to run it: install a compiler: apt install" in done.stdout, done.stdout
    assert "could not import 'gguf' - to run it: make test installs it, or: pip install -e '.[test]'" in done.stdout
