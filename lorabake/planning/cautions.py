"""Warn of a LoRA's change that is zero, lost or absurdly large, with the same words in `plan`, `bake` and `verify`.

Each command looks at changes in its own way, at a few rows of each weight or at all of them, and sums up what it saw
in a `Tally` for each LoRA (`tally.py`). Here tallies become warnings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lorabake.documents.names import NO_FIGURES, Figures, WarningName
from lorabake.errors import ChangeLostError, MatchError
from lorabake.matching.ledger import RANK_0
from lorabake.planning import Plan
from lorabake.planning.tally import Tally
from lorabake.visible import named_fields

FADES, VANISHES = 0.9, 0.5
"""Shares of a LoRA's change that survive the output's dtype: below the first one is warned, and below the second a
bake into bfloat16 or 8 bits stops unless the recipe allows the loss."""

LARGE = 1.0
"""Size of a LoRA's change, relative to the weights that it changes, above which there is a warning."""

STRONG = 10.0
"""Strength from which on there is a warning; usual strengths are between -2 and 2."""


@dataclass(frozen=True, slots=True)
class Caution:
    """Hold one warning about one LoRA. `check` names it; `measured` and `limit` are figures as text, or empty.

    `figures` are the same for programs.
    """

    check: WarningName
    lora: str
    measured: str
    limit: str
    note: str
    figures: Figures = NO_FIGURES

    def __repr__(self) -> str:
        return named_fields(self, ("check", "lora", "measured", "limit", "note"), letters=120)

    def __str__(self) -> str:
        return f"LoRA {self.lora!r}: {self.note}"


def cautions_of(plan: Plan, tallies: Mapping[int, Tally], *, whole: bool = True) -> Iterator[Caution]:
    """Return the warnings that tallies by LoRA give rise to; without `whole`, only some modules were looked at."""
    for number, tally in sorted(tallies.items()):
        lora, count = plan.sources.loras[number].name, len(tally.moves)

        def modules(some: Iterable[str], count: int = count) -> str:
            few = list(some)
            named = f" ({few[0]}{', …' if len(few) > 1 else ''})" if len(few) < count else ""
            return f"{len(few)} of {'' if whole else 'the '}{count}{'' if whole else ' sampled'} modules{named}"

        if idle := tally.idle:
            note = f"{modules(idle)} {'change' if len(idle) > 1 else 'changes'} nothing: what is added is zero"
            if len(idle) == count:
                which = "the sampled" if not whole else "its"
                note = f"all of {which} {count} modules change nothing: what is added is zero"
                note = f"{which} one module changes nothing: what it adds is zero" if count == 1 else note
            yield _of_modules("zero", lora, len(idle), note)
        if tally.negative:
            note = f"{modules(sorted(tally.negative))} have a negative alpha: their change is taken away, not added"
            yield _of_modules("alpha", lora, len(tally.negative), note)
        if tally.erasing:
            note = f"{modules(sorted(tally.erasing))} have zeros as DoRA magnitudes, which erase what they scale"
            yield _of_modules("magnitude", lora, len(tally.erasing), note)
        if (share := tally.survival) is not None and share < FADES:
            yield fading(lora, share)
        if tally.size > LARGE:
            strengths = {patch.strength for patch in plan.patches if patch.lora == number}
            strongest = max(strengths, key=abs, default=0.0)
            note = (
                f"its change is {tally.size:.3g} times as large as the weights that it meets (strength {strongest:g})"
            )
            figures = Figures(tally.size, LARGE, "ratio")
            yield Caution("large", lora, f"{tally.size:.3g}", f"{LARGE:g}", note, figures)


def fading(lora: str, share: float) -> Caution:
    """Return the warning that an output's dtype keeps too little of a LoRA's change."""
    note = f"{percent(share)} of its change survives the output's dtype"
    figures = Figures(share, FADES, "share")
    return Caution("resolution", lora, f"{share:.1%}", f"{FADES:.0%}", note, figures)


def check_survival(plan: Plan, shares: Mapping[int, float]) -> list[str]:
    """Return warnings about LoRAs that fade; raise ChangeLostError if most of one would be lost unasked.

    `shares` are the surviving shares by the LoRA's number.
    """
    names = [lora.name for lora in plan.sources.loras]
    lost = [lora for lora, share in shares.items() if share < VANISHES]
    if lost and not plan.sources.recipe.output.allow_loss:
        raise ChangeLostError(
            f"LoRA {names[lost[0]]!r}: only {shares[lost[0]]:.0%} of its change would survive the output's dtype",
            "Choose a finer output.dtype, or set output.allow_loss: true. Nothing was written.",
        )
    return [str(fading(names[lora], share)) for lora, share in shares.items() if share < FADES]


def no_scale(lora: str, key: str, alpha: float) -> MatchError:
    """Return the error for an alpha that is zero or not a number, which no program defines."""
    return MatchError(
        f"LoRA {lora!r}: {key} is {alpha}, which is no scale",
        'Leave the module out with a block pattern that names it and the factor 0: blocks: {"…": 0}',
    )


def percent(share: float) -> str:
    """Write an estimated share in words."""
    return f"about {share:.1%}"


def cautions_of_recipe(plan: Plan, digests: Mapping[str, str] | None = None) -> Iterator[Caution]:
    """Return the warnings that need only headers and the recipe: strengths, scales, ranks, what is applied twice.

    `digests`, SHA-256 by path, also reveal copies of a file.
    """
    for number, (source, ledger) in enumerate(zip(plan.sources.loras, plan.ledgers, strict=True)):
        lora = source.name
        modules = {patch.module: patch for patch in plan.patches if patch.lora == number}
        strong = [patch.strength for patch in modules.values() if abs(patch.strength) >= STRONG]
        if strong:
            strongest = max(strong, key=abs)
            note = f"its strength is {strongest:g} in {len(strong)} of {len(modules)} modules"
            figures = Figures(strongest, STRONG, "strength")
            yield Caution("strength", lora, f"{strongest:g}", f"{STRONG:g}", note, figures)
        negative = sum(patch.scale is not None and patch.scale < 0 for patch in modules.values())
        if negative:
            note = f"its configuration says a negative alpha for {negative} of {len(modules)} modules"
            yield _of_modules("alpha", lora, negative, f"{note}: their change is taken away, not added")
        if not modules and not ledger.embeddings and ledger.excluded[RANK_0]:
            note = "it changes nothing: every module that is not left out has rank 0"
            count = ledger.excluded[RANK_0]
            yield Caution("zero", lora, f"{count} tensors", "0", note, Figures(count, 0, "tensors"))
    for number, how in plan.sources.evidence.held.items():
        yield Caution("held", plan.sources.loras[number].name, "", "", f"{how}: it is applied once more")
    yield from _listed_twice(plan, digests or {})


def _of_modules(check: WarningName, lora: str, count: int, note: str) -> Caution:
    """Return a warning about so many modules, where there should be none."""
    words = f"{count} module{'s' if count != 1 else ''}"
    return Caution(check, lora, words, "0", note, Figures(count, 0, "modules"))


def _listed_twice(plan: Plan, digests: Mapping[str, str]) -> Iterator[Caution]:
    """Return warnings about LoRAs that are the same file and change the same modules.

    `digests` are SHA-256 by path, as far as they are known.
    """
    modules: defaultdict[int, set[str]] = defaultdict(set)
    for patch in plan.patches:
        modules[patch.lora].add(patch.module)
    inodes = {location.path: location.inode for location in plan.sources.evidence.locations}
    seen: defaultdict[object, list[int]] = defaultdict(list)
    for number, source in enumerate(plan.sources.loras):
        files = [header.path for header in source.checkpoint.headers]
        content = [digests[str(path)] for path in files if str(path) in digests]
        names: list[object] = [tuple(inodes[path] or path for path in files)]
        names += [tuple(content)] if len(content) == len(files) else []
        twins = [other for name in names for other in seen[name] if modules[other] & modules[number]]
        for name in names:
            seen[name].append(number)
        if twins:
            first = plan.sources.loras[twins[0]].name
            also = "" if first == source.name else f", here and as {first!r}"
            note = f"the recipe lists this file twice{also}: both changes add up"
            yield Caution("twice", source.name, "", "", note)
