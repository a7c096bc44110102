"""Word the refusal of a LoRA: the modules without a place, grouped by pattern, with advice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lorabake.errors import lines_of
from lorabake.keymap.names import pattern_of
from lorabake.keymap.table import Architecture
from lorabake.matching.family import Strangers
from lorabake.matching.leftovers import line_for
from lorabake.matching.names import BaseNames
from lorabake.matching.outcomes import Outcome, Refusal, Why
from lorabake.matching.refusals.families import lora_is_another_familys
from lorabake.sources.family import GENERIC
from lorabake.sources.loras import LoraSource
from lorabake.sources.recognition import TEXT, TEXT_ENCODER, Evidence, kinship, knows, titles
from lorabake.storage.recognition import way_of
from lorabake.tensors.emptiness import ADVICE, hollow_words
from lorabake.tensors.sorts import sort_of
from lorabake.visible import and_more, the_rest, visible

MOST_GROUPS = 8
"""Most patterns that are listed below one heading."""

MOST_HINTS = 2
"""Most patterns below a heading for which a nearest name is sought."""


@dataclass(frozen=True, slots=True)
class Case:
    """Hold everything that the wording of a refusal needs.

    `modules` are the names of the LoRA's modules that are not ignored. `said` is the family that the recipe says it
    was trained on.
    """

    base: BaseNames
    lora: LoraSource
    evidence: Evidence
    modules: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    said: Architecture | None
    strangers: Strangers

    @property
    def refusals(self) -> list[Refusal]:
        """List what is refused."""
        return [outcome.refusal for outcome in self.outcomes if outcome.refusal is not None]

    def of(self, why: Why) -> list[Refusal]:
        """List what is refused for one of the reasons."""
        return [refusal for refusal in self.refusals if refusal.why is why]

    @property
    def placeless(self) -> list[str]:
        """List the modules that have no place, or do not fit it."""
        return [refusal.name for why in (Why.PLACELESS, Why.MISFIT) for refusal in self.of(why)]

    @property
    def is_patched(self) -> bool:
        """Tell whether a module of the LoRA has a place."""
        return any(outcome.made for outcome in self.outcomes)

    @property
    def components(self) -> set[str]:
        """Collect the components that modules are placed in."""
        return {outcome.place.component for outcome in self.outcomes if outcome.place is not None}


def complaint(case: Case) -> list[str]:
    """Say why a LoRA cannot be baked: the base is no checkpoint, or modules of the LoRA have no place on it."""
    return _no_checkpoint(case) or _complaint(case)


def _complaint(case: Case) -> list[str]:
    """Say what of a LoRA does not fit a checkpoint: it is another family's, or these modules have no place."""
    name = case.lora.name
    if hollow := hollow_words(case.lora.checkpoint.tensors):
        return [f"LoRA {name!r}: {hollow}", *ADVICE]
    if case.said is None and (module := _foreign_module(case)):
        return _another_familys(case, module)
    if case.said is None and (lines := lora_is_another_familys(case.strangers, case.base)):
        return anothers(name, lines)
    if case.placeless and (packer := way_of(case.base.key_map.tensors)):
        return [
            f"LoRA {name!r}: the base's weights are packed ({packer}), and this version cannot unpack them",
            "Give it the base in float32, float16, bfloat16 or float8.",
        ]
    reasons = {refusal.reason for refusal in case.refusals}
    if len(reasons) == 1 and not case.placeless:
        return [*_one_reason(case, reasons.pop()), *_leave_out(case)]
    of = len(case.modules) + sum(map(len, case.lora.tensors.unsupported.values())) + len(case.lora.tensors.unknown)
    first = f"LoRA {name!r}: {len(case.refusals)} of {of} modules have no place on the base ({case.base.title})"
    another = [*_another_one(case)]
    has_texts_alone = all(name.startswith(TEXT[0]) for name in case.components)  # all families have much the same
    advice = [] if another and has_texts_alone else [*_leave_out(case)] or [CHOOSE_TRAINED]
    return [first, *another, *_groups(case), *_maybe_anothers(case), *advice]


def _no_checkpoint(case: Case) -> list[str]:
    """Name a base such as a VAE: a LoRA of its own fits it, but none of the checkpoint that it belongs to."""
    base = case.base.key_map
    has_places = case.is_patched or len(case.placeless) < len(case.refusals)
    is_meant = has_places or base.architecture.name != GENERIC
    sort = None if is_meant else sort_of(base.tensors)
    if sort is None:
        return []
    return [
        f"base: is {sort.title}, not a checkpoint: LoRA {case.lora.name!r} has no place on it",
        sort.advice,
        ITS_OWN,
    ]


def anothers(lora: str, lines: Sequence[str]) -> list[str]:
    """Return the error that a LoRA is another family's, with these lines."""
    return [f"LoRA {lora!r} {lines[0]}", *lines[1:], CHOOSE]


CHOOSE = "Choose a base of the LoRA's family, or a LoRA for this base."
CHOOSE_TRAINED = "Choose the base that the LoRA was trained on, or another LoRA."
ITS_OWN = "Give as base the checkpoint that the LoRA was trained on."

# -- another family's --------------------------------------------------------------------------------------------


def _foreign_module(case: Case) -> str | None:
    """Return a module without a place that shows that the LoRA is another family's; None if there is none."""
    key_map, evidence = case.base.key_map, case.evidence
    base = key_map.architecture
    if base.name == GENERIC:
        names = [name for modules in key_map.modules.values() for name in modules]
        texts = evidence.families if evidence.is_text else ()
        is_own = case.is_patched or bool(case.of(Why.MISFIT))
        is_own = is_own or any(knows(family, name) for family in texts for name in names)
    else:
        is_kin = any(kinship(family, base) for family in evidence.families)
        is_own = base in evidence.families or is_kin or (evidence.is_text and case.is_patched)
    return None if is_own else evidence.seen_by(case.placeless)


def _another_familys(case: Case, module: str) -> list[str]:
    """Say which module without a place shows that it is another family's, or for a part that the base lacks."""
    down = case.lora.tensors.modules[module].shapes.get("down")
    shape = f" {down}" if down else ""
    title, more = str(case.evidence.title), list[str]()
    part = next((name for name in case.base.components_named(module) if name.startswith(TEXT[0])), None)
    if case.evidence.is_text and part and "encoder" not in title:
        title = TEXT_ENCODER.format(title)
        more = [
            f"It is a diffusion model's {part}, which this base lacks: bake it where that is.",
            f"Of a LoRA with other parts, components: [{part}] takes this one alone.",
        ]
    first = f"LoRA {case.lora.name!r} is for {title} (by {module}{shape}); the base is {case.base.title}"
    return [first, *(more or [CHOOSE])]


def _maybe_anothers(case: Case) -> Iterator[str]:
    evidence, base = case.evidence, case.base.key_map.architecture
    if evidence.whole and base not in evidence.whole and base.name != GENERIC and case.said is None:
        yield f"  it may be a LoRA of {titles(evidence.whole)}"


def _another_one(case: Case) -> Iterator[str]:
    """Advise another base or LoRA where most modules have no place, and another family may have them."""
    base, evidence = case.base.key_map.architecture, case.evidence
    others = [family for family in evidence.families if family is not base]
    is_most = 2 * len(case.placeless) > len(case.modules) and case.is_patched
    if is_most and others and not evidence.is_text and base.name != GENERIC and case.said is None:
        yield f"It may be for another family ({titles(others)}): choose such a base, or another LoRA."


# -- what has no place ---------------------------------------------------------------------------------------------


def _one_reason(case: Case, reason: str) -> list[str]:
    """Return the reason why some tensors cannot be baked, if it is a single one."""
    refused = case.refusals
    patterns = [*dict.fromkeys(pattern_of(refusal.name) for refusal in refused)]
    listed = f"{len(refused)} of its tensors: {and_more(patterns[:3], len(patterns), 'more patterns')}"
    return [*lines_of(f"LoRA {case.lora.name!r}: ", reason), listed]


def _groups(case: Case) -> Iterator[str]:
    """List refusals, with one heading for each sort of reason."""
    for why in Why:
        refused = case.of(why)
        yield from _group(case.base, why, refused) if refused else ()
        if why is Why.PLACELESS and refused:
            yield from _unknown_prefix(case, [refusal.name for refusal in refused])


def _group(base: BaseNames, why: Why, refusals: Iterable[Refusal]) -> Iterator[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for refusal in refusals:
        groups.setdefault((pattern_of(refusal.name), refusal.reason), []).append(refusal.name)
    yield f"  {why.value}:"
    for count, ((pattern, reason), names) in enumerate(groups.items()):
        if count == MOST_GROUPS:
            yield f"    … {the_rest(len(groups) - MOST_GROUPS, 'more patterns')}"
            break
        is_sought = why is Why.PLACELESS and count < MOST_HINTS
        hint = base.nearest(names[0], base.components_named(names[0])) if is_sought else ""
        yield from lines_of(f"    {pattern} ×{len(names)}", (f": {reason}" if reason else "") + visible(hint))


def _unknown_prefix(case: Case, placeless: Sequence[str]) -> Iterator[str]:
    prefix, names = case.base.behind_a_prefix(placeless)
    if prefix and not case.base.components_named(names[0]):
        yield f"    {len(names)} of them have a name of the base behind a prefix that is not known: {prefix!r}"


def _leave_out(case: Case) -> Iterator[str]:
    """Yield the recipe line that leaves out all modules without a place, if others remain."""
    left = [refusal.name for why in Why for refusal in case.of(why)]
    entry, placed = case.lora.entry, case.components
    if not placed:
        return
    named = map(case.base.components_named, left)
    if entry.components is None and all(components and placed.isdisjoint(components) for components in named):
        yield f"To bake without them, add to this LoRA: components: [{', '.join(sorted(placed))}]"
        return
    others = {info.key for info in case.lora.tensors.unknown}
    kept = ({*case.modules} | others) - set(left)
    if line := line_for(left, sorted(kept), entry.ignore or ()):
        yield f"To bake without them, add to this LoRA: {line}"
