"""The tensors of a kind, by slot, and what people are told of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

from lorabake.adapters.dora import MAGNITUDES
from lorabake.adapters.shapes import Shapes

Of = TypeVar("Of")


class Slots:
    """Name what an adapter's files hold for one module.

    `required` and `optional` are its slots, `suffixes` how files spell them: a pattern at a key's end, and the slot
    that it fills; of `markers` the presence counts, not the value, `numbers` are single ones, of any dtype,
    `integers` hold whole numbers, and `may_be_empty` need have no values. `shared` are tensors that modules of a file
    have in common: the pattern of a whole key, the slot that it fills, and the slot by which a module shows that it
    needs it; `drawn` are those of random values, which are drawn again where the file lacks them.

    `parameter` is what it changes in a module (`weight`, `bias`). `alpha_is_scale` is false where alpha means
    something else than a scale over the rank: then it comes with the tensors.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    required: ClassVar[frozenset[str]]
    optional: ClassVar[frozenset[str]] = frozenset()
    markers: ClassVar[frozenset[str]] = frozenset()
    numbers: ClassVar[frozenset[str]] = frozenset({"alpha"})
    integers: ClassVar[frozenset[str]] = frozenset()
    may_be_empty: ClassVar[frozenset[str]] = frozenset()
    suffixes: ClassVar[tuple[tuple[str, str], ...]]
    shared: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    drawn: ClassVar[frozenset[str]] = frozenset()
    parameter: ClassVar[str] = "weight"
    alpha_is_scale: ClassVar[bool] = True

    def claims(self, slots: frozenset[str]) -> frozenset[str]:
        """Return the slots of a module that this kind accounts for; none if it lacks one that it needs."""
        return slots & (self.required | self.optional | self.lengths) if self.required <= slots else frozenset()

    @property
    def lengths(self) -> frozenset[str]:
        """Return the slots of DoRA's lengths, if there may be any."""
        return MAGNITUDES if self.parameter == "weight" else frozenset()

    @property
    def announced(self) -> frozenset[str]:
        """Return the slots of whole tensors that replace the base's where a configuration announces them."""
        return frozenset()

    @property
    def has_parted_rank(self) -> bool:
        """Tell whether its rank may be that of several parts, each with a share of it and alpha over that share."""
        return False

    @property
    def may_have_alpha(self) -> bool:
        """Tell whether alpha is one of its slots."""
        return "alpha" in self.required | self.optional

    def alpha_of(self, tensors: Mapping[str, Of]) -> Of | None:
        """Return the alpha that gives the scale; None where none is there, or means something else."""
        return tensors.get("alpha") if self.alpha_is_scale else None

    def operands(self, tensors: Mapping[str, Of]) -> dict[str, Of]:
        """Leave out the alpha that gives the scale."""
        return {slot: each for slot, each in tensors.items() if slot != "alpha" or not self.alpha_is_scale}

    def lacks_scale(self, tensors: Mapping[str, object]) -> bool:
        """Tell whether the scale has to be said elsewhere: no alpha says it."""
        return self.alpha_is_scale and "alpha" not in tensors

    def rank(self, shapes: Shapes) -> int:
        """Return the rank that alpha is divided by; 1 for a kind without one."""
        return 1

    def scale(self, alpha: float, shapes: Shapes) -> float:
        """Return what the file's alpha multiplies the delta by."""
        return alpha / self.rank(shapes)

    @property
    def has_told_scale(self) -> bool:
        """Tell whether people are told its alpha."""
        return self.parameter == "weight" and self.may_have_alpha

    @property
    def has_told_rank(self) -> bool:
        """Tell whether people are told its rank, and the scale that alpha makes with it."""
        return self.has_told_scale and self.alpha_is_scale

    def told_rank(self, shapes: Shapes, weight: tuple[int, ...] | None = None) -> int | None:
        """Return the rank that people are told, None where there is none; `weight` is the base's shape, if known."""
        return self.rank(shapes)

    def told_title(self, shapes: Shapes) -> str:
        """Return what people call the kind, where the shapes tell two of one law apart."""
        return self.title
