"""Where there is no terminal, long work says now and then that it goes on; quiet work does not."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

import pytest

from lorabake.cli.heartbeat import duration

SLOW = """
import sys, time
from lorabake.cli import heartbeat
from lorabake.cli.progress import Bar

heartbeat.PERIOD = 0.05
bar = Bar(shown=sys.argv[1] == "shown")
bar.begin("baking", 200)
bar.advance(50)
time.sleep(0.4)
bar.step(3, 4, "runtime, prompt 1 of 2")
time.sleep(0.4)
bar.close()
print("closed", file=sys.stderr)
time.sleep(0.2)
"""


def said(*arguments: str) -> list[str]:
    """Run the slow work with stderr in a pipe, and return its lines."""
    done = subprocess.run([sys.executable, "-c", SLOW, *arguments], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_a_line_says_what_how_much_and_how_long() -> None:
    *lines, closed = said("shown")
    assert lines[0] == "still at work: baking, 25%, 0 s so far"
    assert lines[-1].startswith("still at work: runtime, prompt 1 of 2, 75%, ")
    assert closed == "closed"


def test_quiet_work_says_nothing() -> None:
    assert said("hidden") == ["closed"]


def test_a_terminal_shows_a_bar_instead() -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    subprocess.run([sys.executable, "-c", SLOW, "shown"], stderr=slave, check=True)
    os.close(slave)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert "baking:" in shown
    assert "still at work" not in shown


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (4200, "1 h 10 min")],
)
def test_times_are_worded(seconds: float, words: str) -> None:
    assert duration(seconds) == words
