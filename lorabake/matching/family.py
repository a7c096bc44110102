"""Whose LoRA is it? One that fits whole may still be another family's: it lacks modules that the base has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from lorabake.keymap.table import Architecture
from lorabake.matching.candidates import Lookup
from lorabake.matching.names import Sort, sort_of
from lorabake.sources.family import GENERIC
from lorabake.sources.recognition import TELLING, Evidence, kinship, titles

SAYS_WHOSE = ("ss_base_model_version", "modelspec.architecture")
"""Metadata about the base that a LoRA was trained on; only a hint, because some of it is wrong."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compare a LoRA's modules with the base's, sort by sort.

    `has` counts the base's modules of each sort. `names` has the LoRA's modules with a place there, by the base's
    names. `ignored` are the LoRA's modules that the recipe leaves out.
    """

    base: Architecture
    evidence: Evidence
    has: Mapping[Sort, int] = field(default_factory=dict)
    names: Mapping[Sort, Mapping[str, str]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def short(self) -> dict[Sort, frozenset[str]]:
        """Collect the modules of sorts of which the base has more than the LoRA; none if the LoRA fills the base."""
        sorts = self.names.items() if self.base not in self.evidence.filled else ()
        return {sort: frozenset(names.values()) for sort, names in sorts if len(names) < self.has[sort]}

    @property
    def has_a_whole_sort(self) -> bool:
        """Tell whether the LoRA has all modules of some sort that the base has several of."""
        return any(TELLING <= len(names) == self.has[sort] for sort, names in self.names.items())

    @property
    def families(self) -> tuple[Architecture, ...]:
        """List the families that it could belong to; the base's alone if that is among them."""
        return (self.base,) if self.base in self.evidence.families else self.evidence.families


@dataclass(frozen=True, slots=True)
class Strangers:
    """Hold the families, other than the base's, that a LoRA must belong to one of, with the evidence."""

    families: tuple[Architecture, ...] = ()
    seen_by: str = ""


@dataclass(frozen=True, slots=True)
class Whose:
    """Hold the families that a LoRA may be of, and notes about it for users."""

    families: tuple[Architecture, ...]
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str | None:
        """Name the families; None if there are none."""
        return titles(self.families) if self.families else None


def compared(lookup: Lookup, evidence: Evidence, kept: Collection[str]) -> Comparison:
    """Compare a LoRA's modules, ignored or not, with those of the base; `kept` are those that are not ignored."""
    base, modules = lookup.base, lookup.lora.tensors.modules
    architecture = base.key_map.architecture
    if evidence.is_text or architecture.name == GENERIC or architecture in evidence.sure:  # sorts tell nothing more
        return Comparison(architecture, evidence)
    names: dict[Sort, dict[str, str]] = {}
    for name in modules:
        for place in lookup.places(name)[:1]:
            if not place.component.startswith("text_encoder"):
                names.setdefault(sort_of(place), {})[place.name] = name
    ignored = tuple(sorted(name for name in modules if name not in kept))
    return Comparison(architecture, evidence, base.sorts, names, ignored)


def strangers_of(comparison: Comparison) -> Strangers:
    """Find other families that a LoRA must belong to, although everything that is not ignored fits the base.

    That is the case if the LoRA has all modules of some sort in such a family, but not all in the base. A LoRA for
    half of the base's blocks or less may have been trained on chosen blocks, unless it has all modules of another
    sort.
    """
    base, evidence = comparison.base, comparison.evidence
    if evidence.is_text or base.name == GENERIC or base in evidence.sure:
        return Strangers()
    for sort, names in sorted(comparison.short.items(), key=lambda item: -len(item[1])):
        is_part = 2 * len(names) <= comparison.has[sort] and not comparison.has_a_whole_sort
        if len(names) < TELLING or is_part:
            continue
        complete = tuple(family for family in evidence.whole if evidence.complete[family.name] >= names)
        if families := evidence.filled or complete:
            return Strangers(families, f"{len(names)} {sort[1]}, of which the base has {comparison.has[sort]}")
    is_foreign = evidence.filled and base not in evidence.could_be
    seen_by = evidence.seen_by(comparison.ignored) if is_foreign else None
    return Strangers(evidence.filled, seen_by) if seen_by else Strangers()


def whose(
    comparison: Comparison, strangers: Strangers, said: Architecture | None, metadata: Mapping[str, str]
) -> Whose:
    """Return the family of a LoRA that fits the base completely; `said` is the family in the recipe's trained_on."""
    base, evidence, families = comparison.base, comparison.evidence, comparison.families
    if said is not None:
        why = kinship(said, base)
        on = f" on {base.title}" if said is not base else ""
        return Whose((said,), (f"a LoRA of {said.title}{on}, as the recipe says{f': {why}' if why else ''}",))
    if evidence.is_text or base.name == GENERIC:
        return Whose(families)
    elder = next((family for family in strangers.families if kinship(family, base)), None)
    if elder is not None:
        return Whose(families, (f"a LoRA of {elder.title} on {base.title}: {kinship(elder, base)}",))
    is_short = bool(comparison.short)
    sure = evidence.sure or (evidence.could_be if is_short else ())
    others = [family for family in sure if family is not base and base.name not in {kin.family for kin in family.kin}]
    elder = next((family for family in others if kinship(base, family)), None)
    if elder is not None:
        return Whose(families, (f"it may as well be a LoRA of {elder.title}: {kinship(base, elder)}",))
    if not others:
        return Whose(families)
    told = [f"{name}: {metadata[name]}" for name in SAYS_WHOSE if metadata.get(name)]
    hint = f" (its metadata says {', '.join(told)})" if told else ""
    is_own = not is_short or base in evidence.sure  # the present base counts, whatever was released
    doubt = "" if is_own else "its modules do not tell whose it is: "
    own = (base,) if is_own or base in sure else (base, *others)
    return Whose(own, (f"{doubt}it may as well be a LoRA of {titles(others, len(others))}{hint}",))
