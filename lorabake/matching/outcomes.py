"""What becomes of a module of a LoRA file: it is applied, left out, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from lorabake.keymap.embeddings import Vectors
from lorabake.keymap.module import Module
from lorabake.keymap.slots import LoraModule
from lorabake.keymap.view import View
from lorabake.matching.patches import Made


class Why(Enum):
    """The headings of refusals, in the order in which they are reported."""

    PLACELESS = "no such module on the base"
    MISFIT = "does not fit"
    STRANGE = "cannot be baked"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Hold why a module, or a tensor without one, cannot be baked; the reason is "" if the heading is enough."""

    name: str
    why: Why
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Hold what becomes of the tensors of one module, or of one tensor without a module.

    `applied` counts its baked tensors; `excluded` counts the others by reason. `made` has its patches, `place` the
    module of the base that they change, and `changes` the parts of it. If a module is refused at its second
    parameter, the first one's patches are included. `glob` is the pattern of `blocks` that matched it. `vectors` is a
    learned embedding, which is not baked. `is_repeated` means that another module has the same change.
    """

    name: str
    applied: int = 0
    excluded: Mapping[str, int] = field(default_factory=dict)
    refusal: Refusal | None = None
    made: tuple[Made, ...] = ()
    changes: tuple[View, ...] = ()
    place: Module | None = None
    glob: str = ""
    vectors: Vectors | None = None
    is_repeated: bool = False


def left_out(module: LoraModule, reason: str, glob: str = "") -> Outcome:
    """Leave out all tensors of a module."""
    return Outcome(module.name, excluded={reason: module.size}, glob=glob)


def refused(name: str, why: Why, reason: str = "") -> Outcome:
    """Refuse a module or a tensor."""
    return Outcome(name, refusal=Refusal(name, why, reason))
