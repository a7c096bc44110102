"""`lorabake cache-key`: Print a key that stands for a recipe's output, for CI caches and object stores.

Print nothing else.
"""

from __future__ import annotations

from pathlib import Path

import click

from lorabake.artifacts.key import cache_key as key_of
from lorabake.artifacts.key import cache_key_of_all
from lorabake.cli import CONTEXT, example
from lorabake.cli.progress import Bar
from lorabake.cli.recipe_options import only_option
from lorabake.cli.terminal import echo
from lorabake.recipe.options import Options


@click.command("cache-key", context_settings=CONTEXT, epilog=example("cache-key recipe.yaml"))
@click.argument("recipe", type=click.Path(path_type=Path))
@only_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="For this output instead of the recipe's.")
def cache_key(recipe: Path, globs: tuple[str, ...], output: Path | None) -> None:
    """Print a key that stands for the output of RECIPE.

    The key changes with what the recipe says, the bytes of its inputs, the output's name, and a lorabake that gives
    other bytes. It is the same on every machine, in every folder and for every device. If the recipe has a lock, the
    inputs need not be there. For a recipe with a matrix it is one key for all chosen outputs.
    """
    said = Options(recipe, only=globs)
    bar = Bar()
    try:
        if output is None:
            key = cache_key_of_all(said.recipes(), begin=bar.begin, progress=bar.advance)
        else:
            key = key_of(said.recipe(), output, begin=bar.begin, progress=bar.advance)
    finally:
        bar.close()
    echo(key)
