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
    """Sort refusals by the headings below which they are told, in this order."""

    PLACELESS = "no such module on the base"
    MISFIT = "does not fit"
    STRANGE = "cannot be baked"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Say why a module, or a tensor of none, cannot be baked; the reason is "" where the heading says it all."""

    name: str
    why: Why
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Say what becomes of the tensors of one module, or of one tensor that is of no module.

    `applied` counts its tensors that are baked, `excluded` the others by the reason why they are not. `made` has its
    patches, and `place` the module of the base that they change, `changes` the parts of it; where a module is refused
    at its second parameter, those of the first are there, too. `glob` is the pattern of `blocks` that took it.
    `vectors` is a learned embedding, which is not baked. `is_repeated` says that another module has the same change.
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
