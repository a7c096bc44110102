"""Keep the recipe that a command's options stand for: asked before the work, written after it."""

from __future__ import annotations

from pathlib import Path

from lorabake.cli.places import are_one, check_apart, taken_by
from lorabake.errors import SurroundingsError, TargetError
from lorabake.planning import Plan
from lorabake.tensors.small import holds
from lorabake.writing.partial import partial_of
from lorabake.writing.whole import write_whole


def check_saved(save: Path | None, plan: Plan, report: Path | None = None) -> None:
    """Raise TargetError where something else is or will be; the report is written, too."""
    if save is None or _is_kept(save, plan):
        return
    if save.is_file():
        raise TargetError(f"{save}: exists and holds something else", "Choose another file for the recipe.")
    if report is not None and are_one(save, report):
        raise TargetError(
            f"{save}: is given to both --save-recipe and --report", "Name a different file for one of them."
        )
    check_apart([save], "recipe", taken_by(plan), [plan.path, partial_of(plan.path)])


def save_recipe(save: Path | None, plan: Plan) -> None:
    """Write the recipe that a plan was made of, whole or not at all."""
    if save is None or _is_kept(save, plan):
        return
    try:
        write_whole(save, _content(plan))
    except OSError as error:
        raise SurroundingsError(f"{save}: the recipe cannot be written: {error.strerror}") from None


def _is_kept(save: Path, plan: Plan) -> bool:
    return save.is_file() and holds(save, _content(plan))


def _content(plan: Plan) -> bytes:
    return (plan.sources.recipe.text or "").encode()
