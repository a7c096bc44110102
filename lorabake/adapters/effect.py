"""What a patch makes of rows of its module, once its tensors are read: one contract for the three shapes of kinds.

Which rows are asked for, and where they lie, is the executor's business. A weight is seen as a matrix (out, columns);
`rows` are those of the module, and `weight` holds just these. Tensors are in the compute dtype on the compute device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

Check = Callable[["torch.Tensor", tuple[int, ...]], "torch.Tensor"]
"""Return a tensor of just this shape; raise for one of another, which torch might repeat to fill it."""


class Effect(ABC):
    """Change rows of a weight. `is_result` says that `of` gives W(1) itself, and not W(1) − W."""

    __slots__ = ()
    is_result: ClassVar[bool] = False
    reads_weight: ClassVar[bool] = True

    @property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return (up, down) where W(1) − W is their product, so that several may be added at once; else None."""
        return None

    @property
    def erases(self) -> bool:
        """Tell whether it sets rows or columns to zero, whatever they were."""
        return False

    @abstractmethod
    def of(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return W(1) of these rows where that `is_result`, else W(1) − W."""

    def difference(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return W(1) − W of these rows."""
        made = self.of(weight, rows)
        return made - weight if self.is_result else made

    def apply(self, weight: torch.Tensor, base: torch.Tensor, rows: slice, share: float) -> None:
        """Change rows in place by a share; `base` is what they were first: `weight` itself if nothing came before."""
        weight.add_(self.of(base, rows), alpha=share)


@dataclass(frozen=True, slots=True)
class Factors(Effect):
    """Add `up @ down`, shaped (out, rank) and (rank, columns)."""

    up: torch.Tensor
    down: torch.Tensor

    reads_weight = False

    @property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both."""
        return self.up, self.down

    def of(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Multiply these rows out."""
        return self.up[rows] @ self.down


@dataclass(frozen=True, slots=True)
class Law(Effect):
    """Add what a law makes of rows of the weight."""

    law: Callable[[torch.Tensor, slice], torch.Tensor]
    check: Check

    def of(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Compute these rows."""
        return self.check(self.law(weight, rows), tuple(weight.shape))


@dataclass(frozen=True, slots=True)
class Value(Effect):
    """Set the parameter to `value`, whatever it was. It comes before all that adds to it."""

    value: torch.Tensor

    is_result = True
    reads_weight = False

    def of(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return these rows of it."""
        return self.value[rows]

    def apply(self, weight: torch.Tensor, base: torch.Tensor, rows: slice, share: float) -> None:
        """Go a share of the way from what is there."""
        weight.lerp_(self.value[rows], share)
