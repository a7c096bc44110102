"""`lorabake schema`: Print the recipe's JSON Schema, for editors."""

from __future__ import annotations

import click

from lorabake.cli import CONTEXT
from lorabake.cli.terminal import echo_json
from lorabake.recipe import recipe_schema


@click.command(context_settings=CONTEXT)
def schema() -> None:
    """Print the recipe's JSON Schema, for editors.

    Save it, and point the first line of a recipe at it: `# yaml-language-server: $schema=recipe.schema.json`.
    """
    echo_json(recipe_schema())
