"""Measure the most memory that a bake takes."""

from __future__ import annotations

from lorabake.machine import anonymous_memory


class PeakMemory:
    """Keep the largest sample of this process's anonymous memory; file pages in the system's cache don't count."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self.sample()

    def sample(self) -> None:
        """Take a sample."""
        if (now := anonymous_memory()) is not None:
            self.peak = max(self.peak or 0, now)
