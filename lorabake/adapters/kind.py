"""What an adapter kind is: one of three shapes, by what it does to a weight.

A `Product` adds one of two factors, a `Delta` adds anything else and may read the weight, a `Replacement` sets the
parameter. `Kind` is what all three have: tensors (`slots.py`), settings (`settings.py`), the laws of programs
(`followed.py`), and, here, where it fits and what it does. Strength, dtype, device, slicing and accumulation are the
executor's business. A weight is seen as a matrix (out, columns), columns = inputs × kernel; tensors arrive in the
compute dtype on the compute device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from lorabake.adapters import dora
from lorabake.adapters.dora import MAGNITUDES, Dora, Lengthened
from lorabake.adapters.effect import Check, Effect, Factors, Law, Value
from lorabake.adapters.followed import Followed
from lorabake.adapters.settings import Configured, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors, matrix
from lorabake.keymap.view import View

if TYPE_CHECKING:
    import torch


class Kind(Configured, Followed, ABC):
    """Define one adapter algorithm: what its three shapes, `Product`, `Delta` and `Replacement`, have in common.

    With `is_stored` its tensors are called as a checkpoint's own. One that `underlies` another sets what the other
    one adds to, if that `goes_on_top`. With `by_place` the module's place tells the kind, not its slots. With
    `on_embedding` it is for embeddings, which no model turns. With `where_present` the base may lack what it changes.

    These variables are for kinds to set. The rest of lorabake asks properties and methods.
    """

    by_place: ClassVar[bool] = False
    is_stored: ClassVar[bool] = False
    underlies: ClassVar[bool] = False
    goes_on_top: ClassVar[bool] = False
    on_embedding: ClassVar[bool] = False
    where_present: ClassVar[bool] = False

    # -- where it fits ---------------------------------------------------------------------------------

    @property
    def may_be_turned(self) -> bool:
        """Tell whether it changes a weight the other way round where a model has that as (in, out)."""
        return self.parameter == "weight" and not self.on_embedding

    def view_of(self, views: Mapping[str, View], *, turned: bool = False) -> View | None:
        """Choose what it changes of a module's parameters; None where the module lacks that.

        `turned` says that the base has all its weights as (in, out).
        """
        view = views.get(self.parameter)
        if view is None or view.stacked:
            return None
        if turned and self.may_be_turned and len(view.shape) == 2:
            return View(view.regions, (view.shape[1], view.shape[0]), transpose=True)
        return view

    def absence(self) -> str | None:
        """Say why it cannot do without what it changes; None where the base's module may lack that."""
        return None if self.where_present else f"the base's module has no {self.parameter}"

    @abstractmethod
    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Say why tensors of these shapes cannot change a weight of that shape, or None if they can.

        Nothing may fit by being repeated: a tensor of one value for many is another tensor than it should be.
        """

    def empty(self, shapes: Shapes) -> str | None:
        """Return the first slot without values that needs some; None where there is none, or the rank is 0."""
        slots = (slot for slot in sorted(shapes) if 0 in shapes[slot] and slot not in self.may_be_empty)
        slot = next(slots, None)
        return slot if slot and self.rank(shapes) != 0 else None

    def measures(self, shapes: Shapes, weight: tuple[int, ...]) -> bool:
        """Tell whether DoRA's lengths, if there are any, are those of a weight's rows or of its columns."""
        return not self.lengths & shapes.keys() or dora.axis(shapes, weight, self.length_axis) is not None

    # -- what it does to a weight ----------------------------------------------------------------------

    adds: ClassVar[bool]
    """Whether it adds to the parameter; what does not sets it, before others add to it."""

    may_sum_weight: ClassVar[bool]
    """Whether the change may sum over values of the weight, or solve equations: it is neither product nor value."""

    def leaves_nothing(self, share: float) -> bool:
        """Tell whether nothing is left of what it meets, at this share."""
        return False

    def dora_of(self, shapes: Shapes, weight: tuple[int, ...], program: str, strength: float) -> Dora | None:
        """Return what sets the lengths of the result; None where no magnitude does."""
        if not self.lengths & shapes.keys():
            return None
        axis = dora.axis(shapes, weight, self.length_axis)
        if axis is None:
            raise ValueError(dora.NO_AXIS)
        return Dora(axis, weight, program, strength)

    @abstractmethod
    def mixes_rows(self, *, turned: bool) -> bool:
        """Tell whether a row of what it changes depends on other stored rows; `turned`, these are its columns."""

    def needs_all_rows(self, magnitude: Dora | None, *, turned: bool) -> bool:
        """Tell whether a stored row takes others to be computed; `turned`, these are the weight's columns."""
        return self.mixes_rows(turned=turned) or (magnitude is not None and (turned or magnitude.needs_all_rows))

    def working_values(self, shapes: Shapes, settings: Any) -> int:
        """Count the values that it holds, at most, while it computes, beside the weight."""
        return sum(2 * rows * columns for rows, columns in map(matrix, shapes.values()))

    @abstractmethod
    def summed_terms(self, shapes: Shapes, weight: tuple[int, ...]) -> int:
        """Count the terms of the sums that one value of the change takes."""

    def effect(self, tensors: Tensors, terms: TermsOf[Any], check: Check, lengths: Dora | None = None) -> Effect:
        """Compute once what all rows need, and return what rows are changed by, with `lengths` on top.

        Raise ValueError for values that no such weight can have.
        """
        own = {slot: tensor for slot, tensor in tensors.items() if slot not in MAGNITUDES}
        magnitudes = [tensors[slot] for slot in MAGNITUDES & tensors.keys()]
        if len(magnitudes) != (lengths is not None):
            raise ValueError(dora.NO_AXIS)
        inner = self._effect(own, terms, check)
        return inner if lengths is None else Lengthened(inner, magnitudes[0].reshape(-1), lengths)

    @abstractmethod
    def _effect(self, tensors: Tensors, terms: TermsOf[Any], check: Check) -> Effect:
        """Return the effect without any DoRA."""


class Product(Kind):
    """Add a product `up @ down`, times the scale."""

    adds = True
    may_sum_weight = False
    goes_on_top = True

    @property
    def has_parted_rank(self) -> bool:
        """Tell that fused modules may be written so."""
        return True

    @property
    def has_told_scale(self) -> bool:
        """Tell whether people are told its alpha: of all products, be it 1."""
        return self.parameter == "weight"

    @abstractmethod
    def factors(self, tensors: Tensors, terms: TermsOf[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (up, down), shaped (out, rank) and (rank, columns), whose product is the unscaled delta."""

    def mixes_rows(self, *, turned: bool) -> bool:
        """Tell that each row has its own."""
        return False

    def summed_terms(self, shapes: Shapes, weight: tuple[int, ...]) -> int:
        """Count the rank."""
        return self.rank(shapes)

    def _effect(self, tensors: Tensors, terms: TermsOf[Any], check: Check) -> Effect:
        up, down = self.factors(tensors, terms)
        rows, columns = matrix(terms.shape)
        return Factors(check(up, (rows, len(down))), check(down, (len(down), columns)) * terms.scale)


class Delta(Kind):
    """Add anything else, which may depend on the weight.

    `by_rows` is false where rows of it depend on other rows of the weight.
    """

    adds = True
    may_sum_weight = True
    by_rows: ClassVar[bool] = True

    def prepare(self, tensors: Tensors, terms: TermsOf[Any]) -> Tensors:
        """Compute once what all rows need; `delta` gets the result in the place of the tensors."""
        return tensors

    @abstractmethod
    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[Any]) -> torch.Tensor:
        """Return W(1) − W of some rows of the module, scale included; `weight` holds those rows (rows, columns)."""

    def mixes_rows(self, *, turned: bool) -> bool:
        """Tell that a law wants rows of the weight whole, which are columns where that is turned."""
        return turned or not self.by_rows

    def summed_terms(self, shapes: Shapes, weight: tuple[int, ...]) -> int:
        """Count the longest side of what a row may be computed from."""
        return max(weight[1:] if self.by_rows else weight, default=1)

    def _effect(self, tensors: Tensors, terms: TermsOf[Any], check: Check) -> Effect:
        return Law(partial(self._rows, self.prepare(tensors, terms), terms), check)

    def _rows(self, prepared: Tensors, terms: TermsOf[Any], weight: torch.Tensor, rows: slice) -> torch.Tensor:
        return self.delta(prepared, weight, rows, terms)


class Replacement(Kind):
    """Set the parameter, whatever it was."""

    adds = False
    may_sum_weight = False

    @property
    def lengths(self) -> frozenset[str]:
        """Return none: what is set has its own lengths."""
        return frozenset()

    @property
    def may_be_turned(self) -> bool:
        """Tell that files have it as the base does."""
        return False

    def view_of(self, views: Mapping[str, View], *, turned: bool = False) -> View | None:
        """Choose the parameter as it is stored, where a module sees it otherwise."""
        view = views.get(self.parameter)
        return None if view is not None and view.stacked else views.get(f"stored_{self.parameter}", view)

    @abstractmethod
    def value(self, tensors: Tensors) -> torch.Tensor:
        """Return what the parameter becomes at strength 1, shaped (out, columns), whatever it was."""

    def leaves_nothing(self, share: float) -> bool:
        """Tell whether it is set all the way."""
        return share == 1

    def mixes_rows(self, *, turned: bool) -> bool:
        """Tell that rows stay rows, unless the weight is turned."""
        return turned

    def summed_terms(self, shapes: Shapes, weight: tuple[int, ...]) -> int:
        """Count a row's longest side."""
        return max(weight[1:], default=1)

    def _effect(self, tensors: Tensors, terms: TermsOf[Any], check: Check) -> Effect:
        return Value(check(self.value(tensors), matrix(terms.shape)))
