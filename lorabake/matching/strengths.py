"""Work out how strongly a module is changed, from a recipe's strength, components, blocks and semantics."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lorabake.adapters.kind import Kind
from lorabake.adapters.programs import SCALE_OF_ALPHA_0, SKIPPING_STRENGTH_0
from lorabake.adapters.shapes import Shapes
from lorabake.keymap.view import View
from lorabake.recipe import Lora


@dataclass(frozen=True, slots=True)
class Strength:
    """Hold the strength of a module, all factors in; `glob` is the block pattern that took it, if one did.

    `is_left_out` says that this pattern's factor is 0.
    """

    value: float
    glob: str = ""
    is_left_out: bool = False

    @property
    def reason(self) -> str:
        """Say why a module of the strength 0 is left out."""
        return f"strength 0 by the block pattern {self.glob!r}" if self.is_left_out else "strength 0"


def strength_of(entry: Lora, component: str, names: Sequence[str]) -> Strength | None:
    """Return the strength of a module with these names; None if the recipe does not mention its component."""
    strength = entry.strength
    if isinstance(strength, dict):
        if component not in strength:
            return None
        strength = strength[component]
    for glob, factor in entry.blocks.items():
        if any(fnmatchcase(name, glob) or fnmatchcase(f"{component}.{name}", glob) for name in names):
            return Strength(strength * factor, glob, is_left_out=not factor)
    return Strength(strength)


def unlisted(entry: Lora) -> str:
    """Say why a module is left out whose component the recipe does not list."""
    return f"not in components: [{', '.join(entry.components or ())}]"


def leaves_out(entry: Lora, components: Collection[str]) -> bool:
    """Tell whether a recipe lists none of these components; without a known component, nothing is left out."""
    return entry.components is not None and bool(components) and not {*components} & {*entry.components}


def acts_at_0(kind: Kind, shapes: Shapes, view: View | None, entry: Lora) -> bool:
    """Tell whether the followed program changes a parameter even at strength 0."""
    program, strength = entry.semantics, entry.strength
    if program is None or not kind.is_read_by(program) or view is None:
        return False
    if program in SKIPPING_STRENGTH_0 and not (isinstance(strength, dict) and any(strength.values())):
        return False
    if kind.unread(program, shapes, view.shape):  # the program fails at it and skips it
        return False
    return kind.share(0.0, program, shapes) != 0


def scale_of_alpha_0(program: str | None) -> float | None:
    """Return the scale that a program uses for an alpha of 0 in the configuration; None if unknown."""
    return 0.0 if program == "peft" else SCALE_OF_ALPHA_0.get(program or "")
