"""Print everything that the command line prints: each line is one line, with every character visible.

Only lorabake itself breaks lines and chooses colours. A part of a line is escaped, then coloured, then joined.
Passwords and tokens are taken out of it first.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from dataclasses import dataclass
from typing import Any

import click

from lorabake.visible import redacted, visible, visible_json


@dataclass(frozen=True, slots=True)
class Coloured:
    """Hold a part of a line with its colour."""

    text: str
    colour: str | None = None
    bold: bool = False


Part = str | Coloured
"""A part of a line."""


_COMMAND = re.compile(r"^((?:\s|\x1b\[[0-9;]*m)*)(:(?=:)|#(?=#\[))")
"""Matches the beginning of a line that GitHub's and Azure's runners obey, such as ::error:: or ##[error]."""


def echo(*parts: Part, err: bool = False) -> None:
    """Print one line, to stderr if asked."""
    line = "".join(map(_shown, parts))
    click.echo(_COMMAND.sub(lambda match: f"{match[1]}\\x{ord(match[2]):02x}", line), err=err, color=wants_colour())


def echo_command(text: str) -> None:
    """Print a command for the program that reads these lines, such as GitHub's runner; it is escaped already."""
    click.echo(text, err=True)


def echo_json(value: object) -> None:
    """Print a value as JSON; parsing it gives the same value."""
    click.echo(visible_json(value))


def echo_lines(text: str, *, err: bool = False) -> None:
    """Print a text of lorabake's own, or a traceback, line by line."""
    for line in text.rstrip("\n").split("\n"):
        echo(line, err=err)


def wants_colour() -> bool | None:
    """Say whether the environment asks for colours, or for none; None leaves it to the stream: a terminal has them.

    NO_COLOR comes first, then FORCE_COLOR, and CLICOLOR_FORCE and CLICOLOR, which mean the same.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if forced := os.environ.get("FORCE_COLOR") or os.environ.get("CLICOLOR_FORCE"):
        return forced != "0"
    return False if os.environ.get("CLICOLOR") == "0" or os.environ.get("TERM") == "dumb" else None


def tame_libraries() -> None:
    """Print warnings and unhandled logs of libraries through this file, too."""
    warnings.showwarning = _show_warning
    logging.lastResort = _Handler(logging.WARNING)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        echo(f"{record.levelname.lower()}: {record.name}: {record.getMessage()}", err=True)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    echo(f"warning: {category.__name__}: {message}", err=True)


def _shown(part: Part) -> str:
    if isinstance(part, Coloured):
        return click.style(visible(redacted(part.text)), fg=part.colour, bold=part.bold or None)
    return visible(redacted(part))
