"""Hand out pieces of work to an engine, and give a piece whose worker was lost to another one."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from lorabake.batch.engines import Ended, Pool, Retries, Telling, Work
from lorabake.errors import SurroundingsError


@dataclass(frozen=True, slots=True)
class _Try:
    """Hold a piece of work, and how often it was begun before."""

    work: Work
    before: int = 0

    @property
    def name(self) -> str:
        """Name the piece in messages."""
        return self.work.name

    def run(self, telling: Telling) -> object:
        """Do the work."""
        return self.work.run(telling)


@dataclass(order=True, frozen=True, slots=True)
class _Later:
    """Hold a try that is due at a time, by the clock of `time.monotonic`."""

    due: float
    order: int
    again: _Try


def deal(pool: Pool, draw: Callable[[], Work | None], retries: Retries | None = None) -> Iterator[Ended]:
    """Run what `draw` gives on an engine whose context is open; yield each piece as it ends.

    `draw` is asked whenever there is room. None means that there is nothing at the moment: it is asked again after a
    piece has ended, and all is over when nothing is under way any more.

    A piece whose worker was lost is begun again after a while; when that has happened too often, it ends with a
    SurroundingsError. Pieces that raise an error of their own are not begun again: they would fail again.
    """
    delays = (retries or Retries()).seconds
    later: list[_Later] = []
    running = order = 0
    while True:
        while running < pool.slots:
            if later and later[0].due <= time.monotonic():
                pool.begin(heapq.heappop(later).again)
            elif (work := draw()) is not None:
                pool.begin(_Try(work))
            else:
                break
            running += 1
        if not running and not later:
            return
        for ended in pool.wait(max(later[0].due - time.monotonic(), 0.0) if later else None):
            running -= 1
            tried = ended.work
            assert isinstance(tried, _Try)
            if ended.lost is not None and tried.before < len(delays):
                order += 1
                due = time.monotonic() + delays[tried.before]
                heapq.heappush(later, _Later(due, order, replace(tried, before=tried.before + 1)))
            elif ended.lost is not None:
                yield Ended(tried.work, error=_gave_up(tried, ended.lost))
            else:
                yield replace(ended, work=tried.work)


def _gave_up(tried: _Try, why: str) -> SurroundingsError:
    return SurroundingsError(
        f"{tried.name}: its worker was lost {tried.before + 1} times; the last time, {why}",
        "If the system ended it for lack of memory, run fewer at once. What is finished is kept: run it again.",
    )
