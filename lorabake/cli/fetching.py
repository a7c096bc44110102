"""Fetch a recipe's inputs with a progress bar, and say where each comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorabake.artifacts.locking import frozen
from lorabake.artifacts.watch import has_lock
from lorabake.cli.progress import Bar
from lorabake.cli.terminal import echo
from lorabake.machine import in_ci
from lorabake.recipe import Recipe
from lorabake.recipe.options import Options
from lorabake.sources.fetching import fetch_all
from lorabake.tensors.reader import is_there
from lorabake.visible import size_of


def recipes_to_fetch(said: Options) -> tuple[Recipe, ...]:
    """Return the recipes of the outputs that were given, or the one that a baked file holds."""
    file = said.file
    if file is None or file.suffix.lower() in (".yaml", ".yml") or said.bases or said.loras or not is_there(file):
        return said.recipes()
    from lorabake.sources.received import received

    return (received(file, changes=said.changes).recipe,)


def at_locked_commits(recipe: Recipe, said: Mapping[str, object]) -> Recipe:
    """Return the recipe with the commits of its lock, where the options `said` of a command ask for these.

    So do --frozen and --locked; a command that knows --locked is locked in CI if there is a lock.
    """
    if said.get("frozen") or said.get("locked"):
        return frozen(recipe)
    if "locked" in said and said["locked"] is None and in_ci() and has_lock(recipe):
        return frozen(recipe)
    return recipe


def fetch_shown(recipes: Sequence[Recipe], *, talks: bool) -> None:
    """Fetch what is missing, each input once; with `talks`, show how it goes."""
    bar = Bar(shown=talks)
    try:
        fetched = fetch_all(recipes, bar)
    finally:
        bar.close()
    for entry in fetched if talks else ():
        how = f"{size_of(entry.received)} downloaded" if entry.received else "is on this machine"
        commit = f", commit {entry.commit[:12]}" if entry.commit else ""
        echo(f"fetched   {entry.address}: {how}{commit}", err=True)
    if talks and not fetched:
        echo("nothing to fetch: all inputs are files on this machine", err=True)
