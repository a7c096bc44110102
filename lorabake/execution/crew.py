"""Run the threads of a bake: the first failure stops all of them, and is raised in the waiting thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from lorabake.machine import exhausted, unwritable

Item = TypeVar("Item")


class Crew:
    """Run functions in threads; an error in the context stops them, and waits for their end.

    `workers` is how many of them begin together; `ready` counts these.
    """

    def __init__(self, workers: int) -> None:
        self.stop = threading.Event()
        self.ready = threading.Barrier(workers)
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if error is not None:
            self.stop.set()
            self.ready.abort()
            for thread in self._threads:
                thread.join()

    def start(self, task: Callable[[], object], place: Path) -> threading.Thread:
        """Run a function in a thread. Signals must be held during the call, or a started thread could be lost.

        `place` is where it writes, for error messages.
        """

        def run() -> None:
            try:
                task()
            except BaseException as error:
                self._failures.append(refused(error, place))
                self.stop.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def join(self, threads: Iterable[threading.Thread], meanwhile: Callable[[], None]) -> None:
        """Wait for threads; raise the first failure of any."""
        for thread in threads:
            while thread.is_alive():
                thread.join(0.05)
                meanwhile()
        if self._failures:
            causes = [error for error in self._failures if not isinstance(error, threading.BrokenBarrierError)]
            raise [*causes, *self._failures][0]


class Shared(Generic[Item], Iterator[Item]):
    """Let several threads take items from one iterator."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._lock = threading.Lock()

    def __next__(self) -> Item:
        with self._lock:
            return next(self._items)


def refused(error: BaseException, path: Path) -> BaseException:
    """Return the error for a system's refusal in a thread: of writing, since reading reports its own failures."""
    return exhausted(error) or (unwritable(path, error) if isinstance(error, OSError) else error)
