"""Settings of the whole suite."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Generator

import pytest
from hypothesis import settings

from tests.skips import advise

# The same examples in every run: a failure in CI can be repeated, and no run fails by luck.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# The same bytes on every machine; simulated/ bakes on an accelerator.
os.environ.setdefault("LORABAKE_DEVICE", "cpu")

# As the command line does: where several processes share the cores, threads that wait must not keep a core busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# No lock counts because a CI job runs the tests, and nothing is kept in the user's caches.
os.environ.pop("CI", None)
_CACHE = tempfile.mkdtemp(prefix="lorabake-tests-")
os.environ["LORABAKE_CACHE"] = _CACHE
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make torture` gives."""
    parser.addoption("--torture", action="store_true", help="run the hostile campaign (tests/torture) in full")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say what to do about a skipped test."""
    report = yield
    advise(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Say what to do about a skipped file."""
    report = yield
    advise(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that leaves messages in the words of the command line for the tests after it."""
    yield
    settings_module = sys.modules.get("lorabake.settings")
    if settings_module is not None and str(settings_module.CHANGES) != settings_module.CHANGES.argument:
        settings_module._commands_running.clear()  # only this test fails
        pytest.fail(f"{item.nodeid} ended within as_options()")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much the simulated device had to do, where there is one."""
    simulated = getattr(sys.modules.get("torch"), "simulated", None)
    if simulated is not None:
        terminalreporter.write_line(f"simulated device: {simulated.figures()['copies_postponed']} copies postponed")
