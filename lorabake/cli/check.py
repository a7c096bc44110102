"""`lorabake check`: Check recipes, also where their models are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from lorabake.checking import Checked, recipes_in
from lorabake.checking import check as check_recipes
from lorabake.cli import CONTEXT, example
from lorabake.cli.messages import messages
from lorabake.cli.recipe_options import only_option
from lorabake.cli.terminal import echo, echo_json
from lorabake.errors import RecipeError
from lorabake.visible import and_more, counted_as

SHOWN = 3


@click.command(context_settings=CONTEXT, epilog=example("check recipes", "check portrait.yaml --with-inputs"))
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@only_option
@click.option("--with-inputs", is_flag=True, help="Missing models, and too small a disk, are errors, too.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def check(recipes: tuple[Path, ...], globs: tuple[str, ...], with_inputs: bool, as_json: bool) -> int:
    """Check RECIPES: files, or folders of them. A recipe with a matrix stands for several outputs.

    Checks each recipe's grammar and names. Where its models are, it also plans the bake. A recipe whose models are
    not there passes, unless --with-inputs is given.
    """
    paths = [*recipes_in(recipes)]
    if not paths:
        raise RecipeError(
            f"{and_more([str(path) for path in recipes[:SHOWN]], len(recipes))}: there is no recipe",
            "Give files, or folders with *.yaml in them.",
        )
    found = []
    for outputs in check_recipes(paths, globs, with_inputs=with_inputs):
        messages.recipe = outputs[0].path
        found.append(outputs)
        _tell_failures(outputs)
        if not as_json:
            _tell(outputs)
    errors = [each.error for outputs in found for each in outputs if each.error is not None]
    if as_json:
        _tell_json([each for outputs in found for each in outputs])
    elif len(found) > 1:
        failed = sum(any(each.error is not None for each in outputs) for outputs in found)
        echo(f"{counted_as(len(found), 'recipe')}, {failed} failed")
    return max((error.exit_code for error in errors), default=0)


def _tell_failures(outputs: Sequence[Checked]) -> None:
    """Tell each failure of a recipe once, and which outputs of a matrix have it."""
    failures: dict[tuple[str, ...], list[Checked]] = {}
    for each in outputs:
        if each.error is not None:
            failures.setdefault(each.error.lines, []).append(each)
    for (first, *rest), failed in failures.items():
        path = failed[0].path
        names = [each.recipe.name for each in failed if each.recipe is not None and each.recipe.choices]
        if 0 < len(names) < len(outputs):
            rest.append(f"In {len(names)} of {len(outputs)} outputs: {and_more(names[:SHOWN], len(names))}")
        messages.error(first if first.startswith(f"{path}:") else f"{path}: {first}", *rest)


def _tell(outputs: Sequence[Checked]) -> None:
    """Tell in a line what was planned of a recipe, and in one what could not be."""
    planned = [each.plan for each in outputs if each.state == "planned" and each.plan is not None]
    checked = [each for each in outputs if each.state == "checked"]
    path, has_matrix = outputs[0].path, outputs[0].recipe is not None and bool(outputs[0].recipe.choices)
    if planned:
        bases = [*dict.fromkeys(plan.sources.recipe.base.path for plan in planned)]
        loras = "" if has_matrix else f", {counted_as(len(planned[0].ledgers), 'LoRA')}"
        count = f"{counted_as(len(planned), 'output')} " if has_matrix else ""
        echo(f"ok        {path}: {count}planned{loras} into {and_more(bases[:SHOWN], len(bases))}")
    if checked:
        missing = [*dict.fromkeys(name for each in checked for name in each.missing)]
        count = f"{counted_as(len(checked), 'output')}, " if has_matrix else ""
        echo(f"ok        {path}: {count}the recipe alone; not here: {and_more(missing[:SHOWN], len(missing))}")


def _tell_json(found: Sequence[Checked]) -> None:
    from lorabake.documents import document
    from lorabake.documents.batch import Chosen
    from lorabake.documents.check import CheckDocument, CheckedRecipe

    records = tuple(
        CheckedRecipe(
            recipe=str(checked.path),
            name=checked.recipe.name if checked.recipe else None,
            choices=tuple(Chosen(*choice) for choice in checked.recipe.choices.items()) if checked.recipe else (),
            state=checked.state,
            missing=checked.missing,
            error=checked.error.lines if checked.error else (),
            exit_code=checked.error.exit_code if checked.error else 0,
        )
        for checked in found
    )
    echo_json(document("check", CheckDocument(records)))
