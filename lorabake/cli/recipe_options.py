"""The options that make a recipe, the same for all commands that take one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from lorabake.cli.messages import messages
from lorabake.cli.places import check_writable
from lorabake.errors import RecipeError
from lorabake.recipe.options import EXAMPLE, Options

Command = Callable[..., Any]

FILE = click.Path(path_type=Path)


DOWNLOAD = click.option(
    "--download", is_flag=True, help="First download inputs that have addresses and are not on this machine."
)

set_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of the recipe, as in loras.0.strength=0.6 or output.dtype=bfloat16. Repeatable.",
)

only_option = click.option(
    "--only",
    "globs",
    multiple=True,
    metavar="NAME",
    help="Of a recipe with a matrix, the outputs whose names fit this pattern, as in 'ink-*'. Repeatable.",
)


def recipe_options(
    metavar: str = "RECIPE", *, downloads: bool = True, several: bool = False, one: bool = False
) -> Callable[[Command], Command]:
    """Let a command take a recipe as a file or as options; it is called with `said`, which are the options.

    With `downloads`, it has --download, too: the recipe's inputs are fetched before the command is called. With
    `several`, it takes several files: `said` has the first one, and the command is called with all `files`. With
    `one`, it takes one output, so nothing is fetched for the several of a matrix.
    """
    argument = (
        click.argument("recipe", nargs=-1, type=FILE, metavar=f"[{metavar}]...")
        if several
        else click.argument("recipe", required=False, type=FILE, metavar=f"[{metavar}]")
    )
    options = (
        argument,
        click.option(
            "--base",
            "bases",
            multiple=True,
            type=click.Path(),
            metavar="PATH",
            help="Without RECIPE: the checkpoint that LoRAs are baked into.",
        ),
        click.option(
            "--lora",
            "loras",
            multiple=True,
            type=click.Path(),  # completes names of files
            metavar="PATH[=STRENGTH]",
            help="Without RECIPE: a LoRA and its strength, as in a.safetensors=0.8 or "
            "a.safetensors=unet:0.5,text_encoder:0.2. Without a strength it is 1. Repeatable.",
        ),
        set_option,
        *([DOWNLOAD] if downloads else []),
        only_option,
    )

    def decorated(command: Command) -> Command:
        @wraps(command)
        def called(
            recipe: Path | tuple[Path, ...] | None,
            bases: tuple[str, ...],
            loras: tuple[str, ...],
            changes: tuple[str, ...],
            globs: tuple[str, ...],
            save_recipe: Path | None = None,
            **others: Any,
        ) -> Any:
            if isinstance(recipe, tuple):
                others["files"] = recipe
                recipe = recipe[0] if recipe else None
            messages.recipe = recipe
            written = others.get("output", others.get("baked"))
            said = Options(recipe, bases, loras, changes, written, save_recipe, globs)
            if said.is_empty:
                name = click.get_current_context().command_path
                raise RecipeError(
                    f"{name} needs a {metavar}, or a base and LoRAs", f"Write them as in: {name} {EXAMPLE}"
                )
            if save_recipe is not None:
                check_writable(save_recipe, "recipe")
            if downloads and others.pop("download"):
                from lorabake.cli.fetching import at_locked_commits, fetch_shown, recipes_to_fetch

                given = (said.recipe(),) if one else recipes_to_fetch(said)
                wanted = [at_locked_commits(each, others) for each in given]
                fetch_shown(wanted, talks=not (others.get("quiet") or others.get("as_json")))
            return command(said=said, **others)

        for option in reversed(options):
            called = option(called)
        return called

    return decorated


save_option = click.option(
    "--save-recipe",
    type=FILE,
    metavar="FILE",
    help="Write the recipe that the options stand for into this file. It must be new.",
)
