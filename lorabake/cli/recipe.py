"""`lorabake recipe`: Write the recipe that a baked file holds, to bake it again."""

from __future__ import annotations

from pathlib import Path

import click

from lorabake.cli import CONTEXT, example
from lorabake.cli.places import check_writable
from lorabake.cli.terminal import echo, echo_lines
from lorabake.errors import SurroundingsError, TargetError
from lorabake.sources.received import Found, received
from lorabake.sources.restored import restored
from lorabake.tensors.small import holds
from lorabake.writing.whole import write_whole


@click.command(
    context_settings=CONTEXT,
    epilog=example("recipe baked.safetensors", "recipe baked.safetensors --inputs models -o recipe.yaml"),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Look for the inputs in this folder and below, by name and digest. Repeatable.  [default: beside FILE, and "
    "the current folder]",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write the recipe into this file. It must be new."
)
def recipe(file: Path, inputs: tuple[Path, ...], output: Path | None) -> None:
    """Write the recipe that FILE holds in its header, to bake it again.

    FILE is a checkpoint that lorabake baked. Its inputs are looked for, and the recipe has the paths at which they
    lie. An input that is not found keeps the path of the header, and its digest is told.
    """
    found = received(file, inputs)
    if output is not None:
        check_writable(output, "recipe")
    text = restored(found, Path.cwd() if output is None else output.absolute().parent)
    if output is None:
        echo_lines(text)
    elif not output.exists():
        try:
            write_whole(output, text.encode())
        except OSError as error:
            raise SurroundingsError(f"{output}: the recipe cannot be written: {error.strerror}") from None
    elif not holds(output, text.encode()):
        raise TargetError(f"{output}: exists and holds something else", "Choose another file for the recipe.")
    for each in found.found:
        if words := _caution(each):
            echo(f"warning: {words}", err=True)


def _caution(found: Found) -> str:
    """Say what of an input is uncertain."""
    name, identity = found.input.path, found.input.identity
    if found.place is None:
        return f"{name}: was not found{f': {identity}' if identity else ''}"
    if found.by == "name" and found.input.files:
        return f"{name}: {found.place} has its name, and is another file: its size or digest is not the stated one"
    return ""
