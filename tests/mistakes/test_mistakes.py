"""Every mistake gets exactly the answer that is written beside it, and leaves the folder as it was."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import builders as b
from tests.mistakes.cases import FILES, Case, read, rewritten
from tests.mistakes.folder import fill

CASES = [case for file in FILES for case in read(file)]
REWRITE = "write the answers anew with: python -m tests.mistakes --write"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("mistakes")
    fill(path)
    before, terminate = b.tree(path), signal.getsignal(signal.SIGTERM)
    yield path
    signal.signal(signal.SIGTERM, terminate)
    assert b.tree(path).keys() == before.keys()
    assert b.tree(path) == before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_answer(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names = {path.name for path in folder.iterdir()}
    answer = case.run(folder)
    assert "\n".join(answer) == "\n".join(case.answer), REWRITE
    assert answer[-1] != "[exit code 0]"
    assert {path.name for path in folder.iterdir()} == names, "a mistake leaves nothing behind"


def test_every_mistake_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []


def test_answers_can_be_written_anew() -> None:
    for file in FILES:
        kept = {case.name: case.answer for case in read(file)}
        assert rewritten(file, kept) == file.read_text(encoding="utf-8")
        assert "\nnew\n```" in rewritten(file, kept | {next(read(file)).name: ("new",)})
