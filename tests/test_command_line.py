"""How the command line looks and answers: colours, examples, completion, wrong words, and the bar."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import click
import pytest
from click.shell_completion import ShellComplete

from lorabake.cli import commands, lorabake, main
from lorabake.cli.devices import DEVICES
from lorabake.cli.progress import Bar
from lorabake.cli.terminal import wants_colour
from lorabake.cli.usage import COMMANDS, OPTIONS

COLOURS = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM")


def command(name: str) -> click.Command:
    found = lorabake.get_command(click.Context(lorabake), name)
    assert found is not None
    return found


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({}, None),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, None),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "0"}, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"CLICOLOR_FORCE": "1"}, True),
        ({"CLICOLOR": "0"}, False),
        ({"CLICOLOR": "0", "CLICOLOR_FORCE": "1"}, True),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colours_that_the_environment_asks_for(
    settings: dict[str, str], answer: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in COLOURS:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert wants_colour() is answer


@pytest.mark.parametrize(("name", "is_coloured"), [("FORCE_COLOR", True), ("NO_COLOR", False)])
def test_errors_take_their_colour_from_the_environment(
    name: str, is_coloured: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in COLOURS:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "1")
    assert ("\x1b[31m" in error_of(capsys, "inspect", "nothing")[0]) == is_coloured


@pytest.mark.parametrize("name", [None, *commands()])
def test_help_ends_with_an_example_that_is_one(name: str | None) -> None:
    shown = lorabake if name is None else command(name)
    epilog = shown.epilog or ""
    lines = [line.strip() for line in epilog.splitlines()[2:]]
    assert lines
    for line in lines:
        called = line.split(" > ")[0].split()
        assert called[0] == "lorabake"
        assert name is None or called[1] == name
        command(called[1]).make_context(called[1], called[2:], resilient_parsing=False)
    with click.Context(shown, info_name="lorabake") as context:
        assert shown.get_help(context).endswith(lines[-1])


@pytest.mark.parametrize("name", ["bake", "verify"])
@pytest.mark.parametrize(
    ("typed", "names"), [("", list(DEVICES)), ("c", ["cpu", "cuda", "cuda:1"]), ("m", ["mps"]), ("z", [])]
)
def test_devices_are_completed(name: str, typed: str, names: list[str]) -> None:
    completed = ShellComplete(lorabake, {}, "lorabake", "_X").get_completions(
        [name, "recipe.yaml", "--device"], typed
    )
    assert [item.value for item in completed] == names


def test_completion_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from click.shell_completion import ShellComplete\nfrom lorabake.cli import lorabake\n"
        "items = ShellComplete(lorabake, {}, 'lorabake', '_X').get_completions(['bake', '--device'], 'cp')\n"
        "print([item.value for item in items])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("['cpu']\n", "")


def test_without_words_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = error_of(capsys)
    assert lines[0].startswith("Usage: lorabake ")
    assert "Commands:" in lines


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_of_other_programs_are_no_commands_here(name: str) -> None:
    assert name not in commands()
    assert COMMANDS[name].split(",")[0] in commands()


def test_options_of_other_programs_are_answered_with_options_that_exist() -> None:
    options = {
        name: {option for parameter in command(name).params for option in parameter.opts} for name in commands()
    }
    assert {advice.split()[0] for advice in OPTIONS.values()} <= set().union(*options.values())
    for word, advice in OPTIONS.items():
        assert any(advice.split()[0] in known and f"--{word}" not in known for known in options.values()), word


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_goes_on_while_nothing_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("lorabake.cli.progress.REDRAWN", 0.02)
    bar = Bar()
    bar.begin("baking", 1000)
    bar.advance(10)
    time.sleep(0.1)
    before = terminal.tell()
    time.sleep(0.2)
    assert terminal.tell() > before
    bar.advance(990)
    assert "finishing" in terminal.getvalue()
    bar.close()
    after = terminal.tell()
    time.sleep(0.1)
    assert terminal.tell() == after


def test_no_bar_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    bar = Bar()
    bar.begin("baking", 10)
    bar.advance(10)
    bar.close()
    assert stream.getvalue() == ""
