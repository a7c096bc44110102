"""Turn compared tensors into findings: unchanged ones, each LoRA's part, and diagnoses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from lorabake.documents.names import Figures
from lorabake.keymap.names import patterns
from lorabake.planning import Plan
from lorabake.planning.cautions import cautions_of, cautions_of_recipe
from lorabake.planning.steps import Step
from lorabake.planning.tally import Tally
from lorabake.verification.findings import Finding, Status, TensorVerdict
from lorabake.verification.weights.causes import FACTORS, SENTENCES, Cause, Diagnosis
from lorabake.verification.weights.comparison import Comparison
from lorabake.visible import and_more

CANCELS = 2.0
"""Distance in ulps from which on it is told why it is no fault."""


def within(right: Sequence[Comparison]) -> str:
    """Say of tensors without a fault how many values are the due ones exactly, and why the others are right, too."""
    values, inexact = sum(result.values for result in right), sum(result.inexact for result in right)
    what = "the ones that the seed draws" if right[0].is_drawn else "the nearest ones"
    if not inexact:
        return f"all {values:,} values are {what}"
    worst = max(result.worst for result in right)
    why = ", in sums whose terms nearly cancel out" if worst > CANCELS else ""
    return (
        f"{1 - inexact / values:.4%} of {values:,} values are {what}; float32's own error accounts for the other "
        f"{inexact:,} (at most {worst:.3g} ulp{why})"
    )


def findings(
    plan: Plan, diagnoses: list[Diagnosis], results: Sequence[Comparison], stage: str = "weights"
) -> Iterator[Finding]:
    """Group diagnoses into findings: one for each cause and LoRA, component, or single tensor."""
    for index, lora in enumerate(plan.sources.loras):
        own = [diagnosis for diagnosis in diagnoses if diagnosis.lora == index]
        modules = {patch.module for patch in plan.patches if patch.lora == index}
        for cause, group in _grouped(own):
            limit = "×1" if group[0].factor is not None else ""
            found = {diagnosis.module for diagnosis in group}
            names = group[0].module if len(found) == 1 else patterns(diagnosis.module for diagnosis in group)
            where = f"on {len(found)} of {len(modules)} modules: {names}"
            details = _details(group, "")
            also = frozenset.intersection(*(diagnosis.also | {diagnosis.cause} for diagnosis in group)) - {cause}
            or_else = "".join(f"; as if it {SENTENCES[other]}" for other in sorted(also))
            yield Finding(
                f"{stage}.{cause}",
                Status.FAIL,
                lora.name,
                _measured(plan, index, group),
                limit,
                f"{SENTENCES[cause]} {where}{or_else}{_some(details)}",
                _figures(group),
            )
    loose = [diagnosis for diagnosis in diagnoses if diagnosis.lora is None]
    owner, foreign = plan.sources.key_map.owner, _foreign(plan, loose, results)
    for component, keys in foreign.items():
        note = f"the whole component is another one: all {len(keys)} tensors of it that no LoRA touches differ"
        measured, figures = f"{len(keys)} tensors", Figures(len(keys), 0, "tensors")
        yield Finding(f"{stage}.{Cause.VALUES}", Status.FAIL, component, measured, "0", note, figures)
    groups: dict[tuple[Cause, str], list[Diagnosis]] = {}
    for diagnosis in loose:
        component = owner.get(diagnosis.key, "")
        if diagnosis.key not in foreign.get(component, ()):
            groups.setdefault((diagnosis.cause, component), []).append(diagnosis)
    for (cause, _), group in groups.items():
        subject = group[0].key if len(group) == 1 else f"{len(group)} tensors"
        details = _details(group, subject)
        note = (
            SENTENCES[cause]
            if len(group) == 1
            else f"{SENTENCES[cause]}: {patterns(diagnosis.key for diagnosis in group)}"
        )
        figures = Figures(len(group), 0, "tensors", len(group) if len(group) > 1 else None)
        yield Finding(f"{stage}.{cause}", Status.FAIL, subject, "", "", f"{note}{_some(details)}", figures)


def _foreign(plan: Plan, loose: list[Diagnosis], results: Sequence[Comparison]) -> dict[str, set[str]]:
    """Find components none of whose own tensors are the base's: what was compared, and no LoRA touches, by keys."""
    own: dict[str, set[str]] = {}
    for result in results:
        component = plan.sources.key_map.owner.get(result.target.key)
        if component is not None and result.is_copy:
            own.setdefault(component, set()).add(result.target.key)
    replaced = {diagnosis.key for diagnosis in loose if diagnosis.cause in (Cause.VALUES, Cause.OTHER_LORA)}
    return {component: keys for component, keys in own.items() if len(keys) > 1 and keys <= replaced}


def _grouped(own: list[Diagnosis]) -> list[tuple[Cause, list[Diagnosis]]]:
    """Group by cause, and strengths by their factor; a cause that fits all factors of a LoRA has priority."""
    measured = [diagnosis for diagnosis in own if diagnosis.factor is not None]
    common = (
        frozenset.intersection(*(diagnosis.also | {diagnosis.cause} for diagnosis in measured))
        if measured
        else frozenset()
    )
    shared = next((cause for cause in FACTORS if cause in common), None)
    groups: list[tuple[Cause, list[Diagnosis]]] = []
    for diagnosis in sorted(
        own, key=lambda diagnosis: (diagnosis.factor is not None, diagnosis.cause, diagnosis.factor or 0)
    ):
        cause = shared if shared is not None and diagnosis.factor is not None else diagnosis.cause
        if groups and groups[-1][0] is cause:
            before = groups[-1][1][-1].factor
            if cause is not Cause.STRENGTH or (diagnosis.factor or 0) - (before or 0) < 0.03:
                groups[-1][1].append(diagnosis)
                continue
        groups.append((cause, [diagnosis]))
    return groups


def _factors(group: list[Diagnosis]) -> list[float]:
    """List the factors found, in rising order."""
    return sorted(diagnosis.factor for diagnosis in group if diagnosis.factor is not None)


def _figures(group: list[Diagnosis]) -> Figures:
    """Put the middle factor into figures, or the number of tensors where no factor was found."""
    factors = _factors(group)
    return Figures(factors[len(factors) // 2], 1, "factor") if factors else Figures(len(group), 0, "tensors")


def _measured(plan: Plan, lora: int, group: list[Diagnosis]) -> str:
    """Write the factors found, and the resulting strengths if the recipe has one strength for all."""
    factors = _factors(group)
    if not factors:
        return f"{len(group)} tensor{'s' * (len(group) > 1)}"
    low, high = factors[0], factors[-1]
    strength = plan.sources.loras[lora].entry.strength
    if high - low > 0.02 * max(abs(high), 1):
        return f"×{low:.2f} to ×{high:.2f}"
    middle = factors[len(factors) // 2]
    absolute = f" (strength {middle * strength:.2g}, not {strength:g})" if isinstance(strength, float) else ""
    return f"×{middle:.2f}{absolute}"


def _details(group: list[Diagnosis], subject: str) -> dict[str, None]:
    """Gather what is told of single tensors; the `subject` of the finding needs no name again."""
    told = ((diagnosis.key, diagnosis.detail.strip()) for diagnosis in group if diagnosis.detail.strip())
    return dict.fromkeys(detail if key == subject else f"{key}: {detail}" for key, detail in told)


def _some(details: dict[str, None]) -> str:
    return f" ({and_more([*details][:3], len(details), between='; ')})" if details else ""


def verdicts(
    plan: Plan, looked_at: Iterable[tuple[Step, str]], diagnoses: Iterable[Diagnosis]
) -> Iterator[TensorVerdict]:
    """Yield, for each compared step and tensor, what became of each of its patches."""
    faults = {(diagnosis.key, diagnosis.lora, diagnosis.module): diagnosis for diagnosis in diagnoses}
    for step, key in looked_at:
        loose = faults.get((key, None, ""))
        for patch in step.patches:
            if key not in patch.view.keys:
                continue
            fault = faults.get((key, patch.lora, patch.module), loose)
            what, factor = ("applied", 1.0) if fault is None else (fault.cause.value, fault.factor)
            yield TensorVerdict(plan.sources.loras[patch.lora].name, patch.module, key, what, factor)


def untouched(results: Iterable[Comparison], stage: str) -> Iterator[Finding]:
    """Report the correct tensors among those that must equal the base's: by bytes, or only by numbers."""
    copies = [result for result in results if result.is_copy]
    others: dict[str, list[Comparison]] = {}
    same = [result for result in copies if result.is_right and result.found.dtype == result.target.weight.dtype]
    if same:
        subject, count = f"{len(same)} untouched tensors", f"{len(copies)}"
        note, figures = "byte-equal to the base", Figures(len(same), len(copies), "tensors", len(same))
        yield Finding(f"{stage}.untouched", Status.PASS, subject, f"{len(same)}", count, note, figures)
    for result in copies:
        if result.is_right and result.found.dtype != result.target.weight.dtype:
            what = "rounded" if result.worst else "the same numbers"
            note = f"not byte-equal: {what}, in {result.found.dtype} where the base has {result.target.weight.dtype}"
            others.setdefault(note, []).append(result)
    for note, group in others.items():
        subject = group[0].target.key if len(group) == 1 else f"{len(group)} untouched tensors"
        figures = Figures(len(group), len(copies), "tensors", len(group) if len(group) > 1 else None)
        yield Finding(f"{stage}.untouched", Status.WARN, subject, f"{len(group)}", f"{len(copies)}", note, figures)


def told_of(
    plan: Plan, stage: str, tallies: Mapping[int, Tally], digests: Mapping[str, str], *, is_whole: bool
) -> Iterator[Finding]:
    """Warn of changes that are zero, get lost or are absurd; without `is_whole`, only some modules were looked at."""
    for caution in (*cautions_of_recipe(plan, digests), *cautions_of(plan, tallies, whole=is_whole)):
        yield Finding(
            f"{stage}.{caution.check}",
            Status.WARN,
            caution.lora,
            caution.measured,
            caution.limit,
            caution.note,
            caution.figures,
        )
