"""Bake weighted LoRAs into a checkpoint: `bake`, or step by step `load_recipe`, `plan`, `bake`, `verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lorabake.artifacts.lock import Lock, LockedInput, LockedOutput
    from lorabake.artifacts.locking import Locked, lock
    from lorabake.artifacts.publish import publish
    from lorabake.baking import bake, bake_together, plan
    from lorabake.batch import BatchOptions, Outcome, bake_all
    from lorabake.batch.shards import Shard
    from lorabake.documents.names import Figures
    from lorabake.errors import (
        ArgumentError,
        ChangeLostError,
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
    from lorabake.estimating import Estimate, estimate
    from lorabake.inspection import inspect
    from lorabake.matching.ledger import Counts, Learned, Ledger
    from lorabake.options import RunOptions
    from lorabake.planning import Plan
    from lorabake.planning.cautions import Caution
    from lorabake.recipe import Base, Lora, Method, Output, Recipe, Source, Verify, load_recipe, load_recipes
    from lorabake.recipe.given import RecipeKeys, change
    from lorabake.recipe.models import Rounding
    from lorabake.remote.address import Fetched
    from lorabake.remote.hubupload import Uploaded
    from lorabake.report import write_report
    from lorabake.results import BakeResult
    from lorabake.sources.fetching import fetch
    from lorabake.verification import VerifyOptions, verify
    from lorabake.verification.findings import (
        Effect,
        Environment,
        Failure,
        Finding,
        Identity,
        Likeness,
        PromptSample,
        SampleOptions,
        Samples,
        Status,
        SweepSample,
        TensorVerdict,
        TextSample,
        Verdict,
        Verification,
    )
    from lorabake.verification.many import KeptSample, SmallPicture, VerifiedBatch, VerifiedOutput
    from lorabake.verifying import verify_all

__all__ = [
    "ArgumentError",
    "BakeResult",
    "Base",
    "BatchOptions",
    "Caution",
    "ChangeLostError",
    "Counts",
    "Effect",
    "Environment",
    "Estimate",
    "Failure",
    "Fetched",
    "Figures",
    "FileError",
    "Finding",
    "Identity",
    "InternalError",
    "KeptSample",
    "Learned",
    "Ledger",
    "Likeness",
    "Lock",
    "LockError",
    "Locked",
    "LockedInput",
    "LockedOutput",
    "Lora",
    "LorabakeError",
    "MatchError",
    "Method",
    "Outcome",
    "Output",
    "Plan",
    "PromptSample",
    "Recipe",
    "RecipeError",
    "RecipeKeys",
    "Rounding",
    "RunOptions",
    "SampleOptions",
    "Samples",
    "Shard",
    "SmallPicture",
    "Source",
    "Status",
    "SurroundingsError",
    "SweepSample",
    "TargetError",
    "TensorVerdict",
    "TextSample",
    "Uploaded",
    "ValueTooLargeError",
    "Verdict",
    "Verification",
    "VerifiedBatch",
    "VerifiedOutput",
    "Verify",
    "VerifyOptions",
    "bake",
    "bake_all",
    "bake_together",
    "change",
    "estimate",
    "fetch",
    "inspect",
    "load_recipe",
    "load_recipes",
    "lock",
    "plan",
    "publish",
    "verify",
    "verify_all",
    "write_report",
]

_HOMES = {
    "ArgumentError": "errors",
    "BakeResult": "results",
    "BatchOptions": "batch",
    "Base": "recipe",
    "Caution": "planning.cautions",
    "ChangeLostError": "errors",
    "Counts": "matching.ledger",
    "Effect": "verification.findings",
    "Environment": "verification.findings",
    "Estimate": "estimating",
    "Failure": "verification.findings",
    "Fetched": "remote.address",
    "Figures": "documents.names",
    "FileError": "errors",
    "Finding": "verification.findings",
    "Identity": "verification.findings",
    "InternalError": "errors",
    "KeptSample": "verification.many",
    "Learned": "matching.ledger",
    "Ledger": "matching.ledger",
    "Lock": "artifacts.lock",
    "LockError": "errors",
    "Locked": "artifacts.locking",
    "LockedInput": "artifacts.lock",
    "LockedOutput": "artifacts.lock",
    "Likeness": "verification.findings",
    "Lora": "recipe",
    "LorabakeError": "errors",
    "MatchError": "errors",
    "Method": "recipe",
    "Outcome": "batch",
    "Output": "recipe",
    "Plan": "planning",
    "PromptSample": "verification.findings",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "RecipeKeys": "recipe.given",
    "Rounding": "recipe.models",
    "RunOptions": "options",
    "SampleOptions": "verification.findings",
    "SmallPicture": "verification.many",
    "Samples": "verification.findings",
    "Shard": "batch.shards",
    "Source": "recipe",
    "Status": "verification.findings",
    "SurroundingsError": "errors",
    "SweepSample": "verification.findings",
    "TargetError": "errors",
    "TensorVerdict": "verification.findings",
    "TextSample": "verification.findings",
    "Uploaded": "remote.hubupload",
    "ValueTooLargeError": "errors",
    "Verdict": "verification.findings",
    "Verification": "verification.findings",
    "VerifiedBatch": "verification.many",
    "VerifiedOutput": "verification.many",
    "Verify": "recipe",
    "VerifyOptions": "verification",
    "bake": "baking",
    "bake_all": "batch",
    "bake_together": "baking",
    "change": "recipe.given",
    "estimate": "estimating",
    "fetch": "sources.fetching",
    "inspect": "inspection",
    "load_recipe": "recipe",
    "load_recipes": "recipe",
    "lock": "artifacts.locking",
    "plan": "baking",
    "publish": "artifacts.publish",
    "verify": "verification",
    "verify_all": "verifying",
    "write_report": "report",
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
