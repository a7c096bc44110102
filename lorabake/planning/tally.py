"""Sum up what was observed of a LoRA's changes, as numbers only."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, sqrt


@dataclass(slots=True)
class Tally:
    """Sum up what was observed of one LoRA's changes δ.

    `moves` maps each module to whether it changes anything. `negative` are modules with a negative scale; `erasing`
    are modules with zeros among their DoRA magnitudes. Over the rows that were looked at, `energy` is ‖δ‖², `base` is
    ‖W‖², and `due` and `arrived` are the inner products with δ of the change that was due and the change that
    arrived.
    """

    moves: dict[str, bool] = field(default_factory=dict)
    negative: set[str] = field(default_factory=set)
    erasing: set[str] = field(default_factory=set)
    energy: float = 0.0
    base: float = 0.0
    due: float = 0.0
    arrived: float = 0.0

    def count(self, module: str, *, moves: bool) -> None:
        """Record whether a part of a module changes anything."""
        self.moves[module] = self.moves.get(module, False) or moves

    def add(self, other: Tally) -> None:
        """Add another tally of the same LoRA."""
        for module, moves in other.moves.items():
            self.count(module, moves=moves)
        self.negative |= other.negative
        self.erasing |= other.erasing
        self.energy += other.energy
        self.base += other.base
        self.due += other.due
        self.arrived += other.arrived

    @property
    def idle(self) -> list[str]:
        """List the modules that change nothing, sorted by name."""
        return sorted(module for module, moves in self.moves.items() if not moves)

    @property
    def survival(self) -> float | None:
        """Return the share of the due change that arrived, between 0 and 1; None if none was due.

        A projection can lie a little beyond both, where rounding went by chance with the change or against it.
        """
        if not (self.due > 0 and isfinite(self.arrived)):
            return None
        return min(self.arrived / self.due, 1.0) if self.arrived > 0 else 0.0

    @property
    def size(self) -> float:
        """Return ‖δ‖/‖W‖; 0 if no weight was seen."""
        return sqrt(self.energy / self.base) if self.base > 0 and isfinite(self.energy) else 0.0
