"""Bake weighted LoRAs into a checkpoint: `bake`, or step by step `load_recipe`, `plan`, `bake`, `verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lorabake.artifacts.lock import Lock
    from lorabake.artifacts.locking import Locked, lock
    from lorabake.baking import BakeResult, RunOptions, bake, bake_together, plan
    from lorabake.errors import (
        ArgumentError,
        FileError,
        InternalError,
        LockError,
        LorabakeError,
        MatchError,
        RecipeError,
        SurroundingsError,
        TargetError,
        ValueTooLargeError,
    )
    from lorabake.inspection import inspect
    from lorabake.matching.ledger import Ledger
    from lorabake.planning import Plan
    from lorabake.recipe import Recipe, load_recipe
    from lorabake.verification import VerifyOptions, verify
    from lorabake.verification.findings import Finding, SampleOptions, Status, Verdict, Verification

__all__ = [
    "ArgumentError",
    "BakeResult",
    "FileError",
    "Finding",
    "InternalError",
    "Ledger",
    "Lock",
    "LockError",
    "Locked",
    "LorabakeError",
    "MatchError",
    "Plan",
    "Recipe",
    "RecipeError",
    "RunOptions",
    "SampleOptions",
    "Status",
    "SurroundingsError",
    "TargetError",
    "ValueTooLargeError",
    "Verdict",
    "Verification",
    "VerifyOptions",
    "bake",
    "bake_together",
    "inspect",
    "load_recipe",
    "lock",
    "plan",
    "verify",
]

_HOMES = {
    "ArgumentError": "errors",
    "BakeResult": "baking",
    "FileError": "errors",
    "Finding": "verification.findings",
    "InternalError": "errors",
    "Ledger": "matching.ledger",
    "Lock": "artifacts.lock",
    "LockError": "errors",
    "Locked": "artifacts.locking",
    "LorabakeError": "errors",
    "MatchError": "errors",
    "Plan": "planning",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "RunOptions": "baking",
    "SampleOptions": "verification.findings",
    "Status": "verification.findings",
    "SurroundingsError": "errors",
    "TargetError": "errors",
    "ValueTooLargeError": "errors",
    "Verdict": "verification.findings",
    "Verification": "verification.findings",
    "VerifyOptions": "verification",
    "bake": "baking",
    "bake_together": "baking",
    "inspect": "inspection",
    "load_recipe": "recipe",
    "lock": "artifacts.locking",
    "plan": "baking",
    "verify": "verification",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import lorabake` costs nothing."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"lorabake.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lorabake' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, whether they have been imported or not."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
