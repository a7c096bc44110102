"""How strongly a module is changed."""

from __future__ import annotations

from lorabake.adapters import dora
from lorabake.adapters.kind import Kind, Settings


def share_of(kind: Kind, has_dora: bool, semantics: str, strength: float, settings: Settings) -> float:
    """Return what W(1) − W is multiplied by: the strength, unless a program that is followed has another law."""
    if has_dora:
        return 1.0 if semantics in dora.STRENGTH_INSIDE else strength
    return 1.0 if semantics in kind.whole_in else kind.share(strength, settings)
