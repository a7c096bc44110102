"""What is done to a module: one patch for each of its parameters that a LoRA changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorabake.adapters import dora
from lorabake.adapters.dora import Dora
from lorabake.adapters.kind import Kind
from lorabake.adapters.settings import NO_SETTINGS, Settings
from lorabake.codecs.codec import Stored
from lorabake.keymap.view import View
from lorabake.visible import short_repr


@dataclass(frozen=True, slots=True)
class Patch:
    """Hold one change of one parameter of one module.

    `strength` is the user's, all factors in; `scale` the file's own, or None where the alpha tensor in
    `tensors` says it (1 where there is none either); `settings` what the kind took from the file's configuration.
    That alpha is over the rank of one of `parts` parts. `semantics` names a program whose reading is followed.
    `number` is the patch's own in a plan, which gives it.
    """

    __repr__ = short_repr

    lora: int
    module: str
    kind: Kind
    tensors: Mapping[str, Stored]
    view: View
    strength: float
    scale: float | None
    settings: Settings = NO_SETTINGS
    parts: int = 1
    semantics: str = ""
    number: int = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each slot's tensor."""
        return {slot: info.shape for slot, info in self.tensors.items()}

    @property
    def has_dora(self) -> bool:
        """Tell whether a magnitude sets the lengths of the result."""
        return dora.is_in(self.tensors)

    @property
    def lengths(self) -> Dora | None:
        """Return what sets the lengths of the result, if anything does."""
        return self.kind.dora_of(self.shapes, self.view.shape, self.semantics, self.strength)

    @property
    def share(self) -> float:
        """Return what W(1) − W is multiplied by: the strength, unless `semantics` has another law."""
        return self.kind.share(self.strength, self.semantics, self.shapes)

    @property
    def sets_all(self) -> bool:
        """Tell whether nothing is left of what it meets."""
        return self.kind.leaves_nothing(self.share)


@dataclass(frozen=True, slots=True)
class Made:
    """Hold a patch and what the ledger tells of it.

    `title` is its kind's, `rank` None where there is none to tell. `doubts` say what an older PEFT did otherwise.
    `follows` says that the program whose reading is followed has a law of its own for it.
    """

    patch: Patch
    title: str
    rank: int | None = None
    doubts: tuple[str, ...] = ()
    follows: bool = False
