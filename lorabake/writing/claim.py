"""Give one process of any number of machines a right that no other has, where locks may not reach that far.

A claim is a file that only one process can make. Its holder writes into it again and again, so that the others see
that it is alive. If it falls silent, another one makes the file with the next number, and the right is its own. No
claim is ever removed or renamed, so that a process that judged late takes nothing from a new holder.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from lorabake.machine import process_began, process_space
from lorabake.writing.system import open_new, write_all

BEAT: Final = 5.0
"""Seconds from one sign of life to the next."""

PATIENCE: Final = 60.0
"""Seconds without a sign of life after which a holder on another machine counts as dead."""

POLL: Final = 0.2
"""Seconds from one look at another's claim to the next."""

_NAME: Final = "claim"

_LENGTH: Final = 256
"""Bytes of a claim, so that a shorter text leaves nothing of a longer one behind."""


class Claim:
    """Hold the right to a folder, or find out that another process has it; leaving the context gives it back.

    The claims lie in the folder itself, and go when it goes.
    """

    def __init__(self, folder: Path, *, patience: float = PATIENCE, beat: float = BEAT) -> None:
        self._folder, self._patience, self._beat = folder, patience, beat
        self._number = -1
        self._fd = -1
        self._beats = 0
        self._ends = threading.Event()
        self._pulse: threading.Thread | None = None
        self._watched: tuple[int, bytes, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def take(self) -> bool:
        """Try to get the right; return False where another process has it and may be alive.

        Ask again later: only then can it be seen whether the other one still gives signs of life. Raise OSError if
        the system refuses; FileNotFoundError where the folder has gone.
        """
        number = self._last()
        if number >= 0 and not self._is_dead(number):
            return False
        try:
            self._fd = open_new(self._place(number + 1))
        except FileExistsError:
            return False
        self._number = number + 1
        self._sign()
        self._pulse = threading.Thread(target=self._keep_signing, name="claim", daemon=True)
        self._pulse.start()
        return True

    @property
    def is_held(self) -> bool:
        """Tell whether this process has the right, and no other one took it for dead."""
        return self._number >= 0 and self._last() == self._number

    def leave(self) -> None:
        """Give the right back, so that nobody has to wait for a sign of life; the file stays."""
        self._ends.set()
        if self._pulse is not None:
            self._pulse.join()
            self._pulse = None
        if self._fd >= 0:
            with suppress(OSError):
                self._sign(left=True)
            with suppress(OSError):
                os.close(self._fd)
        self._fd = self._number = -1

    def _place(self, number: int) -> Path:
        return self._folder / f"{_NAME}.{number}"

    def _last(self) -> int:
        """Return the number of the last claim, or -1."""
        return max((int(name.rpartition(".")[2]) for name in os.listdir(self._folder) if is_claim(name)), default=-1)

    def _sign(self, *, left: bool = False) -> None:
        self._beats += 1
        text = json.dumps({"beat": f"{self._beats:09}", "holder": None if left else _holder()}).encode()
        write_all(self._fd, memoryview(text.ljust(_LENGTH)), 0)

    def _keep_signing(self) -> None:
        while not self._ends.wait(self._beat):
            with suppress(OSError):  # the disk is full or gone: the others may then take this process for dead
                self._sign()

    def _is_dead(self, number: int) -> bool:
        """Tell whether a holder has left, or its process is gone, or it was silent while this one had patience."""
        try:
            said = self._place(number).read_bytes()  # opened anew, so that a network file system asks its server
        except FileNotFoundError:
            return False
        now = time.monotonic()
        if self._watched is None or self._watched[:2] != (number, said):
            self._watched = (number, said, now)
        gone = _is_gone(said)
        return now - self._watched[2] >= self._patience if gone is None else gone


def is_claim(name: str) -> bool:
    """Tell whether a file's name is a claim's."""
    return re.fullmatch(rf"{_NAME}\.\d{{1,9}}", name) is not None


# -- which process ---------------------------------------------------------------------------------------------


def _holder() -> str:
    return f"{process_space()} {os.getpid()} {process_began(os.getpid())}"


def _is_gone(said: bytes) -> bool | None:
    """Tell whether a claim's holder is gone; None where only its silence will tell."""
    try:
        holder = json.loads(said)["holder"]
    except (ValueError, TypeError, KeyError):  # caught while it was written
        return None
    if holder is None:
        return True
    machine, _, process = str(holder).rpartition(" ")[0].rpartition(" ")
    if not machine.strip() or machine != process_space():
        return None
    return str(holder).rpartition(" ")[2] != process_began(int(process))
