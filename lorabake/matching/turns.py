"""Tell from the shapes in a LoRA file whether a base of an unknown family stores its weights as (in, out)."""

from __future__ import annotations

from dataclasses import dataclass

from lorabake.adapters import kinds_of
from lorabake.matching.candidates import Lookup
from lorabake.sources.family import GENERIC


@dataclass(frozen=True, slots=True)
class Turns:
    """Count the modules of a file by the orientation in which their tensors fit the base's weights.

    `straight` ones fit only the weight as it is, `turned` ones only its transpose. `either` fit both; of these,
    `squares` are square.
    """

    straight: int = 0
    turned: int = 0
    either: int = 0
    squares: int = 0

    @property
    def are_turned(self) -> bool:
        """Tell whether the base stores its weights as (in, out)."""
        return self.turned > 0 and self.straight == 0


def turns_of(lookup: Lookup) -> Turns:
    """Decide by shapes whether `fan_in_fan_out` means that this base stores its weights as (in, out).

    PEFT ignores the flag on ordinary linear layers. Families with a table know the orientation; for others, shapes
    decide.
    """
    config = lookup.lora.config
    if config is None or not config.fan_in_fan_out or lookup.base.key_map.architecture.name != GENERIC:
        return Turns()
    straight = turned = either = squares = 0
    for module in lookup.lora.tensors.modules.values():
        kind = next((kind for kind in kinds_of(frozenset(module.slots)) if kind.parameter == "weight"), None)
        for place in lookup.places(module.name)[:1]:
            view = place.views.get("weight")
            if view and kind and kind.may_be_turned and len(view.shape) == 2:
                rows, columns = view.shape
                ways = ((rows, columns), (columns, rows))
                as_is, other = (kind.fault(module.shapes, shape) is None for shape in ways)
                straight += as_is and not other
                turned += other and not as_is
                either += as_is and other
                squares += as_is and rows == columns
    return Turns(straight, turned, either, squares)
