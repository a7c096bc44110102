"""Bake weighted LoRAs into a checkpoint: `load_recipe`, `plan`, `bake`, `verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lorabake.baking import BakeResult, RunOptions, bake, plan
    from lorabake.planning import Plan
    from lorabake.recipe import Recipe, load_recipe
    from lorabake.verification import VerifyOptions, verify
    from lorabake.verification.findings import Verification

__all__ = [
    "BakeResult",
    "Plan",
    "Recipe",
    "RunOptions",
    "Verification",
    "VerifyOptions",
    "bake",
    "load_recipe",
    "plan",
    "verify",
]

_HOMES = {
    "BakeResult": "baking",
    "Plan": "planning",
    "Recipe": "recipe",
    "RunOptions": "baking",
    "Verification": "verification.findings",
    "VerifyOptions": "verification",
    "bake": "baking",
    "load_recipe": "recipe",
    "plan": "baking",
    "verify": "verification",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import lorabake` costs nothing."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"lorabake.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lorabake' has no attribute {name!r}")
