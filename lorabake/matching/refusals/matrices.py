"""Refuse random matrices that a file's modules share, if their sizes cannot be right."""

from __future__ import annotations

from collections.abc import Iterable

from lorabake.adapters.kind import Kind
from lorabake.adapters.shapes import Shapes
from lorabake.matching.drawn import Largest
from lorabake.visible import visible


def matrices_depend_on_the_placeless(kind: Kind, slots: Iterable[str], largest: Largest) -> str | None:
    """Refuse to draw matrices whose sizes are unknown because a module has no place."""
    if not largest.placeless or kind.drawn & {*slots}:
        return None
    return f"its random matrices depend on {visible(largest.placeless)}, which has no place"


def matrix_is_of_another_size(kind: Kind, shapes: Shapes, largest: Largest) -> str | None:
    """Refuse matrices in the file that are not as large as its modules need."""
    wanted = {} if largest.placeless else kind.drawn_shapes(shapes, largest.sides)
    for slot in sorted(kind.drawn & shapes.keys() & wanted.keys()):
        if shapes[slot] != wanted[slot]:
            return f"its {slot} is {shapes[slot]}, and all its layers ask for {wanted[slot]}"
    return None
