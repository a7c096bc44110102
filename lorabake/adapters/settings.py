"""What a kind needs to know beside its tensors, from PEFT's configuration: a small record of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar

from lorabake.adapters.shapes import Shapes
from lorabake.adapters.slots import Slots
from lorabake.keymap.said import Said


@dataclass(frozen=True, slots=True)
class Settings:
    """Say nothing more than the tensors do. A kind that needs to know more has a record below this one."""


NO_SETTINGS: Final = Settings()

S_co = TypeVar("S_co", bound=Settings, covariant=True)


@dataclass(frozen=True, slots=True)
class TermsOf(Generic[S_co]):
    """Say what holds for all rows of one module: its shape (out, in[, kernel…]), its scale, and its settings.

    `scale` is alpha/rank or what takes its place; `settings` what the kind made of the configuration.
    """

    shape: tuple[int, ...]
    scale: float
    settings: S_co


Terms = TermsOf[Settings]
"""The terms of a kind that needs no settings."""


class Configured(Slots):
    """Read settings from a configuration, and compare the tensors with it.

    `peft_type` is PEFT's name, `peft_fields` the fields of its configuration that the kind reads, that the shapes
    tell, or that have no effect on a merge. A kind with a record of its own names it in the signatures of the methods
    that make it or take it, in the place of `Any`.
    """

    peft_type: ClassVar[str] = ""
    peft_fields: ClassVar[frozenset[str]] = frozenset()

    def settings(self, said: Said, shapes: Shapes) -> Settings:
        """Read what the kind needs to know, checked; raise ValueError, saying why, for what can't be baked so."""
        return NO_SETTINGS

    def unsettled(self, settings: Any, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Say why the kind's settings ask for other tensors, or None if they do not."""
        return None

    def doubt(self, said: Said, shapes: Shapes) -> str:
        """Say what an older PEFT did otherwise that may have trained it; empty if none did."""
        return ""

    def drawn_shapes(self, shapes: Shapes, largest: tuple[int, int]) -> Shapes:
        """Return the shapes of the random matrices that all modules of a file share.

        `largest` are the most outputs and inputs of all their weights.
        """
        return {}

    def redrawn(self, settings: Any, said: Said, shapes: Shapes, largest: tuple[int, int]) -> Settings:
        """Return the settings with what it takes to draw those again; raise ValueError if that cannot be known."""
        raise NotImplementedError

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Return the shapes that the configuration asks for; slots of which it says nothing are left out.

        The tensors fit the weight.
        """
        return {}

    def misconfigured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Say where tensors that fit their weight have other shapes than the configuration asks for, if anywhere."""
        wanted = self.configured(said, shapes, weight)
        for slot in sorted(wanted.keys() & shapes.keys()):
            if shapes[slot] != wanted[slot]:
                return f"its {slot} is {shapes[slot]}, and adapter_config asks for {wanted[slot]}"
        return None
