"""The one judge of samples: is a measured distance the floor's, or a wrong model's?

The *floor* is what rounding alone does, the *ceiling* what a wrong model does. A result passes where it is nearer to
the floor than to the ceiling on a logarithmic scale, below their geometric mean, or within twice the floor. Where not
even the ceiling is above that, the prompt cannot tell. Distances are those of latents, or between logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

LEAST_OF_LATENTS = 1e-7
"""The distance below which two float32 results count as equal."""

LEAST_OF_LOGITS = 1e-5
"""The difference between logits below which two float32 results count as equal."""

CONSTANT = 2.0
"""Standard deviation, in levels of 255, below which a picture counts as blank."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Hold the floor, which is at least float32's own error, and the ceiling."""

    floor: float
    ceiling: float

    @classmethod
    def of(cls, floor: float, ceiling: float, least: float) -> Yardstick:
        """Take a floor of at least `least`."""
        return cls(max(floor, least), ceiling)

    @property
    def near(self) -> float:
        """Return twice the floor: a distance within it counts as the floor's."""
        return 2 * self.floor

    @property
    def limit(self) -> float:
        """Return the largest distance that passes."""
        return max(sqrt(self.floor * max(self.ceiling, self.floor)), self.near)

    @property
    def tells(self) -> bool:
        """Tell whether the ceiling is above twice the floor, so that the prompt can tell models apart."""
        return not self.ceiling <= self.near

    def passes(self, measured: float) -> bool:
        """Tell whether a distance passes; NaN does not."""
        return measured <= self.limit

    def is_at_floor(self, measured: float) -> bool:
        """Tell whether rounding alone explains a distance."""
        return measured <= self.near
