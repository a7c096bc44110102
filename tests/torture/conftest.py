"""The hostile campaign: short in `make test`, whole in `make torture`, which writes its table into the docs.

A test counts what it tried under a title of its own, with the promise that has to hold. What breaks the promise fails
the test and is counted, too: the table shows it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.torture.harness import Server, serving

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
START, END = "<!-- written by make torture -->", "<!-- end of what make torture writes -->"
PROPERTY = "torture"

Choice = TypeVar("Choice")


class Tally:
    """Count what was tried under one title, and note what broke the promise."""

    def __init__(self, title: str, promise: str) -> None:
        self.title, self.promise = title, promise
        self.kept = 0
        self.broken: list[str] = []

    def hold(self, is_kept: bool, what: str) -> None:
        """Count one try; `what` says what it was, for the message of the test."""
        if is_kept:
            self.kept += 1
        else:
            self.broken.append(what)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Callable[[str, str], Tally]]:
    """Return a maker of tallies; at the end of the test each must have counted, and nothing may be broken."""
    tallies: list[Tally] = []

    def make(title: str, promise: str) -> Tally:
        tallies.append(Tally(title, promise))
        return tallies[-1]

    yield make
    for each in tallies:
        row = json.dumps([each.title, each.promise, each.kept, len(each.broken)])
        request.node.user_properties.append((PROPERTY, row))
    for each in tallies:
        assert each.kept or each.broken, f"{each.title}: nothing was tried"
        assert not each.broken, f"{each.title}: {len(each.broken)} broke the promise:\n" + "\n".join(each.broken[:20])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run the process that bakes, for the tests of one file."""
    with serving() as started:
        yield started


@pytest.fixture
def effort(pytestconfig: pytest.Config) -> Callable[[Choice, Choice], Choice]:
    """Return a function that takes the amount for `make test` and the one for `make torture`, and picks."""
    whole = pytestconfig.getoption("--torture")
    return lambda short, full: full if whole else short


def rows_of(reports: list[pytest.TestReport]) -> dict[str, tuple[str, int, int]]:
    """Sum up by title what the tests counted: promise, kept, broken."""
    promises: dict[str, str] = {}
    kept: defaultdict[str, int] = defaultdict(int)
    broken: defaultdict[str, int] = defaultdict(int)
    for report in reports:
        for name, value in report.user_properties:
            if name == PROPERTY and report.when == "teardown":
                title, promise, kept_here, broken_here = json.loads(str(value))
                promises[title] = promise
                kept[title] += kept_here
                broken[title] += broken_here
    return {title: (promises[title], kept[title], broken[title]) for title in sorted(promises)}


def table_of(rows: dict[str, tuple[str, int, int]]) -> str:
    """Write rows as a Markdown table."""
    lines = ["| what | tried | as promised | not | promise |", "|---|---:|---:|---:|---|"]
    lines += [
        f"| {title} | {kept + broken} | {kept} | {broken} | {promise} |"
        for title, (promise, kept, broken) in rows.items()
    ]
    return "\n".join(lines)


def rows_in(page: str) -> dict[str, tuple[str, int, int]]:
    """Read the rows of the table back from the page."""
    found = re.findall(r"^\| (.+) \| \d+ \| (\d+) \| (\d+) \| (.+) \|$", page, re.MULTILINE)
    return {title: (promise, int(kept), int(broken)) for title, kept, broken, promise in found}


def with_rows(page: str, rows: dict[str, tuple[str, int, int]], *, whole: bool) -> str:
    """Return the page with these rows in its table: alone after a whole run, else in the place of their namesakes."""
    if not whole:
        rows = dict(sorted((rows_in(page) | rows).items()))
    return re.sub(f"{START}.*{END}", lambda _: f"{START}\n\n{table_of(rows)}\n\n{END}", page, flags=re.DOTALL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the table of a run in full, and write it into the docs, unless only some tests of a file ran."""
    if not config.getoption("--torture"):
        return
    reports = [
        report
        for outcome in terminalreporter.stats.values()
        for report in outcome
        if isinstance(report, pytest.TestReport)
    ]
    rows = rows_of(reports)
    terminalreporter.write_line(table_of(rows))
    if config.getoption("keyword") or config.getoption("lf", False) or any("::" in each for each in config.args):
        return
    ran = {Path(report.nodeid.partition("::")[0]).name for report in reports}
    whole = ran >= {path.name for path in Path(__file__).parent.glob("test_*.py")}
    PAGE.write_text(with_rows(PAGE.read_text(encoding="utf-8"), rows, whole=whole), encoding="utf-8")
