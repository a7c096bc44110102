"""`lorabake metadata`: Show what a file's header says, or set a field of it in place."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import click

from lorabake.cli import CONTEXT, example
from lorabake.cli.show import LABEL
from lorabake.cli.terminal import echo, echo_json
from lorabake.documents import document
from lorabake.documents.metadata import Field, MetadataDocument
from lorabake.errors import FileError
from lorabake.paths import check_there
from lorabake.storage.fields import GROUPS, changed, group_of, whole_name, why_not
from lorabake.tensors.safetensors import read_header
from lorabake.writing.header import edit, room_of, undo

SHOWN = 160
"""Letters of a field that are shown; --json has them all."""


@click.command(
    context_settings=CONTEXT,
    epilog=example("metadata baked.safetensors", "metadata baked.safetensors --set title=Portrait --remove author"),
)
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="NAME=TEXT", help="Set a field in place. Repeatable.")
@click.option("--remove", "removed", multiple=True, metavar="NAME", help="Remove a field in place. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the fields as JSON.")
def metadata(path: Path, settings: tuple[str, ...], removed: tuple[str, ...], as_json: bool) -> None:
    """Show what the header of FILE says beside its tensors, in groups.

    With --set and --remove, change it in place, if the header has the room. ModelSpec's fields need no modelspec. in
    front.
    """
    check_there(path)
    if undo(path):
        echo("note: an earlier edit broke off; the header is what it was before", err=True)
    if settings or removed:
        changes = _changes(settings, removed)
        before = read_header(path).metadata
        missing = [name for name, text in changes.items() if text is None and name not in before]
        if missing:
            raise FileError(f"{path}: has no field {missing[0]} to remove", "`lorabake metadata` lists its fields.")
        edited = edit(path, changed(before, changes))
        for line in _told(changes, is_changed=edited.is_changed) if not as_json else ():
            echo(line)
        if not as_json:
            return
    record = _record(path)
    if as_json:
        echo_json(document("metadata", record))
    else:
        for line in _lines(record):
            echo(line)


def _changes(settings: tuple[str, ...], removed: tuple[str, ...]) -> dict[str, str | None]:
    """Read the options; raise FileError for a field that nobody may set, or that is there twice."""
    changes: dict[str, str | None] = {}
    pairs: list[tuple[str, str | None]] = []
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise FileError(f"--set {setting}: write NAME=TEXT, as in --set title='My Portrait'")
        pairs.append((name.strip(), text))
    pairs += [(name, None) for name in removed]
    for name, value in pairs:
        whole = whole_name(name)
        if reason := why_not(whole):
            raise FileError(f"{whole} cannot be set: {reason}")
        if whole in changes:
            raise FileError(f"{whole} is set or removed twice", "Give it once.")
        changes[whole] = value
    return changes


def _told(changes: dict[str, str | None], *, is_changed: bool) -> Iterator[str]:
    for name, text in changes.items():
        yield f"{'removed' if text is None else 'set':<{LABEL}}{name}" + ("" if text is None else f": {_short(text)}")
    if is_changed:
        yield f"{'changed':<{LABEL}}SHA-256, AutoV2 and CRC-32, which are of the whole file"
        yield f"{'same':<{LABEL}}AutoV3 and the SHA-256 of the data"
    else:
        yield f"{'same':<{LABEL}}the header said so before"


def _record(path: Path) -> MetadataDocument:
    header = read_header(path)
    fields = [Field(group_of(name), name, text) for name, text in header.metadata.items()]  # type: ignore[arg-type]
    fields.sort(key=lambda field: (GROUPS.index(field.group), field.field))
    return MetadataDocument(str(path), header.data_start, room_of(path), tuple(fields))


def _lines(record: MetadataDocument) -> Iterator[str]:
    yield f"{'file':<{LABEL}}{record.path}: the header has {record.room:,} bytes to spare"
    width = max((len(field.field) for field in record.fields), default=0)
    for group, fields in groupby(record.fields, key=lambda field: field.group):
        label: str = group
        for field in fields:
            yield f"{label:<{LABEL}}{field.field:<{min(width, 40)}}  {_short(field.text)}"
            label = ""


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} letters)"
