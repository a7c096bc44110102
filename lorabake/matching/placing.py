"""Place one module of a LoRA: ask who it could be, why it may not be baked, how strongly, and what is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorabake.adapters import kinds_of
from lorabake.adapters.experts import EXPERTS
from lorabake.adapters.kind import Kind
from lorabake.keymap.module import Module
from lorabake.keymap.said import Said
from lorabake.matching.applying import Placed, apply, parameters_of
from lorabake.matching.candidates import Candidates
from lorabake.matching.experts import is_stack, of_this_depth, unwrapped
from lorabake.matching.facts import Facts
from lorabake.matching.ledger import ALPHA_ALONE
from lorabake.matching.outcomes import Outcome, Why, left_out, refused
from lorabake.matching.refusals import files
from lorabake.matching.refusals.modules import (
    OF_ITS_CONFIGURATION,
    OF_ITS_NAME,
    OF_ITS_PLACES,
    OF_ITS_TENSORS,
    OF_SEVERAL_PLACES,
    Configured,
    Fitting,
    Understood,
    first_reason,
)
from lorabake.matching.refusals.shapes import fault_of
from lorabake.matching.strengths import Strength, acts_at_0, leaves_out, strength_of, unlisted


def place(candidates: Candidates, facts: Facts) -> Outcome:
    """Return what becomes of one module; raise MatchError if the recipe has to say more first."""
    module, entry = candidates.module, facts.entry
    if module.slots.keys() == {"alpha"}:
        return left_out(module, ALPHA_ALONE)
    if not candidates.places:
        is_unlisted = leaves_out(entry, facts.base.components_named(module.name)) if entry.components else False
        return left_out(module, unlisted(entry)) if is_unlisted else refused(module.name, Why.PLACELESS)
    if entry.components is not None:
        listed = tuple(place for place in candidates.places if place.component in entry.components)
        if not listed:
            return left_out(module, unlisted(entry))
        candidates = replace(candidates, places=listed)
    if reason := first_reason(OF_ITS_NAME, candidates):
        return refused(module.name, Why.STRANGE, reason)
    return _settled_by_tie(candidates, facts) or _fit(candidates, facts)


def _settled_by_tie(candidates: Candidates, facts: Facts) -> Outcome | None:
    """Return the outcome of a tied embedding's module that is not baked by itself: it is refused, or a repetition."""
    module, use, tied = candidates.module, candidates.use, facts.tied
    if use is None:
        return None
    strength = _strength_of(use.component, facts.base.names_at(use.views["weight"]), facts)
    if strength.value == 0:
        return None
    if tied.fault:
        return refused(module.name, Why.STRANGE, tied.fault)
    is_repeated = module.name in tied.repeated
    return Outcome(module.name, applied=module.size, glob=strength.glob, is_repeated=True) if is_repeated else None


def _fit(candidates: Candidates, facts: Facts) -> Outcome:
    """Find the one place that a module's tensors fit."""
    module = candidates.module
    understood = Understood(candidates, _kinds_of(candidates))
    if reason := first_reason(OF_ITS_TENSORS, understood):
        return refused(module.name, Why.STRANGE, reason)
    kinds, shapes = understood.kinds, module.shapes
    places = tuple(
        place for place in candidates.places if fault_of(kinds, shapes, place, turned=facts.turned) is None
    )
    if len(places) > 1 and candidates.is_unnamed:
        places = of_this_depth(module.name, places, candidates.config)
    if len(places) > 1:
        fitting = Fitting(candidates, places)
        if reason := first_reason(OF_ITS_PLACES, fitting):
            return refused(module.name, Why.STRANGE, reason)
        for refusal in OF_SEVERAL_PLACES:
            files.refuse(facts.lookup.lora.name, refusal(fitting))
    target = (places or candidates.places)[0]
    strength = _strength_of(target.component, facts.base.names_of(target), facts)
    if strength.value == 0:
        kinds = _acting(understood, target, facts) if places and not strength.is_left_out else ()
        if not kinds:
            return left_out(module, strength.reason, strength.glob)
    if not places:
        return refused(module.name, Why.MISFIT, fault_of(kinds, shapes, target, turned=facts.turned) or "")
    config, path = candidates.config, _path_of(candidates, target)
    said = config.said_of(path) if config else Said(module.name, is_given=False)
    placed = Placed(module, shapes, target, kinds, strength, config, path, said)
    if config is not None:
        weights = tuple((kind, view.shape) for kind, view in parameters_of(placed, facts))
        if reason := first_reason(OF_ITS_CONFIGURATION, Configured(shapes, config, said, weights)):
            return refused(module.name, Why.MISFIT, reason)
    return apply(placed, facts)


def _kinds_of(candidates: Candidates) -> tuple[Kind, ...]:
    """Choose the kinds that a module's tensors form at their place."""
    slots = frozenset(candidates.module.slots)
    config, path = candidates.config, candidates.path
    if EXPERTS.claims(slots) == slots and any(is_stack(place, config, path) for place in candidates.places):
        return (EXPERTS,)
    return kinds_of(slots)


def _acting(understood: Understood, target: Module, facts: Facts) -> tuple[Kind, ...]:
    """Choose the kinds that the followed program applies even at strength 0."""
    shapes = understood.candidates.module.shapes
    return tuple(
        kind
        for kind in understood.kinds
        if acts_at_0(kind, shapes, kind.view_of(target.views, turned=facts.turned), facts.entry)
    )


def _path_of(candidates: Candidates, target: Module) -> str:
    """Return the path of a module's trained part in a configuration."""
    if candidates.is_unnamed:
        return f"{unwrapped(candidates.path)}.{target.name.rpartition('.')[2]}"
    return candidates.config.trained(candidates.path) if candidates.config else candidates.path


def _strength_of(component: str, names: Sequence[str], facts: Facts) -> Strength:
    """Return a module's strength; raise MatchError if the recipe does not mention its component."""
    strength = strength_of(facts.entry, component, names)
    if strength is None:
        raise files.error(facts.lookup.lora.name, files.strength_forgets_the_component(component))
    return strength
