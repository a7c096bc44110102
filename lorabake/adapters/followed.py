"""What programs make of a kind, where a recipe asks for their reading (`semantics`)."""

from __future__ import annotations

from typing import Any, ClassVar

from lorabake.adapters import dora
from lorabake.adapters.programs import PROGRAMS
from lorabake.adapters.settings import Settings
from lorabake.adapters.shapes import Shapes
from lorabake.adapters.slots import Slots
from lorabake.keymap.view import View


class Followed(Slots):
    """Follow a program's law where it is another than the definition.

    Of `PROGRAMS`, `programs` read the kind, `dora_in` with DoRA on top, and `whole_in` apply it whole at any
    strength. `reads_weight` is true where the change depends on the weight. `length_axis` says of what a `magnitude`
    on it has the lengths.
    """

    programs: ClassVar[frozenset[str]] = frozenset({"peft"})
    dora_in: ClassVar[frozenset[str]] = frozenset()
    whole_in: ClassVar[frozenset[str]] = frozenset()
    reads_weight: ClassVar[bool] = False
    length_axis: ClassVar[dora.Axis] = "row"

    def is_read_by(self, program: str) -> bool:
        """Tell whether a program reads the kind."""
        return program in self.programs

    def is_whole_in(self, program: str) -> bool:
        """Tell whether a program applies the kind whole at any strength."""
        return program in self.whole_in

    def misread(self, program: str, shapes: Shapes, view: View) -> str | None:
        """Say why lorabake cannot follow a program that is given these tensors for `view`, or None if it can."""
        if not self.is_read_by(program):
            return f"{PROGRAMS[program]} does not read this form of {self.title}; leave out semantics, or the module"
        by_rows = False
        if self.lengths & shapes.keys():
            if program not in self.dora_in:
                return f"{program} has no law of DoRA on {self.title} that lorabake knows"
            if why := dora.unread(program, shapes):
                return why
            by_rows = dora.axis(shapes, view.shape, self.length_axis) == "row"
        if view.is_reordered and program in dora.LENGTHS_OF_THE_BASE and (by_rows or self.reads_weight):
            what = "DoRA's lengths" if by_rows else "the weight"
            return f"{PROGRAMS[program]} swaps the halves of this module's change, and forgets those of {what}"
        return self.unread(program, shapes, view.shape)

    def unread(self, program: str, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Say what a program of `programs` fails at, given tensors of these shapes; None if nothing."""
        return None

    def follow(
        self, settings: Any, program: str, shapes: Shapes, weight: tuple[int, ...], strength: float
    ) -> Settings:
        """Return the settings by which the kind follows a program: the same where its law is the definition.

        `weight` is the module's shape.
        """
        own: Settings = settings
        return own

    def share(self, strength: float, program: str, shapes: Shapes) -> float:
        """Return what W(1) − W is multiplied by: the strength, but in programs that put it elsewhere."""
        if self.lengths & shapes.keys():
            return dora.share(program, strength)
        return 1.0 if self.is_whole_in(program) else strength
