"""Gather facts about a whole LoRA file on a base, once, before any of its modules is placed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lorabake.matching.candidates import Candidates, Lookup
from lorabake.matching.drawn import Largest, largest_of
from lorabake.matching.experts import Sides, sides_of
from lorabake.matching.names import BaseNames
from lorabake.matching.split import TrainedApart, trained_apart
from lorabake.matching.tied import TiedChange, tied_change
from lorabake.recipe import Lora


@dataclass(frozen=True, slots=True)
class Facts:
    """Hold what placing a module needs to know about the whole file.

    `number` is the LoRA's in the recipe. `turned` says that the base stores its weights as (in, out). `largest` has,
    by the name of a kind, what its random matrices are for.
    """

    number: int
    lookup: Lookup
    turned: bool
    tied: TiedChange
    sides: Sides
    apart: TrainedApart
    largest: Mapping[str, Largest]

    @property
    def base(self) -> BaseNames:
        """Return the names of the base's modules."""
        return self.lookup.base

    @property
    def entry(self) -> Lora:
        """Return what the recipe says of the LoRA."""
        return self.lookup.lora.entry


def gather(number: int, lookup: Lookup, modules: Iterable[Candidates], *, turned: bool) -> Facts:
    """Gather the facts of a file; `modules` are those that the recipe does not ignore."""
    lora, base = lookup.lora, lookup.base
    own = lora.tensors.modules.values()
    return Facts(
        number,
        lookup,
        turned,
        tied_change(modules, base, lora),
        sides_of(own, lookup.config_of, base),
        trained_apart(lora, lookup.places, base),
        largest_of(own, lookup.places, turned=turned),
    )
