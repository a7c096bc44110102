"""Compare a file's changes of an embedding that the base uses more than once: they must be one change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lorabake.adapters.tokens import rows_of
from lorabake.keymap.slots import LoraModule
from lorabake.matching.alike import are_alike
from lorabake.matching.candidates import Candidates
from lorabake.matching.names import BaseNames
from lorabake.matching.strengths import leaves_out, strength_of
from lorabake.sources.loras import LoraSource


@dataclass(frozen=True, slots=True)
class TiedChange:
    """Hold why a file's changes of a tied embedding cannot be baked, or which modules repeat another's change.

    `note` tells users about repetitions.
    """

    fault: str | None = None
    repeated: frozenset[str] = frozenset()
    note: str = ""


def tied_change(modules: Iterable[Candidates], base: BaseNames, lora: LoraSource) -> TiedChange:
    """Compare all changes of a tied embedding that a file has."""
    changes: dict[str, list[LoraModule]] = {}
    laws: list[object] = []
    are_loaded = True
    for candidates in modules if base.tie else ():
        use, module = candidates.use, candidates.module
        if use is None or module.slots.keys() == {"alpha"} or leaves_out(lora.entry, {use.component}):
            continue
        strength = strength_of(lora.entry, use.component, base.names_at(use.views["weight"]))
        if strength is not None and strength.value != 0:
            changes.setdefault(use.name, []).append(module)
            laws.append((strength.value, _law(candidates)))
            are_loaded = are_loaded and _is_loaded(candidates)
    if base.tie is None or not changes:
        return TiedChange()
    first, *others = [module for modules in changes.values() for module in modules]
    alike = all(law == laws[0] for law in laws) and all(are_alike(first, other, lora.evidence) for other in others)
    note = (
        f"{' and '.join(sorted(changes, key=base.tie.heads.__contains__))} are one tensor: "
        "their change, said for each, is baked once"
    )
    fault = base.tie.fault(changes, alike=alike, loaded=alike and are_loaded)
    return TiedChange(fault, frozenset(module.name for module in base.tie.repeated(changes)), note)


def _is_loaded(candidates: Candidates) -> bool:
    """Tell whether the trainer of a module changes the one shared tensor: MLX does, and PEFT if it loads it whole.

    PEFT trains `modules_to_save` as a copy for one use.
    """
    config = candidates.config
    if config is None or config.is_mlx:
        return config is not None
    return candidates.module.slots.keys() == {"whole_weight"} and not config.announces(candidates.path)


def _law(candidates: Candidates) -> object:
    """Return facts about a module that only a configuration states: its scale and its trained tokens."""
    config, path = candidates.config, candidates.path
    return None if config is None else (config.scale_of(path), rows_of(config.said_of(path)))
