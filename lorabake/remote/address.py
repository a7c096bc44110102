"""What every address of an input can do, whatever its scheme."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol


@dataclass(frozen=True, slots=True)
class Wanted:
    """Say what else is known of an input: the SHA-256 and the variant in the recipe, the commit in its lock."""

    sha256: str | None = None
    commit: str | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """Tell where an input is now, and how many bytes of it came over the network."""

    address: str
    path: Path
    commit: str | None
    received: int


class Progress(Protocol):
    """Show how far a download is."""

    def begin(self, what: str, total: int) -> None:
        """Start a new bar in place of the last one."""

    def advance(self, count: int) -> None:
        """Count bytes."""


class Address(Protocol):
    """Name a file or a folder on another machine."""

    needs_digest: ClassVar[bool]
    """Whether a recipe must give the SHA-256 beside the address."""

    @property
    def written(self) -> str:
        """The address as the recipe has it."""

    @property
    def source(self) -> str:
        """The address without its revision, for a lock."""

    def uri(self, commit: str | None) -> str:
        """Name where it comes from as a URI that holds for everybody; `commit` is the one that it leads to."""

    def cached(self, wanted: Wanted) -> Path:
        """Return where it lies on this machine; raise FileError if it is not there, or not whole."""

    def resolved(self) -> str | None:
        """Return the commit that the address leads to on this machine; None where there is none."""

    def fetch(self, wanted: Wanted, progress: Progress) -> Fetched:
        """Download what is not there yet, and check it."""


@contextmanager
def quiet_network() -> Iterator[None]:
    """Keep what libraries log of the network to themselves: it has addresses that were signed for one download."""
    import logging

    names = ("huggingface_hub", "httpx", "httpx2", "httpcore", "urllib3")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
