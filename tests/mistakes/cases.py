"""Read mistakes from Markdown, run their commands, and write the answers anew."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from lorabake.cli import main

HERE = Path(__file__).parent
FILES = sorted(path for path in HERE.glob("*.md") if path.name != "README.md")

USUAL_EXIT_CODE = 2

_FENCE = re.compile(r"^```(\w+)?(?: (\S+))?$")
_SECONDS = re.compile(r"(\(|\bin )\d+\.\d s\b")
_SETTING = re.compile(r"[A-Z_]+=.*")

KEPT_OUT = ("LORABAKE_DEVICE", "LORABAKE_DEBUG", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE")
"""Variables of the surroundings that no answer may depend on, unless its command sets them."""


@dataclass(frozen=True, slots=True)
class Case:
    """Hold one mistake: its recipe, the command, the answer that is expected, and the lines where that stands."""

    file: Path
    title: str
    recipe: bytes | None
    command: str
    answer: tuple[str, ...]
    start: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.file.stem}: {self.title}"

    def run(self, folder: Path) -> tuple[str, ...]:
        """Run the command in `folder`, which must be the current one; return the lines of the answer."""
        words = shlex.split(self.command)
        settings: dict[str, str | None] = dict.fromkeys(KEPT_OUT)
        while _SETTING.fullmatch(words[0]):
            name, _, value = words.pop(0).partition("=")
            settings[name] = value
        assert words.pop(0) == "lorabake"
        recipe = folder / "recipe.yaml"
        if self.recipe is not None:
            recipe.write_bytes(self.recipe)
        try:
            result = CliRunner().invoke(_Program(), words, env=settings, prog_name="lorabake")  # type: ignore[arg-type]
        finally:
            recipe.unlink(missing_ok=True)
        lines = _SECONDS.sub(r"\g<1>0.0 s", result.output.replace(str(folder), "/models")).rstrip("\n").split("\n")
        return tuple(lines) + ((f"[exit code {result.exit_code}]",) if result.exit_code != USUAL_EXIT_CODE else ())


class _Program:
    """Call lorabake's own `main`, which words errors, as CliRunner calls a command of click."""

    name = "lorabake"

    def main(self, args: Sequence[str], **_: Any) -> None:
        main([*args])


def read(file: Path) -> Iterator[Case]:
    """Yield the mistakes of a file."""
    lines = file.read_text(encoding="utf-8").split("\n")
    title, recipe, opened, kind, coding = "", None, 0, "", ""
    for number, line in enumerate(lines):
        if not opened and line.startswith("## "):
            title, recipe = line.removeprefix("## "), None
        elif not opened and (fence := _FENCE.match(line)):
            opened, kind, coding = number + 1, fence[1] or "", fence[2] or ""
        elif opened and line == "```":
            inside = lines[opened:number]
            if kind == "yaml":
                recipe = _encoded("\n".join(inside) + "\n", coding)
            else:
                assert kind == "console", f"{file.name}:{opened}: a block is of yaml or of console"
                assert inside[0].startswith("$ "), f"{file.name}:{opened}: the first line is a command"
                yield Case(file, title, recipe, inside[0][2:], tuple(inside[1:]), opened + 1, number)
            opened = 0
    assert not opened, f"{file.name}:{opened}: a block is not closed"


def rewritten(file: Path, answers: Mapping[str, Sequence[str]]) -> str:
    """Return a file's text with other answers, by the cases' names."""
    lines = file.read_text(encoding="utf-8").split("\n")
    for case in reversed([*read(file)]):
        lines[case.start : case.end] = answers[case.name]
    return "\n".join(lines)


def _encoded(text: str, coding: str) -> bytes:
    return text.replace("\n", "\r\n").encode() if coding == "crlf" else text.encode(coding or "utf-8")
