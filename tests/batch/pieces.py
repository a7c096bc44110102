"""Pieces of work for the tests of engines: they note that they ran, and do what they are told."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabake.batch.engines import Telling
from lorabake.batch.engines.spread import PartOfPass
from lorabake.batch.parts import Part
from lorabake.batch.receipts import Receipt
from lorabake.errors import FileError
from lorabake.settings import OVERWRITE
from lorabake.writing.output import Output


@dataclass(frozen=True)
class Piece:
    """Note in a folder that it ran, and do what it is told the first few times."""

    folder: Path
    name: str
    does: str = "return"
    times: int = 1

    def run(self, telling: Telling) -> object:
        run = len([*self.folder.glob(f"{self.name}.*")])
        (self.folder / f"{self.name}.{run}").write_text(str(os.getpid()))
        telling.progress(7)
        if run < self.times:
            match self.does:
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "fail":
                    raise FileError(f"{self.name}: no such file")
                case "break":
                    raise ZeroDivisionError("a fault of its own")
                case "warn":
                    telling.warn(f"{OVERWRITE} is an option")
                case "pause":
                    time.sleep(1)
                case "sleep":
                    time.sleep(60)
        return os.getpid()


@dataclass(frozen=True)
class NotedPart(PartOfPass):
    """Be a part of a pass that notes that it ran, in the folder above the outputs'."""

    def run(self, telling: Telling) -> None:
        notes = self.job.paths[0].parent.parent / "notes"
        (notes / f"{self.number}.{os.getpid()}.{time.monotonic_ns()}").touch()
        time.sleep(0.2)
        super().run(telling)


FREE = 4
"""How many parts of a held pass are done."""


@dataclass(frozen=True)
class HeldPart(PartOfPass):
    """Be a part of a pass. If it is none of the first, it says in a file that it is held, and waits for a signal."""

    def run(self, telling: Telling) -> None:
        if self.number >= FREE:
            (self.job.paths[0].parent.parent / "notes" / f"held.{self.number}").touch()
            time.sleep(60)
        super().run(telling)


def held(land_all: Callable[..., list[Receipt]]) -> Callable[..., list[Receipt]]:
    """Let the first parts of a pass land their receipts. The next one says in a file that it is held, and waits."""
    turns = itertools.count()

    def wrapped(part: Part, inputs: object, outputs: Sequence[Output], *others: Any, **named: Any) -> list[Receipt]:
        if next(turns) >= FREE:
            (outputs[0].path.absolute().parent.parent / "notes" / "held").touch()
            stop: threading.Event = others[2]
            stop.wait(60)
        return land_all(part, inputs, outputs, *others, **named)

    return wrapped


def noted_runs(folder: Path) -> Counter[str]:
    """Count how often each part was begun."""
    return Counter(path.name.split(".")[0] for path in (folder / "notes").iterdir())
