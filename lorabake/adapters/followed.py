"""What programs make of a kind, where a recipe asks for their reading (`semantics`)."""

from __future__ import annotations

from typing import Any, ClassVar

from lorabake.adapters import dora
from lorabake.adapters.settings import Settings
from lorabake.adapters.shapes import Shapes
from lorabake.adapters.slots import Slots


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

    def has_lengths(self, shapes: Shapes) -> bool:
        """Tell whether a magnitude is among the tensors, with DoRA's lengths."""
        return bool(self.lengths & shapes.keys())

    def has_law_of_lengths(self, program: str) -> bool:
        """Tell whether lorabake knows what a program makes of DoRA on the kind."""
        return program in self.dora_in

    def depends_on(self, shapes: Shapes, weight: tuple[int, ...]) -> str:
        """Name what the change of a row depends on beside the tensors; empty if it depends on nothing else."""
        if self.has_lengths(shapes) and dora.axis(shapes, weight, self.length_axis) == "row":
            return "DoRA's lengths"
        return "the weight" if self.reads_weight else ""

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
