"""Apply a module that has a place: make a patch for each parameter that it changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lorabake.adapters import dora
from lorabake.adapters.experts import EXPERTS
from lorabake.adapters.kind import Kind
from lorabake.adapters.settings import Settings
from lorabake.adapters.shapes import Shapes
from lorabake.keymap.module import Module
from lorabake.keymap.peft import PeftConfig
from lorabake.keymap.said import Said
from lorabake.keymap.slots import LoraModule
from lorabake.keymap.view import View
from lorabake.matching.facts import Facts
from lorabake.matching.ledger import RANK_0
from lorabake.matching.outcomes import Outcome, Refusal, Why, left_out
from lorabake.matching.patches import Made, Patch
from lorabake.matching.refusals.matrices import matrices_depend_on_the_placeless, matrix_is_of_another_size
from lorabake.matching.refusals.modules import first_reason
from lorabake.matching.refusals.programs import ALPHA_0, OF_PROGRAMS, Read
from lorabake.matching.strengths import Strength, scale_of_alpha_0


@dataclass(frozen=True, slots=True)
class Placed:
    """Hold a module and its shapes, its one place on the base, and the kinds that change that.

    `config` is the configuration that applies to it, `path` its path there, `said` what it says.
    """

    module: LoraModule
    shapes: Shapes
    place: Module
    kinds: tuple[Kind, ...]
    strength: Strength
    config: PeftConfig | None
    path: str
    said: Said


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Hold the patch of one parameter, or the reason against it, and the part of the base that it concerns."""

    made: Made | None = None
    changes: tuple[View, ...] = ()
    fault: str = ""


def apply(placed: Placed, facts: Facts) -> Outcome:
    """Make the patches of a module."""
    module = placed.module
    if any(kind.rank(placed.shapes) == 0 for kind in placed.kinds):
        return left_out(module, RANK_0, placed.strength.glob)
    attempts: list[_Attempt] = []
    for kind, view in parameters_of(placed, facts):
        attempts.append(_attempt(placed, kind, view, facts))
        if attempts[-1].fault:
            break
    made = tuple(attempt.made for attempt in attempts if attempt.made is not None)
    changes = tuple(view for attempt in attempts for view in attempt.changes)
    fault = next((attempt.fault for attempt in attempts if attempt.fault), "")
    if fault:
        return Outcome(module.name, refusal=Refusal(module.name, Why.STRANGE, fault), made=made, changes=changes)
    idle = 0 if placed.strength.value else len(_unclaimed(placed))
    return Outcome(
        module.name,
        applied=module.size - idle,
        excluded={"strength 0": idle} if idle else {},
        made=made,
        changes=changes,
        place=placed.place,
        glob=placed.strength.glob,
    )


def parameters_of(placed: Placed, facts: Facts) -> Iterator[tuple[Kind, View]]:
    """Yield each kind with the parameter that it changes, where the base has that."""
    for kind in placed.kinds:
        view = kind.view_of(placed.place.views, turned=facts.turned)
        if view is not None:
            yield kind, view


def _unclaimed(placed: Placed) -> frozenset[str]:
    """Return a module's own slots that none of the kinds uses: those that a program leaves alone."""
    slots = frozenset(placed.module.slots)
    return slots.difference(*(kind.claims(slots) for kind in placed.kinds), placed.module.shared)


def _attempt(placed: Placed, kind: Kind, view: View, facts: Facts) -> _Attempt:
    module, config = placed.module, placed.config
    said = _said_of(placed, kind, facts)
    try:
        settings = _settings_of(placed, kind, view, facts, said)
        followed = _followed(placed, kind, settings, view, facts)
    except ValueError as error:
        return _Attempt(fault=str(error))
    claimed = kind.claims(frozenset(module.slots)) - kind.markers
    tensors = {slot: module.slots[slot] for slot in sorted(claimed)}
    speaks = config if kind.lacks_scale(tensors) else None
    scale = speaks.scale_of(placed.path) if speaks else None
    if scale == 0:
        scale = scale_of_alpha_0(facts.entry.semantics)
        if scale is None:
            return _Attempt(changes=(view,), fault=ALPHA_0)
    is_shared_out = "alpha" in tensors and kind.has_parted_rank
    patch = Patch(
        lora=facts.number,
        module=module.name,
        kind=kind,
        tensors=tensors,
        view=view,
        strength=placed.strength.value,
        scale=scale,
        settings=followed,
        parts=facts.apart.parts(module, placed.place) if is_shared_out else 1,
        semantics=facts.entry.semantics or "",
    )
    doubts = kind.doubt(said, placed.shapes), speaks.doubt(placed.path) if speaks else ""
    made = Made(
        patch,
        title="DoRA" if dora.is_in(tensors) else kind.told_title(placed.shapes),
        rank=kind.told_rank(placed.shapes, view.shape) if kind.has_told_rank else None,
        doubts=tuple(filter(None, doubts)),
        follows=followed != settings,
    )
    return _Attempt(made, (view,))


def _said_of(placed: Placed, kind: Kind, facts: Facts) -> Said:
    """Return what the configuration says of a module, and what the file says of a stack of experts."""
    if kind is not EXPERTS:
        return placed.said
    return replace(placed.said, side=facts.sides.side_of(placed.module, placed.place, placed.config))


def _settings_of(placed: Placed, kind: Kind, view: View, facts: Facts, said: Said) -> Settings:
    """Return a kind's settings from its configuration; raise ValueError if it cannot be baked as configured."""
    shapes = placed.shapes
    settings = kind.settings(said, shapes)
    if fault := kind.unsettled(settings, shapes, view.shape):
        raise ValueError(fault)
    if not kind.drawn:
        return settings
    largest = facts.largest[kind.name]
    fault = matrices_depend_on_the_placeless(kind, shapes, largest)
    if fault := fault or matrix_is_of_another_size(kind, shapes, largest):
        raise ValueError(fault)
    return settings if kind.drawn & shapes.keys() else kind.redrawn(settings, said, shapes, largest.sides)


def _followed(placed: Placed, kind: Kind, settings: Settings, view: View, facts: Facts) -> Settings:
    """Return the settings with which a kind follows the program; raise ValueError if it cannot."""
    program = facts.entry.semantics
    if program is None:
        return settings
    if fault := first_reason(OF_PROGRAMS, Read(program, kind, placed.shapes, view)):
        raise ValueError(fault)
    return kind.follow(settings, program, placed.shapes, view.shape, placed.strength.value)
