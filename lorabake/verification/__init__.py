"""Verify: prove that a checkpoint is what its recipe says, by structure, by weights, by samples."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack, cast

from lorabake import arguments, settings
from lorabake.arguments import AnyPath, path_of, paths_of
from lorabake.errors import ArgumentError, FileError
from lorabake.paths import missing as missing_lines
from lorabake.planning import Plan
from lorabake.planning import plan as make_plan
from lorabake.progress import NotebookBar
from lorabake.recipe import Recipe
from lorabake.recipe.given import WHOLE, Given, OutputGiven, RecipeKeys, recipe_and_path, takes_a_recipe
from lorabake.sources import resolve
from lorabake.sources.received import Received, received
from lorabake.tensors.magic import format_at
from lorabake.tensors.reader import is_there
from lorabake.verification.environment import environment_of
from lorabake.verification.findings import Finding, Verification
from lorabake.verification.provenance import size_of as statement_size
from lorabake.verification.stages import (
    ORDER,
    STAGES,
    Outcome,
    VerifyOptions,
    finish,
    look_at_structure,
    ready,
    shown_by,
)
from lorabake.verification.structure.inputs import tell_inputs
from lorabake.verification.thumbnail import thumbnail_finding

if TYPE_CHECKING:
    from lorabake.verification.samples.album import Album

__all__ = ["ORDER", "STAGES", "VerifyOptions", "embedded_recipe", "verify", "verify_one"]


class Planned(Protocol):
    """Have the plan of what was baked, as a bake's result has."""

    @property
    def plan(self) -> Plan:
        """Return the plan."""


@takes_a_recipe
def verify(
    recipe: Given | Plan | Planned | Received | None = None,
    baked: AnyPath | None = None,
    options: VerifyOptions | None = None,
    *,
    output: OutputGiven | None = None,
    inputs: AnyPath | Sequence[AnyPath] | None = None,
    **keys: Unpack[RecipeKeys],
) -> Verification:
    """Compare a checkpoint (the recipe's output, unless `baked` is given) with what the recipe makes.

    `recipe` is the path of a YAML file, a mapping with the same keys, what `load_recipe` returned, or a plan or the
    result of a bake; the keywords of `plan` can take its place. `output` overrides a recipe's path.

    Without a recipe, the one in the checkpoint's header counts: `verify("baked.safetensors")`. Its inputs are found
    by name and digest in `inputs`, a folder or several; or else beside the checkpoint, and in the current folder.

    Every fault of the checkpoint is a finding; so is a stage that broke off while others finished. Raise FileError,
    MatchError or RecipeError if the inputs are at fault or the checkpoint is missing. Raise SurroundingsError if
    sampling is all that was asked for and lacks an extra.

    Examples:
        >>> options = lorabake.VerifyOptions(stages=["structure", "weights"])
        >>> verification = lorabake.verify("recipe.yaml", options=options)
        >>> verification.is_true
        True
        >>> lorabake.verify("out.safetensors", options=options).is_true
        True
    """
    if options is None:
        options = VerifyOptions()
    arguments.instance(options, VerifyOptions, "options", "VerifyOptions(…)")
    if baked is None and isinstance(recipe, (str, os.PathLike)):
        recipe, baked = (None, recipe) if _is_checkpoint(path_of(recipe, "the recipe's path")) else (recipe, None)
    path = None if baked is None else path_of(baked, "baked")
    if path is not None and recipe is None and output is None and not keys:
        recipe = received(path, [] if inputs is None else paths_of(inputs, "inputs")).complete()
    elif inputs is not None:
        raise ArgumentError(
            "inputs are for a checkpoint without its recipe: a recipe says where its inputs lie", "Leave inputs out."
        )
    plan = recipe if isinstance(recipe, Plan) else getattr(recipe, "plan", None)
    told: tuple[Finding, ...] = ()
    if (isinstance(plan, Plan) or isinstance(recipe, Received)) and (output is not None or keys):
        raise ArgumentError(WHOLE, "Verify its recipe instead.")
    if isinstance(recipe, Received):
        checked, written = recipe.complete().recipe, cast(Path | None, recipe.baked)
        told = tuple(tell_inputs(recipe))
    elif isinstance(plan, Plan):
        checked, written = plan.sources.recipe, plan.path
    else:
        place = path if recipe is None and output is None else output
        checked, written = recipe_and_path(cast(Given | None, recipe), place, keys, VerifyOptions)
    with NotebookBar(shown=options.bar) as bar:
        return _verify(checked, _path_of(checked, path or written), shown_by(options, bar), told)


def _is_checkpoint(path: Path) -> bool:
    """Tell whether a path leads to weights, and not to a recipe."""
    form = format_at(path) if path.is_file() else None
    return path.is_dir() or (form is not None and form.has_weights)


def verify_one(given: Recipe | Received, options: VerifyOptions, album: Album | None = None) -> Verification:
    """Verify one output of several, as `verify` does; `album` keeps what their bases make of prompts."""
    if isinstance(given, Received):
        path = _path_of(given.complete().recipe, given.baked)
        return _verify(given.recipe, path, options, tuple(tell_inputs(given)), album)
    return _verify(given, _path_of(given, None), options, (), album)


def _verify(
    recipe: Recipe, path: Path, options: VerifyOptions, inputs: Sequence[Finding], album: Album | None = None
) -> Verification:
    plan = make_plan(resolve(recipe), path)
    with ExitStack() as opened:
        structure = look_at_structure(plan, path, options, inputs)
        checkpoint = structure.result
        readied = ready(plan, path, checkpoint, options, opened, album)
        statement = finish(readied.stating, statement_size(plan, path) if readied.stating else 0, path, options)
        weights = finish(readied.comparing, checkpoint.size if checkpoint else 0, path, options)
        samples = finish(readied.sampling, 0, path, options)
    outcomes: tuple[Outcome[Any], ...] = (structure, *statement, *weights, *samples)
    sampled = next((outcome.result for outcome in samples), None)
    findings = tuple(finding for outcome in outcomes for finding in outcome.findings)
    shown = thumbnail_finding(plan, path, sampled, findings)
    if shown is not None:
        options.ended("samples", (shown,), None)
    compared = next((each.result for each in reversed(weights) if each.result is not None), None)
    return Verification(
        baked=path,
        recipe=recipe.text or json.dumps(recipe.normal_form(), indent=2),
        findings=(*findings, *([shown] if shown else [])),
        seconds={outcome.stage: outcome.seconds for outcome in outcomes if outcome.seconds is not None},
        plan=plan,
        effects=compared.effects if compared else (),
        tensors=compared.tensors if compared else (),
        samples=sampled,
        digests=compared.digests if compared else {},
        failures=tuple(failure for outcome in outcomes for failure in outcome.failures),
        environment=environment_of(
            plan, checkpoint, sampled, compared.whole if compared else {}, command=options.command, date=options.date
        ),
    )


def _path_of(recipe: Recipe, baked: Path | None) -> Path:
    """Return the checkpoint's path; raise FileError if nothing is there."""
    path = Path(os.path.normpath(baked if baked is not None else recipe.locate(recipe.output.path)))
    if not is_there(path):
        near = missing_lines(path, str(path)) if baked is not None else (f"{path}: no such file",)
        raise FileError(*near, f"Bake it first, or name the checkpoint with {settings.CHECKPOINT}.")
    return path


def embedded_recipe(baked: Path, inputs: Path | Iterable[Path] | None = None, changes: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a checkpoint's metadata, with its inputs where `sources.received` finds them.

    Raise FileError for a checkpoint without a recipe, and for inputs that are nowhere.
    """
    return received(baked, inputs, changes).complete().recipe
