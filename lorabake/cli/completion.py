"""`lorabake completion`: Print the shell completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lorabake.cli import CONTEXT, example
from lorabake.cli.terminal import echo_lines


@click.command(context_settings=CONTEXT, epilog=example("completion bash > ~/.lorabake-completion.bash"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    For bash, add to ~/.bashrc: eval "$(lorabake completion bash)".
    """
    from lorabake.cli import lorabake

    completer = get_completion_class(shell)
    if completer is None:
        raise click.ClickException(f"click has no completion for {shell}")
    echo_lines(completer(lorabake, {}, "lorabake", "_LORABAKE_COMPLETE").source())
