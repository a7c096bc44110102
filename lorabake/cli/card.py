"""`lorabake card`: Write a model card for a baked output.

All of it comes from the output's own headers and files, so it works without the recipe.
"""

from __future__ import annotations

from pathlib import Path

import click

from lorabake.artifacts.card import card_of, write_card
from lorabake.baking import plan as make_plan
from lorabake.cli import CONTEXT, example
from lorabake.cli.progress import Bar
from lorabake.cli.show import shown
from lorabake.cli.terminal import echo
from lorabake.documents import fields_of
from lorabake.errors import FileError
from lorabake.paths import missing
from lorabake.planning.record import record_of
from lorabake.sources.received import received
from lorabake.tensors.reader import is_there


@click.command(
    context_settings=CONTEXT,
    epilog=example("card baked.safetensors", "card baked --report report --base-model org/model"),
)
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of a report of `lorabake verify`: its verdict and its pictures go into the card.",
)
@click.option(
    "--inputs",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder of its inputs, to say what became of each LoRA. Repeatable.",
)
@click.option(
    "--base-model",
    "base_models",
    multiple=True,
    metavar="ORG/NAME",
    help="A model on the Hugging Face hub that it was made of, where the recipe does not say so. Repeatable.",
)
@click.option("--overwrite", is_flag=True, help="Replace a card that lorabake did not write, or that was edited.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
def card(
    output: Path,
    report: Path | None,
    inputs: tuple[Path, ...],
    base_models: tuple[str, ...],
    overwrite: bool,
    quiet: bool,
) -> None:
    """Write a model card for OUTPUT, a file or a folder that lorabake baked.

    The card is README.md in a folder, and NAME.md beside a file. It says what the output is, how it was made and can
    be made again, how to use it, and the digests of its files. Its front matter is what the Hugging Face hub reads.
    """
    if not is_there(output):
        raise FileError(*missing(output, str(output)))
    loras = record_of(make_plan(received(output, inputs).complete().recipe, output)).loras if inputs else ()
    size = sum(path.stat().st_size for path in (output.rglob("*") if output.is_dir() else [output]) if path.is_file())
    bar = Bar(shown=not quiet)
    bar.begin("digesting", size)
    try:
        composed = card_of(
            output,
            report=report,
            loras=[fields_of(lora) for lora in loras],
            base_models=base_models,
            progress=bar.advance,
        )
    finally:
        bar.close()
    place = write_card(composed, overwrite=overwrite)
    if not quiet:
        echo(f"card: {shown(place)}")
        if composed.picture_path is not None:
            echo(f"picture: {shown(composed.picture_path)}")
