"""`lorabake fetch`: Download the inputs of a recipe that have addresses."""

from __future__ import annotations

import click

from lorabake.cli import CONTEXT, example
from lorabake.cli.fetching import at_locked_commits, fetch_shown, recipes_to_fetch
from lorabake.cli.recipe_options import recipe_options
from lorabake.recipe.options import Options


@click.command(context_settings=CONTEXT, epilog=example("fetch recipe.yaml"))
@recipe_options("RECIPE|FILE", downloads=False)
@click.option("--frozen", is_flag=True, help="Take the commits of hf:// inputs from the lock, which has to be there.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
def fetch(said: Options, frozen: bool, quiet: bool) -> None:
    """Download the inputs of RECIPE that have addresses: hf://…, https://….

    Or those of a FILE that lorabake baked: its header holds the recipe. For a recipe with a matrix, what any of the
    chosen outputs needs.

    What is on this machine already is not downloaded again. A download that was stopped goes on where it was. Each
    file is checked by its digest before it gets its name.
    """
    fetch_shown([at_locked_commits(each, {"frozen": frozen}) for each in recipes_to_fetch(said)], talks=not quiet)
