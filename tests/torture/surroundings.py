"""What the attacks share: the command line in this process, under a limit of time."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorabake.cli import main


class HungError(BaseException):
    """Tell that a command did not end in time; nothing that catches errors catches it."""


@dataclass(frozen=True)
class Outcome:
    """Hold how a command ended."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise HungError in what takes longer."""

    def stop(*_: object) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def command(folder: Path, *arguments: str, seconds: float = 20.0) -> Outcome:
    """Run the command line in a folder; -1 stands for the exit code of what did not end in time."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", write_through=True) for _ in range(2))
    here, given, on_term = Path.cwd(), sys.argv, signal.getsignal(signal.SIGTERM)
    code: object = -1
    try:
        os.chdir(folder)
        sys.argv = ["lorabake", *arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited(seconds):
            main()
    except SystemExit as end:
        code = end.code
    except HungError:
        pass
    finally:
        os.chdir(here)
        sys.argv = given
        signal.signal(signal.SIGTERM, on_term)
    said = [stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in (out, err)]  # type: ignore[attr-defined]
    return Outcome(code if isinstance(code, int) else 0, *said)
