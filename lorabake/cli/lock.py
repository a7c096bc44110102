"""`lorabake lock`: Pin a recipe's inputs by their digests, or check that they are pinned.

Tell what each input is.
"""

from __future__ import annotations

from pathlib import Path

import click

from lorabake.artifacts.inputs import lock_of
from lorabake.artifacts.locking import check as check_lock
from lorabake.artifacts.locking import lock as make_lock
from lorabake.artifacts.locking import mended
from lorabake.cli import CONTEXT, example
from lorabake.cli.messages import messages
from lorabake.cli.progress import Bar
from lorabake.cli.recipe_options import only_option
from lorabake.cli.show import LABEL, shown
from lorabake.cli.terminal import echo
from lorabake.errors import RecipeError
from lorabake.visible import size_of

STALE = 1
"""The exit code of --check where the lock does not fit."""


@click.command(
    context_settings=CONTEXT,
    epilog=example("lock recipe.yaml", "lock --check recipe.yaml", "lock --update style.safetensors recipe.yaml"),
)
@click.argument("recipe", type=click.Path(path_type=Path))
@only_option
@click.option("--check", is_flag=True, help="Write nothing: say whether the lock fits. Exit code 1 if it does not.")
@click.option(
    "--update",
    multiple=True,
    metavar="NAME",
    help="Renew only this input's entry, named as the recipe writes it. Repeatable.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only errors, and what is stale.")
def lock(recipe: Path, globs: tuple[str, ...], check: bool, update: tuple[str, ...], quiet: bool) -> int:
    """Pin the inputs of RECIPE in a file beside it: recipe.lock.yaml.

    The lock has the size and SHA-256 of every input. `lorabake bake --locked` then bakes from just these. It reads
    every input whole. For a recipe with a matrix it has the inputs of all outputs; with --only, it renews those of
    some outputs.

    \b
    Exit codes: 0 the lock fits, 1 --check found a stale lock, 2 an input is wrong.
    """
    if check and update:
        raise RecipeError("--check writes nothing, and --update renews the lock", "Give one of them.")
    messages.recipe = recipe
    bar = Bar(shown=not quiet)
    try:
        if check:
            stale = check_lock(recipe, only=globs, begin=bar.begin, progress=bar.advance)
        else:
            locked = make_lock(recipe, only=globs, update=update, begin=bar.begin, progress=bar.advance)
    finally:
        bar.close()
    if check:
        for each in stale:
            for line in each.lines:
                echo(line)
            messages.also("error", *each.lines)
        if stale:
            echo(f"{'stale':<{LABEL}}{shown(lock_of(recipe))}: {mended(recipe, stale)}")
        elif not quiet:
            echo(f"{'lock':<{LABEL}}{shown(lock_of(recipe))}: fits")
        return STALE if stale else 0
    for entry in locked.lock.inputs if not quiet else ():
        told = [size_of(entry.size), *([entry.family] if entry.family else []), *entry.kinds]
        echo(f"{'input':<{LABEL}}{entry.path}: {', '.join(told)}, SHA-256 {entry.sha256}")
    if not quiet:
        echo(f"{'lock':<{LABEL}}{shown(locked.path)}: {'written' if locked.is_changed else 'fits as it is'}")
    return 0
