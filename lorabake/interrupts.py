"""Let signals wait while something must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait: what they raise would leave a thread or a file forgotten.

    Or it would be swallowed, as torch's import does with it now and then.

    Threads started meanwhile leave the signals to this one for good. Threads from before may still get one (NumPy's
    do), so that the handlers wait, too.
    """
    held = {signal.SIGINT, signal.SIGTERM}
    came: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {each: signal.getsignal(each) for each in held if callable(signal.getsignal(each))}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    for each in handlers:
        signal.signal(each, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in came[:1]:
            signal.raise_signal(number)
