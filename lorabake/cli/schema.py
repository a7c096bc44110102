"""`lorabake schema`: Print the JSON Schema of recipes, or of a document that lorabake writes."""

from __future__ import annotations

import click

from lorabake.cli import CONTEXT, example
from lorabake.cli.terminal import echo_json
from lorabake.documents import VERSIONS


@click.command(context_settings=CONTEXT, epilog=example("schema > recipe.schema.json"))
@click.argument("name", type=click.Choice(["recipe", *VERSIONS]), default="recipe")
def schema(name: str) -> None:
    """Print the JSON Schema of recipes, or of what a command writes as JSON.

    Editors complete and check a recipe by its schema. Save it, and point the first line of a recipe at it:
    `# yaml-language-server: $schema=recipe.schema.json`. The other schemas describe what `--json` prints.
    """
    if name == "recipe":
        from lorabake.recipe import recipe_schema

        echo_json(recipe_schema())
    else:
        from lorabake.documents.schema import schema_of

        echo_json(schema_of(name))
