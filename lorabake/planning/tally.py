"""Sum up what was seen of a LoRA's changes: numbers alone, for whoever looks at them."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, sqrt


@dataclass(slots=True)
class Tally:
    """Sum up what was seen of one LoRA's changes δ.

    `moves` tells of each module whether it changes anything, `negative` and `erasing` are modules whose scale is
    negative, and whose DoRA magnitudes have zeros. In the rows that were looked at: ‖δ‖² (`energy`) beside ‖W‖²
    (`base`), and the inner products with δ of what was `due` and what `arrived`.
    """

    moves: dict[str, bool] = field(default_factory=dict)
    negative: set[str] = field(default_factory=set)
    erasing: set[str] = field(default_factory=set)
    energy: float = 0.0
    base: float = 0.0
    due: float = 0.0
    arrived: float = 0.0

    def count(self, module: str, *, moves: bool) -> None:
        """Note of a part of a module whether it changes anything."""
        self.moves[module] = self.moves.get(module, False) or moves

    def add(self, other: Tally) -> None:
        """Add what was seen elsewhere."""
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
        """List the modules that change nothing, in the order of their names."""
        return sorted(module for module, moves in self.moves.items() if not moves)

    @property
    def survival(self) -> float | None:
        """Return the share of what was due that arrived; None where nothing was."""
        return self.arrived / self.due if self.due > 0 and isfinite(self.arrived) else None

    @property
    def size(self) -> float:
        """Return ‖δ‖/‖W‖, 0 where no weight was met."""
        return sqrt(self.energy / self.base) if self.base > 0 and isfinite(self.energy) else 0.0
