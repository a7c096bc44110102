"""`lorabake check`: Check recipes, also where their models are not."""

from __future__ import annotations

from pathlib import Path

import click

from lorabake.checking import Checked, recipes_in
from lorabake.checking import check as check_recipe
from lorabake.cli import CONTEXT, example
from lorabake.cli.messages import messages
from lorabake.cli.terminal import echo, echo_json
from lorabake.errors import RecipeError
from lorabake.visible import and_more, counted_as

SHOWN = 3


@click.command(context_settings=CONTEXT, epilog=example("check recipes", "check portrait.yaml --with-inputs"))
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--with-inputs", is_flag=True, help="Missing models, and too small a disk, are errors, too.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def check(recipes: tuple[Path, ...], with_inputs: bool, as_json: bool) -> int:
    """Check RECIPES: files, or folders of them.

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
    for path in paths:
        messages.recipe = path
        checked = check_recipe(path, with_inputs=with_inputs)
        found.append(checked)
        if not as_json or checked.error is not None:
            _tell(checked)
    failed = [checked.error for checked in found if checked.error is not None]
    if as_json:
        _tell_json(found)
    elif len(paths) > 1:
        echo(f"{counted_as(len(paths), 'recipe')}, {len(failed)} failed")
    return max((error.exit_code for error in failed), default=0)


def _tell(checked: Checked) -> None:
    if checked.error is not None:
        first, *rest = checked.error.lines
        is_named = first.startswith(f"{checked.path}:")
        messages.error(first if is_named else f"{checked.path}: {first}", *rest)
    elif checked.plan is not None:
        loras = counted_as(len(checked.plan.ledgers), "LoRA")
        echo(f"ok        {checked.path}: planned, {loras} into {checked.plan.sources.recipe.base.path}")
    else:
        missing = and_more([*checked.missing[:SHOWN]], len(checked.missing))
        echo(f"ok        {checked.path}: the recipe alone; not here: {missing}")


def _tell_json(found: list[Checked]) -> None:
    from lorabake.documents import document
    from lorabake.documents.check import CheckDocument, CheckedRecipe

    records = tuple(
        CheckedRecipe(
            recipe=str(checked.path),
            state=checked.state,
            missing=checked.missing,
            error=checked.error.lines if checked.error else (),
            exit_code=checked.error.exit_code if checked.error else 0,
        )
        for checked in found
    )
    echo_json(document("check", CheckDocument(records)))
