"""One file an adapter kind. A new file here is found by itself: it lists its kinds in `KINDS`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from lorabake.adapters.kind import Kind


@cache
def kinds() -> tuple[Kind, ...]:
    """List every kind, by file name; the order carries no meaning, since no two ask for the same slots."""
    modules = [
        importlib.import_module(f"{__name__}.{info.name}")
        for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name)
    ]
    return tuple(kind for module in modules for kind in getattr(module, "KINDS", ()))


@cache
def suffixes() -> tuple[tuple[str, str], ...]:
    """List how files spell the slots of all kinds; at most one of them fits a key at one place."""
    return tuple(row for kind in kinds() for row in kind.suffixes)


@cache
def shared() -> tuple[tuple[str, str, str], ...]:
    """List the tensors that modules of a file may have in common: key, slot, and the slot that needs it."""
    return tuple(row for kind in kinds() for row in kind.shared)


def are_stored(slots: frozenset[str]) -> bool:
    """Tell whether tensors of a module are a checkpoint's own, or a trainer's copies of such."""
    return any(kind.is_stored for kind in kinds_of(slots)) or not slots & adapter_slots()


@cache
def adapter_slots() -> frozenset[str]:
    """Collect the slots that only adapters have: no checkpoint calls tensors of its own so."""
    stored = frozenset[str]().union(*(kind.required for kind in kinds() if kind.is_stored))
    return frozenset(slot for _, slot in suffixes()) - stored - {"alpha"}


@cache
def kinds_of(slots: frozenset[str]) -> tuple[Kind, ...]:
    """Choose the kinds that together account for all slots of one module, none twice for one parameter; else ().

    A kind that another one's slots contain gives way to it: `weight` beside `on_input` is no whole tensor. What
    `underlies` comes first, and a product may be added to it.
    """
    claims = {kind: claimed for kind in kinds() if not kind.by_place and (claimed := kind.claims(slots))}
    chosen = tuple(
        kind
        for kind, own in claims.items()
        if not any(own < other and kind.parameter == each.parameter for each, other in claims.items())
    )
    chosen = tuple(sorted(chosen, key=lambda kind: not kind.underlies))
    under = {kind.parameter for kind in chosen if kind.underlies}
    fits = all(kind.underlies or kind.goes_on_top or kind.parameter not in under for kind in chosen)
    once = fits and len({(kind.parameter, kind.underlies) for kind in chosen}) == len(chosen)
    return chosen if once and slots == frozenset[str]().union(*(claims[kind] for kind in chosen)) else ()


@cache
def peft_fields() -> dict[str, frozenset[str]]:
    """Map each of PEFT's types that can be baked to the configuration fields that are read for it."""
    found: dict[str, frozenset[str]] = {}
    for kind in kinds():
        if kind.peft_type:
            found[kind.peft_type] = found.get(kind.peft_type, frozenset()) | kind.peft_fields
    return found
