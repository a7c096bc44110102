"""Refuse whole files, or what the recipe asks of them; each answer is the lines of an error."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from lorabake.architectures import architectures
from lorabake.errors import MatchError
from lorabake.keymap.module import Module
from lorabake.keymap.names import pattern_of
from lorabake.keymap.peft import PeftConfig
from lorabake.keymap.slots import LoraModule
from lorabake.keymap.table import Architecture
from lorabake.keymap.view import View
from lorabake.matching.ledger import FOR_NONE, Ledger, ignored_by
from lorabake.matching.leftovers import by_end
from lorabake.matching.names import nearest_words
from lorabake.matching.patches import Patch
from lorabake.matching.strengths import unlisted
from lorabake.matching.turns import Turns
from lorabake.recipe import Lora
from lorabake.recipe.foreign import component_meant
from lorabake.settings import AS_STRENGTH
from lorabake.sources.loras import LoraSource
from lorabake.sources.sorts import other_than_lora
from lorabake.visible import visible

Lines = tuple[str, ...]


def error(lora: str, lines: Lines) -> MatchError:
    """Return an error about a LoRA with these lines."""
    return MatchError(f"LoRA {lora!r}: {lines[0]}", *lines[1:])


def refuse(lora: str, lines: Lines | None) -> None:
    """Raise an error about a LoRA with these lines, if there are any."""
    if lines is not None:
        raise error(lora, lines)


# -- before any module is placed -----------------------------------------------------------------------------


def component_is_unknown(entry: Lora, base: Architecture | None) -> Lines | None:
    """Refuse a recipe that names a component which no family has; the base's own are told where it is known."""
    everywhere = {component.name for family in architectures() for component in family.components}
    strength = entry.strength
    named = [*(entry.components or ()), *(strength if isinstance(strength, dict) else ())]
    unknown = next((name for name in named if name not in everywhere), None)
    if unknown is None:
        return None
    told = f"no component is called {unknown!r}"
    meant = component_meant(unknown)
    if base is None:
        return (told + (f"; write {meant}" if meant else nearest_words(unknown, sorted(everywhere))),)
    own = [component.name for component in base.components]
    meant = "transformer" if meant == "unet" and meant not in own and "transformer" in own else meant
    return (
        told + (f"; write {meant}" if meant in own else nearest_words(unknown, sorted(everywhere))),
        f"The base ({base.title}) has: {', '.join(own)}",
    )


def glob_ignores_nothing(idle: Sequence[str], modules: Mapping[str, LoraModule]) -> Lines | None:
    """Refuse a glob of `ignore` that leaves nothing out."""
    if not idle:
        return None
    glob, start = idle[0], f"ignore pattern {idle[0]!r} "
    keys = (key for module in modules.values() for key in module.own_keys)
    partly = next((key for key in keys if fnmatchcase(key, glob)), None)
    if partly is not None:
        such = f"matches some tensors of a module alone, such as {visible(partly)}"
        return start + such, "Only whole modules can be left out."
    ends = {end: None for name in modules for end in (by_end(name), pattern_of(name))}
    told = f"{start}matches nothing in the file{visible(nearest_words(glob, [*ends]))}"
    return told, f"Remove it, or correct it. {_whole(ends)}"


def _whole(names: Iterable[str]) -> str:
    """Say what a pattern is compared with."""
    example = next(iter(names), "")
    return f"A pattern is compared with whole names, such as {visible(example)}; * stands for any part of them."


def file_is_no_lora(lora: LoraSource, ignored: Collection[str]) -> Lines | None:
    """Refuse a file that is something else, such as a checkpoint or a VAE; `ignored` are keys that do not count."""
    return other_than_lora(lora, ignored)


def turns_cannot_be_told(turns: Turns) -> Lines | None:
    """Refuse a file with fan_in_fan_out if no shape tells what that means for the base."""
    if not turns.either or turns.straight or turns.turned:
        return None
    why = "every weight is square" if turns.squares == turns.either else "its tensors would fit either way"
    return (
        f"fan_in_fan_out is set and {why}",
        "lorabake has no table for this base, so it cannot tell whether its weights are transposed.",
    )


# -- of a module that has a place ----------------------------------------------------------------------------


def strength_forgets_the_component(component: str) -> Lines:
    """Refuse a recipe whose strengths omit a component that the LoRA has tensors for."""
    return (
        f"it has tensors for {component}, and its strength says nothing of them",
        f"Add {component}: 0 to its strength, which leaves them out, or another number{AS_STRENGTH.of(component)}.",
    )


def two_modules_change_one_tensor(first: str, second: str, key: str) -> Lines:
    """Refuse a file that has one module under two names."""
    return (
        f"{first} and {second} both change {key}",
        "A file that has one module under two names would be applied twice.",
    )


# -- after all modules are placed ----------------------------------------------------------------------------


def announced_tokens_are_missing(config: PeftConfig | None, modules: Iterable[LoraModule]) -> Lines | None:
    """Refuse a file without the rows that its configuration announces beside its layers."""
    if config is None or not config.fields.get("trainable_token_indices"):
        return None
    if any("tokens" in module.slots for module in modules):
        return None
    return ("adapter_config says trainable_token_indices, and the file has no such rows",)


def alpha_has_another_name(alphas: Mapping[str, Sequence[Module]], patches: Sequence[Patch]) -> Lines | None:
    """Refuse an alpha under another name of the module than its factors, which would be baked without it.

    `alphas` has the modules of the base by the name that an alpha alone goes by.
    """
    lacking: dict[View, Patch] = {}
    for patch in patches if alphas else ():
        if patch.scale is None and patch.kind.may_have_alpha and "alpha" not in patch.tensors:
            lacking.setdefault(patch.view, patch)
    for name, place in ((name, place) for name, places in alphas.items() for place in places):
        view = place.views.get("weight")
        if view is not None and view in lacking:
            return (
                f"{name}.alpha and {lacking[view].module} are one module under two names",
                "Rename one of them, so that it is told whether that alpha counts.",
            )
    return None


def block_pattern_takes_nothing(
    blocks: Iterable[str], taking: Collection[str], paths: Collection[str]
) -> Lines | None:
    """Refuse a pattern of `blocks` that matches no module; `taking` are those that do, `paths` all baked modules."""
    unused = next((glob for glob in blocks if glob not in taking), None)
    if unused is None:
        return None
    if any(fnmatchcase(path, unused) for path in paths):
        advice = "Remove it, or write it before that one: the first match wins."
        why = "matches only modules that a pattern before it takes"
    else:
        advice = _whole(sorted(paths))
        plain = re.split(r"[*?[]", unused)[0].rstrip(".")
        heads = {".".join(path.split(".")[: plain.count(".") + 1]) for path in paths}
        why = f"matches no module{nearest_words(plain, sorted(heads))}"
        if re.fullmatch(r"(?:IN|OUT|M|MID)\d\d|MID|BASE", plain):
            why = f"matches no module: {plain} is a name of block weights in prompts"
    return f"blocks pattern {unused!r} {why}", advice


def file_has_no_tensors(ledger: Ledger, entry: Lora) -> Lines | None:
    """Refuse a file without tensors."""
    return None if ledger.tensors else ("has no tensors, so there is nothing to bake",)


def components_leave_nothing(ledger: Ledger, entry: Lora) -> Lines | None:
    """Refuse a recipe whose components leave out the whole file."""
    reason = unlisted(entry)
    return (f"all of its tensors are {reason}",) if ledger.excluded[reason] == ledger.tensors else None


def ignore_leaves_nothing(ledger: Ledger, entry: Lora) -> Lines | None:
    """Refuse a recipe that leaves out the whole file, with `ignore` at least in part."""
    reasons = (unlisted(entry), FOR_NONE, *map(ignored_by, entry.ignore or ()))
    is_all = sum(ledger.excluded[reason] for reason in reasons) == ledger.tensors
    return ("ignore leaves nothing of it to bake",) if entry.ignore and is_all else None


OF_THE_LEDGER = (file_has_no_tensors, components_leave_nothing, ignore_leaves_nothing)
"""Refusals that look at a closed ledger, in this order."""
