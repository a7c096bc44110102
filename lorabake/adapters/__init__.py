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


def kinds_of(slots: frozenset[str]) -> tuple[Kind, ...]:
    """Choose the kinds that together account for all slots of one module, none twice for one parameter; else ()."""
    chosen = tuple(kind for kind in kinds() if kind.required <= slots)
    claimed = frozenset[str]().union(*(kind.required | kind.optional for kind in chosen))
    once = len({kind.parameter for kind in chosen}) == len(chosen)
    return chosen if once and slots <= claimed else ()
