"""Size the random matrices that all modules of a file share: the largest weights decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lorabake.adapters import kinds_of
from lorabake.adapters.kind import Kind
from lorabake.keymap.module import Module
from lorabake.keymap.slots import LoraModule
from lorabake.matching.refusals.shapes import fault_of


@dataclass(frozen=True, slots=True)
class Largest:
    """Hold the largest numbers of outputs and inputs among the weights of a kind's modules, including those left out.

    `placeless` names a module of the kind without a place, if there is one.
    """

    outputs: int = 0
    inputs: int = 0
    placeless: str = ""

    @property
    def sides(self) -> tuple[int, int]:
        """Return both."""
        return self.outputs, self.inputs


def largest_of(
    modules: Iterable[LoraModule], places: Callable[[str], list[Module]], *, turned: bool
) -> Mapping[str, Largest]:
    """Find the largest weights for each kind of a file that draws matrices, by the kind's name."""
    modules = [*modules]
    of_file = {kind for slots in {frozenset(lora.slots) for lora in modules} for kind in kinds_of(slots)}
    return {kind.name: _measured(kind, modules, places, turned=turned) for kind in of_file if kind.drawn}


def _measured(
    kind: Kind, modules: Iterable[LoraModule], places: Callable[[str], list[Module]], *, turned: bool
) -> Largest:
    outputs, inputs, placeless = 0, 0, ""
    for lora in modules:
        if not kind.required <= lora.slots.keys():
            continue
        candidates = places(lora.name)
        fitting = [place for place in candidates if fault_of((kind,), lora.shapes, place, turned=turned) is None]
        placeless = placeless if fitting else lora.name
        if fitting and (view := kind.view_of(fitting[0].views, turned=turned)) is not None:
            outputs, inputs = max(outputs, view.shape[0]), max(inputs, view.shape[1])
    return Largest(outputs, inputs, placeless)
