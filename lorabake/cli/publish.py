"""`lorabake publish`: Put a baked checkpoint on Hugging Face, with its card."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lorabake.artifacts.publish import Steps
from lorabake.artifacts.publish import publish as run_publish
from lorabake.artifacts.publishing import Publication, publication_of
from lorabake.cli import CONTEXT, example
from lorabake.cli.terminal import echo
from lorabake.remote.hubupload import RepoState, check_name
from lorabake.visible import counted_as, size_of


@click.command(
    context_settings=CONTEXT,
    epilog=example(
        "publish portrait.safetensors --repo me/portrait --private --dry-run",
        "publish portrait.safetensors --repo me/portrait --private",
    ),
)
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--repo", required=True, metavar="OWNER/NAME", help="The model's name on Hugging Face.")
@click.option("--private", is_flag=True, help="Let only its owner see a new model.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of the verification's report.  [default: look beside OUTPUT]",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and the address.")
def publish(output: Path, repo: str, private: bool, dry_run: bool, report: Path | None, quiet: bool) -> None:
    """Put OUTPUT on Hugging Face: a checkpoint that lorabake baked, or a folder.

    With it go its model card, the statement of how it was made, learned embeddings and the report's pictures, as far
    as they lie beside it. No other file is sent. What the model's page has already is not sent again.

    An output whose verification failed is refused.
    """
    check_name(repo)

    def listed(publication: Publication) -> None:
        _show(publication)

    def asked(state: RepoState) -> None:
        echo(f"repo      {repo}: {_seen(state, private=private)}", err=True)

    if dry_run:
        _show(publication_of(output, report))
        visible_to = "private" if private else "for all to see"
        echo(f"repo      {repo}: {visible_to} if it is new; the hub was not asked", err=True)
        echo("nothing was sent")
        return
    steps = Steps() if quiet else Steps(listed, asked, bars=sys.stderr.isatty())
    done = run_publish(output, repo, private=private, report=report, steps=steps)
    if done.commit_url is None:
        echo(f"published {repo}: nothing to send, all {counted_as(len(done.unchanged), 'file')} are there already")
        return
    kept = f", {len(done.unchanged)} unchanged" if done.unchanged else ""
    echo(f"published {done.commit_url}: {counted_as(len(done.sent), 'file')} sent{kept}")


def _show(publication: Publication) -> None:
    """Say what will be sent."""
    for file in publication.files:
        source = "" if file.name.endswith(file.path.name) else f"  ({file.path})"
        echo(f"file      {file.name}: {size_of(file.size)}{source}", err=True)
    for name in publication.left_out:
        echo(f"left out  {name}: lorabake did not write it", err=True)
    for note in publication.notes:
        echo(f"note      {note}", err=True)
    echo(f"total     {counted_as(len(publication.files), 'file')}, {size_of(publication.size)}", err=True)


def _seen(state: RepoState, *, private: bool) -> str:
    """Say who will see a repository."""
    if not state.is_there:
        return "is new; private" if private else "is new; for all to see"
    return "is there; private" if state.is_private else "is there; for all to see"
