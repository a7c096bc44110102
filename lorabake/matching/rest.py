"""Decide about tensors without a module: unsupported kinds, learned embeddings, tensors that modules share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from lorabake.codecs.codec import Stored
from lorabake.keymap.embeddings import Vectors, read_vectors
from lorabake.keymap.slots import REASONS, LoraModule
from lorabake.matching.facts import Facts
from lorabake.matching.ledger import FOR_NONE
from lorabake.matching.outcomes import Outcome, Why, refused
from lorabake.matching.placing import place
from lorabake.matching.strengths import leaves_out, unlisted
from lorabake.visible import visible


def rest(facts: Facts, ignored: Collection[str]) -> Iterator[Outcome]:
    """Yield what becomes of all tensors without a module; `ignored` are the keys that the recipe ignores."""
    tensors = facts.lookup.lora.tensors
    for kind, infos in tensors.unsupported.items():
        reason = REASONS.get(kind, f"{kind} is not supported by this version")
        yield from (_unsupported(info, reason, facts) for info in infos if info.key not in ignored)
    unknown = [info for info in tensors.unknown if info.key not in ignored]
    learned: dict[tuple[str, str], Vectors] = {}
    for info in unknown:
        outcome = _unknown(info, facts)
        vectors = outcome.vectors
        if vectors is not None and learned.setdefault((vectors.token, vectors.name), vectors) is not vectors:
            outcome = refused(info.key, Why.STRANGE, f"a second embedding of {vectors.token!r}")
        yield outcome
    for shared, own in tensors.unlike:
        reason = f"it is {shared.shape}, and its copy {visible(own.key)} is {own.shape}"
        yield refused(shared.key, Why.STRANGE, reason)


def shared(count: int, users: Iterable[LoraModule], outcomes: Collection[Outcome]) -> Outcome:
    """Yield what becomes of tensors that modules share: they are baked with the first baked module."""
    baked = {outcome.name for outcome in outcomes if outcome.made}
    is_used = any(module.shared and module.name in baked for module in users)
    return Outcome("", applied=count) if is_used else Outcome("", excluded={FOR_NONE: count} if count else {})


def _unsupported(info: Stored, reason: str, facts: Facts) -> Outcome:
    return _left_out(info, facts) or refused(info.key, Why.STRANGE, reason)


def _unknown(info: Stored, facts: Facts) -> Outcome:
    """Return what becomes of a tensor that no kind knows: a parameter by its full name, or a learned embedding."""
    vectors = read_vectors(info, facts.lookup.lora.checkpoint.metadata)
    if vectors is None and info.key in facts.base.spelled:  # trained whole
        return place(facts.lookup.candidates(LoraModule(info.key, {"whole_weight": info})), facts)
    if left_out := _left_out(info, facts, {"embeddings"} if vectors else None):
        return left_out
    return refused(info.key, Why.STRANGE, "no known form") if vectors is None else Outcome(info.key, vectors=vectors)


def _left_out(info: Stored, facts: Facts, components: Collection[str] | None = None) -> Outcome | None:
    """Leave out a tensor of a component that the recipe does not list; its key may be the only evidence of it."""
    if facts.entry.components is None:
        return None
    named = facts.base.components_named(info.key) if components is None else components
    return Outcome(info.key, excluded={unlisted(facts.entry): 1}) if leaves_out(facts.entry, named) else None
