"""Is a wrong tensor what another setting of the recipe makes: another program's law, another way to compose?

Programs differ in how they read DoRA, OFT and others, and some apply one LoRA on top of the other. A file merged with
such a program is correct under another recipe, and the finding should say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lorabake.documents.names import Figures
from lorabake.errors import LorabakeError
from lorabake.keymap.names import patterns
from lorabake.matching.patches import Patch
from lorabake.planning import Plan
from lorabake.planning import plan as make_plan
from lorabake.recipe import Lora, Recipe
from lorabake.reference.formulas.products import PRODUCTS
from lorabake.sources import resolve
from lorabake.verification.findings import Finding, Status
from lorabake.verification.weights.causes import Cause, Diagnosis
from lorabake.verification.weights.comparing import Comparer, Job
from lorabake.verification.weights.comparison import Comparison

FEW, PATIENCE = 2, 16
"""Places of a tensor that are tried before all of it, and how many tensors in a row a setting may fail."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Hold one other recipe: a field, its value, and the LoRAs concerned (all if empty); `said` is our value."""

    recipe: Recipe
    field: Literal["semantics", "compose"]
    value: str | None
    said: str
    loras: tuple[int, ...]

    @property
    def words(self) -> str:
        """Write the field and its value as a recipe does."""
        return f"{self.field}: {self.value}" if self.value else f"no {self.field}"


def explain_by_settings(
    comparer: Comparer, wrong: Sequence[Comparison], stage: str
) -> tuple[list[Finding], list[Diagnosis]]:
    """Find the other setting under which the most wrong tensors are right.

    Each setting is planned anew, and skipped if it cannot be planned. Return a diagnosis for each explained tensor.
    """
    plan = comparer.plan
    concerned = {each.target.key: each for each in wrong if any(map(_has_laws, each.step.patches))}
    if not concerned or plan.sources.recipe.method.name != "sum":
        return [], []
    best: tuple[Setting, set[str]] | None = None
    for setting in _settings(plan, concerned):
        right = set(_right_under(setting, comparer, concerned))
        if right and (best is None or len(right) > len(best[1])):
            best = setting, right
        if len(right) == len(concerned):
            break
    if best is None:
        return [], []
    setting, keys = best
    diagnoses = [
        Diagnosis(key, Cause.VALUES, detail=f"right under {setting.words}") for key in concerned if key in keys
    ]
    return list(_told(plan, setting, [concerned[each.key] for each in diagnoses], stage)), diagnoses


def _told(plan: Plan, setting: Setting, right: Sequence[Comparison], stage: str) -> Iterator[Finding]:
    """Say what a setting explains, by LoRA."""
    for index, lora in enumerate(plan.sources.loras):
        if setting.loras and index not in setting.loras:
            continue
        found = {patch.module for each in right for patch in each.step.patches if patch.lora == index}
        modules = {patch.module for patch in plan.patches if patch.lora == index}
        if found:
            names = next(iter(found)) if len(found) == 1 else patterns(sorted(found))
            note = f"is right under {setting.words} on {len(found)} of {len(modules)} modules: {names}"
            more = "; if that is what the file shall be, say so in the recipe"
            said = setting.said or f"no {setting.field}"
            figures = Figures(setting.value, setting.said or None, setting.field)
            yield Finding(f"{stage}.semantics", Status.WARN, lora.name, setting.words, said, note + more, figures)


def choices(model: type[Lora] | type[Recipe], field: str) -> list[str]:
    """List the values that a field of the recipe allows, from its type."""
    annotation = model.model_fields[field].annotation
    options = (get_args(each) or (each,) for each in (get_args(annotation) or (annotation,)))
    return [each for some in options for each in some if isinstance(each, str)]


def _settings(plan: Plan, concerned: Mapping[str, Comparison]) -> Iterator[Setting]:
    """Yield recipes with one other setting: for all LoRAs concerned, for one of them, or for how they compose."""
    recipe = plan.sources.recipe
    patches = [patch for each in concerned.values() for patch in each.step.patches]
    loras = sorted({patch.lora for patch in patches if _has_laws(patch)})
    sets = [tuple(loras), *((each,) for each in loras if len(loras) > 1)] if loras else []
    for chosen in sets:
        for semantics in (*choices(Lora, "semantics"), None):
            if all(recipe.loras[index].semantics == semantics for index in chosen):
                continue
            entries = tuple(
                lora.model_copy(update={"semantics": semantics}) if index in chosen else lora
                for index, lora in enumerate(recipe.loras)
            )
            said = ", ".join(sorted({each for index in chosen if (each := recipe.loras[index].semantics)}))
            yield Setting(recipe.model_copy(update={"loras": entries}), "semantics", semantics, said, chosen)
    if any(len({patch.lora for patch in each.step.patches}) > 1 for each in concerned.values()):
        for compose in choices(Recipe, "compose"):
            if compose != recipe.compose:
                yield Setting(recipe.model_copy(update={"compose": compose}), "compose", compose, recipe.compose, ())


def _right_under(setting: Setting, other: Comparer, concerned: Mapping[str, Comparison]) -> Iterator[str]:
    """Yield the keys of tensors that are right under a setting; try some rows first, and give up after failures."""
    try:
        plan = make_plan(resolve(setting.recipe), other.plan.path)
        comparer = Comparer(plan, other.baked, other.files, lambda count: None)
        patience = PATIENCE
        for step in plan.steps:
            if not {target.key for target in step.targets} & concerned.keys():
                continue
            if all(each.is_right for each in comparer.compare_some(Job(step, False), FEW)):
                right = [each.target.key for each in comparer.compare(Job(step, False)) if each.is_right]
                yield from (key for key in right if key in concerned)
                patience = PATIENCE if right else patience
            elif not (patience := patience - 1):
                return
    except LorabakeError:
        return


def _has_laws(patch: Patch) -> bool:
    """Tell whether programs may differ in how they apply a patch: all but plain products."""
    return patch.has_dora or patch.kind.name not in PRODUCTS
