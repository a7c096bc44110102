"""Be a task on a machine of a cluster: unpack a piece of work, do it, and pack what came of it.

Arguments and results are a few kilobytes, so that Ray sends them with its own messages. Nothing enters its object
store.
"""

from __future__ import annotations

import os
import pickle
import threading
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from lorabake.batch.engines import Telling, Work
from lorabake.batch.engines.link import Done, done_by, packed
from lorabake.batch.engines.sight import Markers
from lorabake.errors import InternalError
from lorabake.settings import as_options

CHUNK = 64 << 10
"""Bytes of one argument: Ray keeps arguments and results of more than 100 kB in its object store."""


SETTINGS: Final = "LORABAKE_"
"""How the names of variables begin that count on every machine as they do on the driver's; but for tokens."""


@dataclass(frozen=True, slots=True)
class Order:
    """Hold a piece of work, whether advice names options of the command line, and the variables that count."""

    work: Work
    as_options: bool
    settings: dict[str, str]


def own_settings() -> dict[str, str]:
    """Return this process's variables that count on every machine."""
    names = [name for name in os.environ if name.startswith(SETTINGS) and "TOKEN" not in name]
    return {name: os.environ[name] for name in names}


@dataclass(frozen=True, slots=True)
class Report:
    """Tell how a piece of work ended on another machine, how many bytes it finished, and what it warned of."""

    done: Done
    count: int
    warnings: tuple[str, ...]


def pack(value: object) -> list[bytes]:
    """Pickle a value into short arguments."""
    data = zlib.compress(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
    return [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]


def unpack(chunks: Sequence[bytes]) -> object:
    """Return the value that was packed."""
    return pickle.loads(zlib.decompress(b"".join(chunks)))


def run(*chunks: bytes) -> bytes:
    """Do a piece of work, given as a packed Order; return a packed Report."""
    counts, warnings, lock = [0], dict[str, None](), threading.Lock()

    def count(more: int) -> None:
        with lock:
            counts[0] += more

    def warn(text: str) -> None:
        with lock:
            warnings[text] = None

    order: Order = unpack(chunks)  # type: ignore[assignment]
    os.environ.update(order.settings)
    with as_options() if order.as_options else nullcontext():
        done = done_by(order.work, Telling(count, warn))
    answer = pack(Report(done, counts[0], (*warnings,)))
    if len(answer) > 1:
        fault = InternalError(
            f"a piece of work returned {sum(map(len, answer)):,} bytes: more than a message of Ray's"
        )
        answer = pack(Report(Done(error=packed(fault)), counts[0], ()))
    return answer[0]


def look(*chunks: bytes) -> bytes:
    """Look at markers from here; return the packed Sight."""
    markers: Markers = unpack(chunks)  # type: ignore[assignment]
    (answer,) = pack(markers.look())
    return answer
