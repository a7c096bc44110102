"""Text of others: letters of every script stay, all that is not seen becomes an escape."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import click
import pytest

import lorabake
from lorabake.cli.terminal import Coloured, echo
from lorabake.errors import FileError, LorabakeError, lines_of
from lorabake.visible import and_more, counted, in_markdown, is_hidden, some, the_rest, visible, visible_json

ROOT = Path(lorabake.__file__).parent
ERRORS = {"LorabakeError", *(each.__name__ for each in LorabakeError.__subclasses__())}

HIDDEN = {
    "a line break": "\n", "a carriage return": "\r", "a tab": "\t", "a form feed": "\f", "NUL": "\0",
    "escape": "\x1b", "a bell": "\a", "backspace": "\b", "delete": "\x7f", "CSI of eight bits": "\x9b",
    "OSC of eight bits": "\x9d", "next line": "\x85", "line separator": "\u2028", "paragraph separator": "\u2029",
    "right to left": "\u200f", "an override": "\u202e", "an isolate": "\u2067", "a space of no width": "\u200b",
    "a joiner": "\u200d", "a soft hyphen": "\u00ad", "a byte order mark": "\ufeff", "half a pair": "\ud800",
    "a byte of a file name": "\udcff", "a noncharacter": "\uffff", "a tag": "\U000e0041", "an ignored mark": "\u034f",
    "a filler": "\u3164", "a choice of form": "\ufe0f", "private": "\ue000",
}  # fmt: skip

NAMES = (
    "model.diffusion_model.input_blocks.1", "кошка", "猫とお茶", "漢字　全角", "قط", "חתול", "แมว", "बिल्ली", "고양이",
    "naïve café", "𝒜🐈", "a\u00a0b", r"a\nb", "…—«»",
)  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_not_seen_becomes_an_escape(name: str) -> None:
    shown = visible(f"a{HIDDEN[name]}b")
    assert shown.startswith("a\\")
    assert shown.isascii()
    assert shown.isprintable()
    assert ast.literal_eval(f"'{shown}'") == f"a{HIDDEN[name]}b"


@pytest.mark.parametrize("name", NAMES)
def test_letters_of_every_script_stay(name: str) -> None:
    assert visible(name) == name
    assert visible_json(name) == f'"{name}"'.replace("\\", "\\\\")


def test_nothing_that_steers_a_terminal_is_left() -> None:
    codes = [*range(0x20000), *range(0x20000, sys.maxunicode + 1, 61)]
    every = "".join(map(chr, reversed(codes)))  # so that no two halves make a pair
    hidden = {each for each in every if is_hidden(each)}
    assert hidden.isdisjoint(visible(every))
    text = visible_json({"key": every})
    assert hidden.isdisjoint(text.replace("\n", ""))
    assert json.loads(text) == {"key": every}


def test_each_argument_of_an_error_is_a_line() -> None:
    error = FileError("a\nVerified: forged", "advice\x1b[2J")
    assert error.lines == ("a\\nVerified: forged", "advice\\x1b[2J")
    assert str(error) == "a\nVerified: forged\nadvice\x1b[2J"
    assert FileError().lines == ("FileError",)
    assert lines_of("file\n: ", "why\nadvice") == ["file\n: why", "advice"]


@pytest.mark.parametrize("line", ["::error::forged", "  ::add-mask::a", "##[error]forged", "\x1b[31m::error::forged"])
def test_no_line_commands_a_runner(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    echo(Coloured(line.removeprefix("\x1b[31m"), "red") if "\x1b" in line else line)
    out = click.unstyle(capsys.readouterr().out).strip()
    assert not out.startswith(("::", "##["))
    assert out.endswith(("forged", "a"))


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def test_errors_break_their_lines_by_arguments_and_one_file_prints() -> None:
    """A line break in an argument would be shown as one: FileError(f"{path}: damaged", "Download it again.")."""
    for path in ROOT.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        for call in calls:
            for argument in call.args if _called(call) in ERRORS else ():
                parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
                texts = [part.value for part in parts if isinstance(part, ast.Constant)]
                assert not any("\n" in str(text) for text in texts), f"{path}:{call.lineno}: a line is an argument"
        if path.relative_to(ROOT).as_posix() != "cli/terminal.py":
            assert {"print", "secho", "style"}.isdisjoint(map(_called, calls)), path
            assert not any(ast.unparse(call.func) == "click.echo" for call in calls), path


MEANINGS = {
    "[a](http://x)": r"\[a\](http&#8203;://x)",
    "![a](x)": r"\!\[a\](x)",
    "https://evil.example": "https&#8203;://evil.example",
    "(HTTPS://x": "(HTTPS&#8203;://x",
    "www.evil.example": "www&#8203;.evil.example",
    "me@evil.example": r"me\@&#8203;evil.example",
    "@someone": r"\@&#8203;someone",
    "#1": r"\#1",
    "<b>|`*_~$x$": r"&lt;b>\|\`\*\_\~\$x\$",
    "a\nb\x1b": r"a b\\x1b",
    "&lt;": "&amp;lt;",
    "httpserver, wwwroot": "httpserver, wwwroot",
}


@pytest.mark.parametrize("text", MEANINGS)
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    assert in_markdown(text) == MEANINGS[text]


def test_a_list_of_names_shows_a_few_and_counts_the_rest() -> None:
    assert some(["a", "b", "c"]) == "'a', 'b', 'c'"
    assert some(["a", "b", "c", "d", "e"]) == "'a', 'b', 'c' and 2 more"
    assert some(["\x1b", "b" * 300]).startswith(r"'\x1b', 'bbb")
    assert and_more(["a"], 1) == "a"
    assert and_more(["a", "b"], 6, "more patterns") == "a, b and 4 more patterns"
    assert and_more(["a", "b"], 3, between="; ") == "a; b and 1 more"
    assert the_rest(5, "more faults") == "and 5 more faults"
    assert counted({"attn": 2, "norm": 1}) == "attn ×2, norm ×1"
