"""Verify: prove that a checkpoint is what its recipe says, by structure, by weights, by samples."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Unpack, cast

from pydantic import ValidationError

from lorabake import arguments, settings
from lorabake.arguments import AnyPath, path_of
from lorabake.errors import ArgumentError, FileError, first_line
from lorabake.paths import missing as missing_lines
from lorabake.planning import Plan
from lorabake.planning import plan as make_plan
from lorabake.progress import NotebookBar
from lorabake.recipe import Recipe, recipe_of, values_of
from lorabake.recipe.changes import with_changes
from lorabake.recipe.given import WHOLE, Given, OutputGiven, RecipeKeys, recipe_and_path
from lorabake.sources import resolve
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.tensors.reader import is_there
from lorabake.tensors.small import parse_json
from lorabake.verification.environment import environment_of, hashing
from lorabake.verification.findings import Verification
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
from lorabake.visible import some

__all__ = ["ORDER", "STAGES", "VerifyOptions", "embedded_recipe", "verify"]


class Planned(Protocol):
    """Have the plan of what was baked, as a bake's result has."""

    @property
    def plan(self) -> Plan:
        """Return the plan."""


def verify(
    recipe: Given | Plan | Planned | None = None,
    baked: AnyPath | None = None,
    options: VerifyOptions | None = None,
    *,
    output: OutputGiven | None = None,
    **keys: Unpack[RecipeKeys],
) -> Verification:
    """Compare a checkpoint (the recipe's output, unless `baked` is given) with what the recipe makes.

    `recipe` is the path of a YAML file, a mapping with the same keys, what `load_recipe` returned, or a plan or the
    result of a bake; keywords can take its place. `output` overrides a recipe's path.

    Every fault of the checkpoint is a finding; so is a stage that broke off while others finished. Raise FileError,
    MatchError or RecipeError if the inputs are at fault or the checkpoint is missing. Raise SurroundingsError if
    sampling is all that was asked for and lacks an extra.

    Examples:
        >>> options = lorabake.VerifyOptions(stages=["structure", "weights"])
        >>> verification = lorabake.verify("recipe.yaml", options=options)
        >>> verification.is_true
        True
    """
    if options is None:
        options = VerifyOptions()
    arguments.instance(options, VerifyOptions, "options", "VerifyOptions(…)")
    path = None if baked is None else path_of(baked, "baked")
    plan = recipe if isinstance(recipe, Plan) else getattr(recipe, "plan", None)
    if isinstance(plan, Plan):
        if output is not None or keys:
            raise ArgumentError(WHOLE, "Verify its recipe instead.")
        checked, written = plan.sources.recipe, cast(Path | None, plan.path)
    else:
        place = path if recipe is None and output is None else output
        checked, written = recipe_and_path(cast(Given | None, recipe), place, keys, VerifyOptions)
    with NotebookBar(shown=options.bar) as bar:
        return _verify(checked, _path_of(checked, path or written), shown_by(options, bar))


def _verify(recipe: Recipe, path: Path, options: VerifyOptions) -> Verification:
    plan = make_plan(resolve(recipe), path)
    with ExitStack() as opened:
        structure = look_at_structure(plan, path, options)
        checkpoint = structure.result
        readied = ready(plan, path, checkpoint, options, opened)
        statement = finish(readied.stating, statement_size(plan, path) if readied.stating else 0, path, options)
        digests = None
        if checkpoint and readied.comparing and options.digests:
            digests = opened.enter_context(hashing(plan, checkpoint))
        weights = finish(readied.comparing, checkpoint.size if checkpoint else 0, path, options)
        samples = finish(readied.sampling, 0, path, options)
        whole = digests.result() if digests else {}
    outcomes: tuple[Outcome[Any], ...] = (structure, *statement, *weights, *samples)
    sampled = next((outcome.result for outcome in samples), None)
    compared = next((each.result for each in reversed(weights) if each.result is not None), None)
    return Verification(
        baked=path,
        recipe=recipe.text or json.dumps(recipe.normal_form(), indent=2),
        findings=tuple(finding for outcome in outcomes for finding in outcome.findings),
        seconds={outcome.stage: outcome.seconds for outcome in outcomes if outcome.seconds is not None},
        plan=plan,
        effects=compared.effects if compared else (),
        tensors=compared.tensors if compared else (),
        samples=sampled,
        digests=compared.digests if compared else {},
        failures=tuple(failure for outcome in outcomes for failure in outcome.failures),
        environment=environment_of(plan, checkpoint, sampled, whole, command=options.command, date=options.date),
    )


def _path_of(recipe: Recipe, baked: Path | None) -> Path:
    """Return the checkpoint's path; raise FileError if nothing is there."""
    path = Path(os.path.normpath(baked if baked is not None else recipe.locate(recipe.output.path)))
    if not is_there(path):
        near = missing_lines(path, str(path)) if baked is not None else (f"{path}: no such file",)
        raise FileError(*near, f"Bake it first, or name the checkpoint with {settings.CHECKPOINT}.")
    return path


def embedded_recipe(baked: Path, inputs: Path | None = None, changes: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a checkpoint's metadata; its inputs are looked for in `inputs`.

    Without `inputs`, beside the checkpoint and in the current folder. `changes` are texts such as verify.steps=20;
    paths in them start from the current folder. Raise FileError for a checkpoint without a recipe, and for inputs
    that are in none of these folders.
    """
    if not is_there(baked):
        raise FileError(*missing_lines(baked, str(baked)))
    text = open_checkpoint(baked).metadata.get("lorabake.recipe")
    if text is None:
        raise FileError(
            f"{baked}: holds no recipe, so lorabake did not bake it",
            f"Give the recipe that it should follow: {settings.VERIFY}",
        )
    try:
        form: Any = parse_json(text)
        for lora in form["loras"]:
            lora["blocks"] = dict(lora["blocks"])
        form["output"]["path"] = baked.name
        values = values_of(_as_read(form), str(baked))
        recipe = Recipe.model_validate(values.data)
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise FileError(f"{baked}: the recipe in its metadata is damaged: {first_line(error, None)}") from None
    if changes:
        recipe = recipe_of(with_changes(values, changes, Path.cwd(), None), Path.cwd())
    names = [recipe.base.path, *(lora.path for lora in recipe.loras), *([recipe.vae.path] if recipe.vae else [])]
    folders = [inputs] if inputs is not None else [*dict.fromkeys((baked.absolute().parent, Path.cwd()))]
    for folder in folders:
        if all(is_there(folder / name) for name in names):
            return recipe.placed(folder)
    missing = [name for name in names if not is_there(folders[0] / name)]
    raise FileError(
        f"{baked}: the inputs of its recipe are not in {' or '.join(map(str, folders))}: {some(missing)}",
        f"Say where they lie with {settings.INPUTS}, or give the recipe: {settings.VERIFY}",
    )


def _as_read(value: object) -> object:
    """Turn JSON into the values that a recipe is read from: without nulls, with sequences as tuples."""
    match value:
        case dict():
            return {key: _as_read(each) for key, each in value.items() if each is not None}
        case list():
            return tuple(map(_as_read, value))
    return value
