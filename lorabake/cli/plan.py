"""`lorabake plan`: Show what a bake would do, and what it needs.

Read headers only, without torch; tensors only with --estimate.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import click

from lorabake.baking import plan as make_plan
from lorabake.cli import CONTEXT, example
from lorabake.cli.messages import messages
from lorabake.cli.recipe_options import recipe_options, save_option
from lorabake.cli.saving import check_saved, save_recipe
from lorabake.cli.show import LABEL, ledger_lines, new_folder, shown, survives
from lorabake.cli.terminal import echo, echo_json
from lorabake.machine import folder_above
from lorabake.planning.cautions import cautions_of_recipe
from lorabake.recipe.options import Options
from lorabake.visible import size_of

LABELLED = "warning   "


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
def plan(said: Options, output: Path | None, as_json: bool, estimate: bool) -> None:
    """Show what baking RECIPE would do, and what it needs.

    Reads only headers, so it is quick. If a LoRA does not fit, it fails as the bake would. For a recipe with a matrix
    it shows a table of the outputs, and what baking them all would take.
    """
    recipes = said.recipes()
    if len(recipes) > 1 and not (as_json or estimate or output or said.save):
        from lorabake.cli.passes import pass_lines

        for line in pass_lines([make_plan(recipe) for recipe in recipes]):
            echo(line)
        return
    made = make_plan(said.recipe(), output)
    check_saved(said.save, made)
    shares: Mapping[int, float] = {}
    warnings = tuple(cautions_of_recipe(made))
    if estimate:
        from lorabake.estimating import estimate as estimated

        known = estimated(made)
        shares, warnings = known.survival, known.cautions
    folder = folder_above(made.path)
    free = shutil.disk_usage(folder).free
    save_recipe(said.save, made)
    if as_json:
        from lorabake.documents import document
        from lorabake.documents.plan import PlanDocument
        from lorabake.planning.record import record_of, survival_of, warnings_of

        record = PlanDocument.of(
            record_of(made),
            path=str(made.path.absolute()),
            free_disk_bytes=free,
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
    echo(f"copied    {total - baked} tensors, {size_of(made.copied_bytes)}")
    files = f" in {len(made.files)} files" if len(made.files) > 1 else ""
    echo(f"output    {shown(made.path)}: {size_of(made.size)}{files}; {size_of(free)} free")
    echo(f"memory    about {made.peak_memory() / 2**20:.0f} MiB with two workers")
    for note in (*made.notes, *new_folder(made, output)):
        echo(f"note      {note}")
    for warning in warnings:
        messages.warning(str(warning), LABELLED)
    if free < made.size:
        messages.warning("the disk has not enough room for it", LABELLED)
