"""Run the pieces of a batch somewhere: in processes of this machine, or as tasks of a Ray cluster.

An engine knows nothing of recipes. It takes pieces of work, which are small and picklable, runs a few side by side,
and tells how each ended. `dealing` hands them out and tries again where a worker was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from lorabake.errors import LorabakeError
from lorabake.progress import unseen
from lorabake.visible import short_repr


@dataclass(frozen=True, slots=True)
class Telling:
    """Say who is told of finished bytes and of warnings, while work runs somewhere else; from any thread."""

    __repr__ = short_repr

    progress: Callable[[int], None] = unseen
    warn: Callable[[str], None] = unseen


class Work(Protocol):
    """Describe a piece of work: paths and numbers, never tensors. It is pickled, and may be run more than once."""

    @property
    def name(self) -> str:
        """Name the piece in messages."""

    def run(self, telling: Telling) -> object:
        """Do the work in this process; return something small that can be pickled, or raise a LorabakeError."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Tell how one piece of work ended: by its result, by an error, or because its worker was lost.

    `lost` says what became of the worker. Then nobody knows how far the work is, and it can be done again.
    """

    __repr__ = short_repr

    work: Work
    result: object = None
    error: LorabakeError | None = None
    lost: str | None = None


class Pool(Protocol):
    """Hold what runs pieces of work side by side: entering the context starts it, and leaving it ends all that runs.

    `slots` is how many may be under way at once; it may change, as machines come and go.
    """

    @property
    def slots(self) -> int:
        """Say how many pieces may be under way now."""

    def begin(self, work: Work) -> None:
        """Begin a piece of work; return at once."""

    def wait(self, seconds: float | None) -> Sequence[Ended]:
        """Wait until a piece has ended, or the time is over; return those that have."""

    def abandon(self) -> None:
        """End all that is under way, and wait for that; what it has not finished is left as it is."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Retries:
    """Say how often a piece of work is begun again whose worker was lost, and after how many seconds each time."""

    seconds: tuple[float, ...] = field(default=(1.0, 4.0))
