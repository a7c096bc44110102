"""Compose the notes in a LoRA's ledger: what was assumed, and what may surprise users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from lorabake.adapters.programs import PROGRAMS
from lorabake.keymap import split_qkv
from lorabake.keymap.embeddings import FOR_ONETRAINER
from lorabake.matching.candidates import Prefix
from lorabake.matching.facts import Facts
from lorabake.matching.outcomes import Outcome
from lorabake.matching.patches import Made

NO_CONFIG = "no alpha tensors and no adapter_config.json: scale 1 is assumed"
AS_TODAY = "no peft_version says which PEFT trained it: {count} modules are read as today's does ({doubt})"


def notes_on_names(prefix: Prefix) -> Iterator[str]:
    """Yield a note on an unknown prefix of module names."""
    if prefix.text:
        yield f"a prefix that is not known stands before {len(prefix.names)} names: {prefix.text!r}"


def notes_on_ties(facts: Facts, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield a note on a change that the file holds several times and that is baked once."""
    if any(outcome.is_repeated for outcome in outcomes):
        yield facts.tied.note


def notes_on_patches(facts: Facts, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield notes on learned embeddings, on assumed scales, and on laws of the program that is followed."""
    every = [made for outcome in outcomes for made in outcome.made]
    yield from _on_embeddings(outcomes)
    yield from _on_missing_alphas(every)
    if facts.entry.semantics is not None and every:
        yield from _on_semantics(facts.entry.semantics, every)
    doubts = Counter(doubt for made in every for doubt in made.doubts)
    yield from (AS_TODAY.format(count=count, doubt=doubt) for doubt, count in doubts.items())
    if apart := sum(made.patch.parts > 1 for made in every):
        yield split_qkv.NOTE.format(count=apart, source=facts.apart.source)


def _on_embeddings(outcomes: Sequence[Outcome]) -> Iterator[str]:
    names = {outcome.vectors.name for outcome in outcomes if outcome.vectors is not None}
    if names:
        yield "learned embeddings stay as they are: no strength and no dtype applies to them"
    if any(name.endswith(FOR_ONETRAINER) for name in names):
        yield f"only OneTrainer reads embeddings called …{FOR_ONETRAINER}"


def _on_missing_alphas(every: Sequence[Made]) -> Iterator[str]:
    patches = [made.patch for made in every]
    silent = [patch for patch in patches if patch.scale is None and "alpha" not in patch.tensors]
    if any(patch.module.startswith("base_model.") and patch.kind.may_have_alpha for patch in silent):
        yield NO_CONFIG


def _on_semantics(program: str, every: Sequence[Made]) -> Iterator[str]:
    title, patches = PROGRAMS[program], [made.patch for made in every]
    whole = [patch for patch in patches if patch.strength != 1 and patch.kind.is_whole_in(program)]
    still = {patch.module for patch in patches if not patch.strength}
    if whole:
        kinds = ", ".join(dict.fromkeys(patch.kind.title for patch in whole))
        yield f"semantics: {title} applies {kinds} whole at any strength: {len(whole)} modules"
    if still:
        yield f"semantics: {title} changes {len(still)} modules at strength 0, too"
    if not (any(made.follows for made in every) or whole or still or any(patch.has_dora for patch in patches)):
        yield f"semantics: {program} changes nothing here: {title} has no law of its own for its kinds"
