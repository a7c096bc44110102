"""Hold signals back while something must not be interrupted half-way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STOPPING: Final = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
"""Signals that ask a program to end; a closing terminal sends SIGHUP."""


@contextmanager
def held() -> Iterator[None]:
    """Let signals that ask to end wait: what they raise would leave a thread or a file forgotten.

    torch's import swallows it now and then, too. Threads started meanwhile leave the signals to this one for good.
    Threads from before may still get one (NumPy's do), so that the handlers wait, too.
    """
    came: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {
            stopping: signal.getsignal(stopping) for stopping in STOPPING if callable(signal.getsignal(stopping))
        }
    mask = getattr(signal, "pthread_sigmask", None)  # POSIX has it; elsewhere the handlers must do
    before = mask(signal.SIG_BLOCK, STOPPING) if mask else set()
    for stopping in handlers:
        signal.signal(stopping, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for stopping, handler in handlers.items():
            signal.signal(stopping, handler)
        if mask:
            mask(signal.SIG_SETMASK, before)
        for number in came[:1]:
            signal.raise_signal(number)
