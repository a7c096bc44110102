"""Refuse what the program named in the recipe's `semantics` cannot do with a LoRA."""

from __future__ import annotations

from dataclasses import dataclass

from lorabake.adapters import dora
from lorabake.adapters.kind import Kind
from lorabake.adapters.programs import PROGRAMS
from lorabake.adapters.shapes import Shapes
from lorabake.keymap.view import View

ALPHA_0 = (
    "its configuration says an alpha of 0, which is no scale; leave the modules out with a block pattern that names "
    'them and the factor 0: blocks: {"…": 0}'
)


@dataclass(frozen=True, slots=True)
class Read:
    """Hold a kind's tensors on a weight, and the program to follow."""

    program: str
    kind: Kind
    shapes: Shapes
    view: View


def program_does_not_read_the_kind(read: Read) -> str | None:
    """Refuse a kind in a form that the program does not read."""
    if read.kind.is_read_by(read.program):
        return None
    form = f"this form of {read.kind.title}"
    return f"{PROGRAMS[read.program]} does not read {form}; leave out semantics, or the module"


def program_has_no_law_of_lengths(read: Read) -> str | None:
    """Refuse DoRA on a kind for which the program's behaviour is unknown."""
    if not read.kind.has_lengths(read.shapes) or read.kind.has_law_of_lengths(read.program):
        return None
    return f"{read.program} has no law of DoRA on {read.kind.title} that lorabake knows"


def program_does_not_read_the_magnitude(read: Read) -> str | None:
    """Refuse a magnitude whose spelling the program does not know."""
    return dora.unread(read.program, read.shapes) if read.kind.has_lengths(read.shapes) else None


def program_forgets_the_order_of_rows(read: Read) -> str | None:
    """Refuse a change that depends on the weight, if the program reads the weight's halves in the other order."""
    if not read.view.is_reordered or read.program not in dora.LENGTHS_OF_THE_BASE:
        return None
    what = read.kind.depends_on(read.shapes, read.view.shape)
    title = PROGRAMS[read.program]
    return f"{title} swaps the halves of this module's change, and forgets those of {what}" if what else None


def program_fails_at_the_tensors(read: Read) -> str | None:
    """Refuse tensors in a form at which the program fails, although it reads the kind."""
    return read.kind.unread(read.program, read.shapes, read.view.shape)


OF_PROGRAMS = (
    program_does_not_read_the_kind,
    program_has_no_law_of_lengths,
    program_does_not_read_the_magnitude,
    program_forgets_the_order_of_rows,
    program_fails_at_the_tensors,
)
"""Refusals that look at a program, in this order."""
