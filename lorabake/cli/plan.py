"""`lorabake plan`: Show what a bake would do, and what it needs.

Read headers only, without torch; tensors only with --estimate.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from lorabake.baking import plan as make_plan
from lorabake.cli import CONTEXT, example
from lorabake.cli.messages import messages
from lorabake.cli.recipe_options import recipe_options, save_option
from lorabake.cli.saving import check_saved, save_recipe
from lorabake.cli.show import LABEL, ledger_lines, link_lines, new_folder, shown, survives, unlinkable
from lorabake.cli.terminal import echo, echo_json
from lorabake.errors import LorabakeError, RecipeError
from lorabake.machine import default_workers, folder_above
from lorabake.planning import Plan
from lorabake.planning.cautions import cautions_of_recipe
from lorabake.planning.links import linked, links_in, unlinked_of
from lorabake.recipe import Recipe
from lorabake.recipe.options import Options
from lorabake.settings import ONLY
from lorabake.tensors.once import shared
from lorabake.visible import and_more, counted_as, size_of
from lorabake.writing.linking import linkable, room_of, saving_of

LABELLED = "warning   "

SHOWN = 4
"""How many names of outputs a message lists."""


@click.command(
    context_settings=CONTEXT,
    epilog=example(
        "plan recipe.yaml",
        "plan recipe.yaml --estimate",
        "plan --base base.safetensors --lora style.safetensors=0.8 -o baked.safetensors",
    ),
)
@recipe_options()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Plan for this path instead of the recipe's.")
@save_option
@click.option("--json", "as_json", is_flag=True, help="Print the plan's figures as JSON.")
@click.option(
    "--estimate",
    is_flag=True,
    help="Also read a sample of the tensors. Say how much of each LoRA survives in the output's dtype, and warn of "
    "LoRAs that change nothing, or far too much.",
)
@click.option(
    "--link", is_flag=True, help="Plan as bake --link: files of a folder that stay as they are become hard links."
)
def plan(said: Options, output: Path | None, as_json: bool, estimate: bool, link: bool) -> None:
    """Show what baking RECIPE would do, and what it needs.

    Reads only headers, so it is quick. If a LoRA does not fit, it fails as the bake would. For a recipe with a matrix
    it shows a table of the outputs, says which are there already, and what baking the others would take.
    """
    recipes = said.recipes()
    if len(recipes) > 1:
        _check_options(said, recipes, output, estimate=estimate)
        _plan_all(recipes, as_json=as_json, link=link)
        return
    made = make_plan(recipes[0], output)
    made = linked(made) if link else made
    check_saved(said.save, made)
    shares: Mapping[int, float] = {}
    warnings = tuple(cautions_of_recipe(made))
    if estimate:
        from lorabake.estimating import estimate as estimated

        known = estimated(made)
        shares, warnings = known.survival, known.cautions
    folder = folder_above(made.path)
    free, needed = shutil.disk_usage(folder).free, room_of(made)
    save_recipe(said.save, made)
    if as_json:
        from lorabake.documents import document
        from lorabake.documents.plan import Linkable, PlanDocument
        from lorabake.planning.record import record_of, survival_of, warnings_of

        record = PlanDocument.of(
            record_of(made),
            path=str(made.path.absolute()),
            free_disk_bytes=free,
            needed_disk_bytes=needed,
            linkable=Linkable(tuple(file.name for file in linkable(made)), saving_of(made)),
            survival=survival_of(made, shares) if estimate else None,
            warnings=warnings_of(warnings),
        )
        echo_json(document("plan", record))
        return
    key_map = made.sources.key_map
    layouts = ", ".join(f"{name} ({place[0].name})" for name, place in key_map.placed.items())
    echo(f"base      {made.sources.recipe.base.path}: {key_map.architecture.title}; {layouts}")
    for number, ledger in enumerate(made.ledgers):
        for line in ledger_lines(made, number):
            echo(line)
        if number in shares:
            echo(f"{'':<{LABEL}}{survives(ledger.lora, shares[number])}")
    if made.sources.recipe.vae is not None:
        echo(f"vae       {made.sources.recipe.vae.path} takes the place of the base's")
    for part in made.sources.parts:
        echo(f"part      {part.entry.path}: {part.name}")
    baked = sum(len(step.targets) for step in made.steps)
    total = sum(len(file.targets) for file in made.files)
    echo(f"baked     {baked} tensors, {size_of(made.baked_bytes)}")
    links = links_in(made)
    in_links = sum(len(file.targets) for file in links)
    echo(f"copied    {total - baked - in_links} tensors, {size_of(made.copied_bytes)}")
    if links:
        echo(f"linked    {in_links} tensors, {size_of(sum(file.data_size for file in links))}")
    files = f" in {len(made.files)} files" if len(made.files) > 1 else ""
    written = f", {size_of(needed)} of it to write" if links else ""
    echo(f"output    {shown(made.path)}: {size_of(made.size)}{files}{written}; {size_of(free)} free")
    echo(f"memory    about {made.peak_memory() / 2**20:.0f} MiB with two workers")
    for line in link_lines([made]):
        echo(line)
    for note in (*made.notes, *new_folder(made, output)):
        echo(f"note      {note}")
    for warning in warnings:
        messages.warning(str(warning), LABELLED)
    if why := unlinkable([made]):
        messages.warning(why, LABELLED)
    if free < needed:
        messages.warning("the disk has not enough room for it", LABELLED)


def _check_options(said: Options, recipes: Sequence[Recipe], output: Path | None, *, estimate: bool) -> None:
    """Raise RecipeError for options that several outputs cannot have."""
    given = {
        "-o names one output": output is not None,
        "--estimate reads tensors for one output": estimate,
        "--save-recipe keeps the recipe of one output": said.save is not None,
    }
    if why := next((why for why, is_given in given.items() if is_given), None):
        names = [recipe.name for recipe in recipes]
        raise RecipeError(
            f"{why}, and {said.file} stands for {len(names)}: {and_more(names[:SHOWN], len(names))}",
            f"Choose one: {ONLY.of(names[0])}.",
        )


def _plan_all(recipes: Sequence[Recipe], *, as_json: bool, link: bool) -> None:
    """Show what baking several outputs would take."""
    from lorabake.batch.prospect import Prospect
    from lorabake.cli.passes import pass_lines, told_of_all

    with shared():
        plans = [_named_plan(recipe) for recipe in recipes]
    plans = [linked(plan) for plan in plans] if link else plans
    prospect = Prospect.of(plans, default_workers())
    if as_json:
        echo_json(told_of_all(prospect))
        return
    for line in pass_lines(prospect):
        echo(line)
    for note, count in unlinked_of(plans).items() if link else ():
        echo(f"note      {note} ({counted_as(count, 'output')})")


def _named_plan(recipe: Recipe) -> Plan:
    """Plan one of several outputs; an error begins with its name."""
    try:
        return make_plan(recipe)
    except LorabakeError as error:
        raise error.about(recipe.name) from None
