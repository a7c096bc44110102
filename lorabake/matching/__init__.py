"""Where does each module of a LoRA go? Four questions, each asked in a file of its own.

- `candidates`: who could this module be?
- `refusals`: why may it not be baked?
- `strengths`: how strongly?
- `applying` and `ledger`: what is done, and is every tensor accounted for?

`match` asks them: first it gathers what concerns the whole file (`facts`), then it goes module by module (`placing`).
All modules without a place are reported in one error (`complaint`). Everything passed between steps is frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lorabake.errors import MatchError
from lorabake.keymap.table import Architecture
from lorabake.keymap.view import Picked
from lorabake.matching import notes
from lorabake.matching.candidates import Candidates, look_up
from lorabake.matching.complaint import Case, anothers, complaint
from lorabake.matching.facts import Facts, gather
from lorabake.matching.family import Strangers, Whose, compared, strangers_of, whose
from lorabake.matching.ignored import Ignored, ignored_of
from lorabake.matching.ledger import Ledger, close
from lorabake.matching.names import BaseNames
from lorabake.matching.outcomes import Outcome
from lorabake.matching.patches import Patch
from lorabake.matching.placing import place
from lorabake.matching.refusals import families, files
from lorabake.matching.refusals.families import lora_is_another_familys
from lorabake.matching.refusals.files import refuse
from lorabake.matching.rest import rest, shared
from lorabake.matching.turns import turns_of
from lorabake.sources.loras import LoraSource
from lorabake.sources.recognition import Evidence, find_family, recognise


@dataclass(frozen=True, slots=True)
class Matched:
    """Hold what a LoRA does to a base: its patches, in the order of its modules, and its ledger."""

    patches: tuple[Patch, ...]
    ledger: Ledger


def match(base: BaseNames, number: int, lora: LoraSource) -> Matched:
    """Place the recipe's LoRA with this number; raise MatchError for everything neither placed nor excluded."""
    name = lora.name
    refuse(name, files.component_is_unknown(lora.entry, base.key_map.architecture))
    evidence = recognise(lora.tensors)
    said = _said_family(lora, evidence)
    ignored = ignored_of(lora, base)
    refuse(name, files.glob_ignores_nothing(ignored.idle, lora.tensors.modules))
    refuse(name, files.file_is_no_lora(lora, ignored.keys))
    lookup = look_up(base, lora, ignored.kept, evidence)
    turns = turns_of(lookup)
    refuse(name, files.turns_cannot_be_told(turns))
    modules = [lookup.candidates(module) for module in ignored.kept.values()]
    facts = gather(number, lookup, modules, turned=turns.are_turned)
    outcomes = (*ignored.outcomes(lora), *unclashing(name, _outcomes(facts, modules, ignored)))
    comparison = compared(lookup, evidence, ignored.kept)
    strangers = strangers_of(comparison) if said is None else Strangers()
    if any(outcome.refusal is not None for outcome in outcomes):
        raise MatchError(*complaint(Case(base, lora, evidence, tuple(ignored.kept), outcomes, said, strangers)))
    if lines := lora_is_another_familys(strangers, base):
        raise MatchError(*anothers(name, lines))
    owner = whose(comparison, strangers, said, lora.checkpoint.metadata)
    return _closed(facts, outcomes, ignored, owner)


def _said_family(lora: LoraSource, evidence: Evidence) -> Architecture | None:
    """Return the family that the recipe says the LoRA was trained on; raise MatchError if that is impossible."""
    trained_on = lora.entry.trained_on
    refuse(lora.name, families.said_family_is_unknown(trained_on))
    family = find_family(trained_on) if trained_on is not None else None
    refuse(lora.name, families.modules_are_not_of_the_said_family(family, evidence, lora.tensors.modules))
    return family


def _outcomes(facts: Facts, modules: Iterable[Candidates], ignored: Ignored) -> Iterator[Outcome]:
    """Yield what becomes of everything that the recipe does not ignore, module by module and tensor by tensor."""
    yield from (place(candidates, facts) for candidates in modules)
    yield from rest(facts, ignored.keys)


def unclashing(lora: str, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Pass outcomes on; raise MatchError if two modules change the same values of the base."""
    taken: dict[str, list[tuple[range, Picked | None, str]]] = {}
    for outcome in outcomes:
        for view in outcome.changes:
            for region in view.regions:
                own = range(region.start * view.width, region.stop * view.width)
                for other, picked, name in taken.setdefault(region.key, []):
                    apart = other.start >= own.stop or own.start >= other.stop or name == outcome.name
                    if not apart and not (view.picked and picked and not view.picked.meets(picked)):
                        refuse(lora, files.two_modules_change_one_tensor(name, outcome.name, region.key))
                taken[region.key].append((own, view.picked, outcome.name))
        yield outcome


def _closed(facts: Facts, outcomes: tuple[Outcome, ...], ignored: Ignored, owner: Whose) -> Matched:
    """Check a fully placed LoRA against its recipe and configuration, and close its ledger."""
    lora, base, kept = facts.lookup.lora, facts.base, ignored.kept.values()
    patches = tuple(made.patch for outcome in outcomes for made in outcome.made)
    refuse(lora.name, files.announced_tokens_are_missing(lora.config, lora.tensors.modules.values()))
    alphas = {module.name: facts.lookup.places(module.name) for module in kept if module.slots.keys() == {"alpha"}}
    refuse(lora.name, files.alpha_has_another_name(alphas, patches))
    if blocks := lora.entry.blocks:
        baked = [outcome.place for outcome in outcomes if outcome.made and outcome.place is not None]
        paths = {path for module in baked for path in base.names_of(module)}
        refuse(lora.name, files.block_pattern_takes_nothing(blocks, {outcome.glob for outcome in outcomes}, paths))
    outcomes = (*outcomes, shared(lora.tensors.common, kept, outcomes))
    told = (
        *notes.notes_on_names(facts.lookup.prefix),
        *notes.notes_on_ties(facts, outcomes),
        *owner.notes,
        *notes.notes_on_patches(facts, outcomes),
    )
    names = tuple(family.name for family in owner.families)
    ledger = close(lora.name, len(lora.checkpoint.tensors), outcomes, owner.title, told, families=names)
    for refusal in files.OF_THE_LEDGER:
        refuse(lora.name, refusal(ledger, lora.entry))
    return Matched(patches, ledger)
