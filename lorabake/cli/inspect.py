"""`lorabake inspect`: Say what a checkpoint or LoRA file is."""

from __future__ import annotations

import click

from lorabake.cli import CONTEXT, example
from lorabake.cli.facts import fact_lines
from lorabake.cli.terminal import echo, echo_json
from lorabake.documents import document
from lorabake.inspection import located, record_of


@click.command(context_settings=CONTEXT, epilog=example("inspect style.safetensors"))
@click.argument("path", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def inspect(path: str, as_json: bool) -> None:
    """Say what PATH is: a checkpoint, a LoRA, or a folder of either.

    Tells the family, layout, kinds, ranks, alphas, components, trigger words and training facts.
    """
    found = record_of(located(path))
    if as_json:
        echo_json(document("inspect", found))
    else:
        for line in fact_lines(found):
            echo(line)
