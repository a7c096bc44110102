"""What such inputs make of a pseudo-terminal, and of the report's page in Chromium."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorabake.visible import is_hidden
from tests.report.browser import Window, browser, lacking
from tests.torture.conftest import Tally
from tests.torture.injections import PAYLOADS, PRINTED, base_names, faults_of, lora_names, tokens, training
from tests.torture.surroundings import command

MISSING = lacking()
SEEN = """
() => {
const foreign = [...document.links].filter(each => !each.hash || each.protocol !== 'file:');
const loaded = performance.getEntriesByType('resource').filter(each => !each.name.startsWith('data:'));
const odd = document.querySelectorAll('iframe, object, embed, form, base');
const counts = [foreign.length, document.scripts.length, loaded.length, odd.length];
return [typeof window.hacked, ...counts, document.documentElement.textContent];
}
"""
"""Count what a page must not have."""


def on_a_terminal(folder: Path, *arguments: str) -> str:
    """Run the command line on a terminal of its own and return all that it sends there."""
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lorabake", *arguments], cwd=folder, stdin=its, stdout=its, stderr=its, env=environment
    )
    os.close(its)
    sent = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        sent += chunk
    os.close(ours)
    process.wait(60)
    return sent.decode("utf-8")


def test_on_a_terminal(tally: Callable[[str, str], Tally], effort: Callable[[int, int], int], tmp_path: Path) -> None:
    count = tally(
        "the same on a pseudo-terminal, with colours and progress bars",
        "beside text, nothing is sent but colours and the bar's own return to the start of the line",
    )
    chosen = [base_names, lora_names, training, tokens][: effort(1, 4)]
    for world in chosen:
        folder = tmp_path / world.__name__
        folder.mkdir()
        world(folder, "".join(text for name, text in PAYLOADS.items() if name != "backspaces"))  # a name's bound
        for arguments in (
            ("inspect", "lora.safetensors"),
            ("bake", "recipe.yaml"),
            ("verify", "recipe.yaml", "--stage", "weights"),
        ):
            sent = PRINTED.sub("", on_a_terminal(folder, *arguments))
            fault = faults_of(sent.replace("\r", "\n").replace("\x1b[A", ""))
            count.hold(not fault, f"{world.__name__}: {arguments[0]}: {fault}")


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "nothing is missing")
def test_in_chromium(tally: Callable[[str, str], Tally], effort: Callable[[int, int], int], tmp_path: Path) -> None:
    count = tally(
        "the report's page of such inputs, in Chromium",
        "no script, link, picture or address of theirs, and not a word in the console",
    )
    with browser() as started:
        window = Window(started)
        for world in [tokens, base_names, training][: effort(1, 3)]:
            folder = tmp_path / world.__name__
            folder.mkdir()
            world(folder, "".join(text for name, text in PAYLOADS.items() if name != "backspaces"))  # a name's bound
            command(folder, "bake", "recipe.yaml", "--no-fsync")
            command(
                folder, "verify", "recipe.yaml", "--stage", "structure", "--stage", "weights", "--report", "report"
            )
            window.open(folder / "report/index.html")
            *counts, text = window.run(SEEN)
            count.hold(counts == ["undefined", 0, 1, 0, 0], f"{world.__name__}: {counts}")
            count.hold(window.faults == [], f"{world.__name__}: the console")
            steering = [each for each in text if is_hidden(each) and each not in "\n"]
            count.hold(not steering, f"{world.__name__}: {steering[:5]}")
            if world is tokens:
                count.hold("<script>window.hacked" in text, "the page does not show the names of tokens")
