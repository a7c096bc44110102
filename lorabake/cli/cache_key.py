"""`lorabake cache-key`: Print a key that stands for a recipe's output, for CI caches and object stores.

Print nothing else.
"""

from __future__ import annotations

from pathlib import Path

import click

from lorabake.artifacts.key import cache_key as key_of
from lorabake.cli import CONTEXT, example
from lorabake.cli.progress import Bar
from lorabake.cli.terminal import echo
from lorabake.recipe import load_recipe


@click.command("cache-key", context_settings=CONTEXT, epilog=example("cache-key recipe.yaml"))
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="For this output instead of the recipe's.")
def cache_key(recipe: Path, output: Path | None) -> None:
    """Print a key that stands for the output of RECIPE.

    The key changes with what the recipe says, the bytes of its inputs, the output's name, and a lorabake that gives
    other bytes. It is the same on every machine, in every folder and for every device. If the recipe has a lock, the
    inputs need not be there.
    """
    bar = Bar()
    try:
        key = key_of(load_recipe(recipe), output, begin=bar.begin, progress=bar.advance)
    finally:
        bar.close()
    echo(key)
