"""List what of an output is published: what lorabake made of it, and no other file that happens to lie there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lorabake.artifacts.digests import file_digests, file_sha256
from lorabake.artifacts.statement import is_of_bake, read_statement, statement_path
from lorabake.errors import FileError, LorabakeError
from lorabake.paths import check_there
from lorabake.storage.fields import INPUTS, RECIPE
from lorabake.tensors.checkpoint import Checkpoint, open_checkpoint, read_object
from lorabake.tensors.header import Header
from lorabake.tensors.links import files_below
from lorabake.tensors.reader import is_there
from lorabake.tensors.safetensors import read_header
from lorabake.tensors.small import MAX_INDEX, content_of
from lorabake.visible import short_repr

TOKEN = "lorabake.token"
"""Metadata keys of what a bake writes: a checkpoint, and a learned embedding beside it."""

CARD = "README.md"
REPORT, GRID = "report.json", "grid.png"
FAILED = "mismatch"
"""The verdict of a report on a file that is not what its recipe says."""

WITH_MODELS = (
    "model_index.json", "config.json", "*_config.json", "*.index.json", "*.index.*.json", "*.jinja", "*.tiktoken",
    "added_tokens.json", "chat_template.json", "merges.txt", "special_tokens_map.json", "spiece.model",
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "LICENSE*", "LICENCE*", "NOTICE*",
)  # fmt: skip
"""Names of what a model's folder has beside its weights. Another file there may be anybody's."""

_MARK = re.compile(rb"<!-- Written by lorabake\.[^>]*?(?: ([\w.-]+\.png) sha256:[0-9a-f]{64})? -->\s*\Z")
"""The last line of a card, with the name of the picture that it shows."""

MOST_BESIDE = 500
"""Most folders beside an output that are looked at for a report on it."""


@dataclass(frozen=True, slots=True)
class Published:
    """Name a file, where it goes in the repository, and how large it is."""

    path: Path
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Publication:
    """Hold what is published of an output; `left_out` are files of its folder that lorabake did not make."""

    __repr__ = short_repr

    output: Path
    files: tuple[Published, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Sum the bytes of all files."""
        return sum(file.size for file in self.files)


def publication_of(output: Path, report: Path | None = None) -> Publication:
    """List what of an output would be published; `report` is the folder of a verification's report.

    Without `report`, reports beside the output are looked for. Raise FileError for what lorabake did not bake, for a
    report that says that the output is not what its recipe says, and for a `report` about another file.
    """
    check_there(output)
    checkpoint = _baked(output)
    names, left_out = _inside(checkpoint) if checkpoint.is_folder else ({output: output.name}, [])
    card = output / CARD if checkpoint.is_folder else output.with_suffix(".md")
    notes = []
    if (shown := _card(card)) is None:
        notes.append(f"no model card: `lorabake card {output}` writes one")
    else:
        names |= {card: CARD, **{path: path.name for path in shown}}
    names |= {path: path.name for path in _beside(output, checkpoint)}
    pictures, told = _reported(output, checkpoint, report)
    names |= pictures
    files = tuple(Published(path, name, path.stat().st_size) for path, name in names.items())
    ordered = sorted(files, key=lambda file: (file.name != CARD, file.name))
    return Publication(output, tuple(ordered), tuple(left_out), (*notes, *told))


def _baked(output: Path) -> Checkpoint:
    """Open an output; raise FileError unless each of its files with weights says that lorabake wrote it."""
    checkpoint = open_checkpoint(output)
    strange = [header.path for header in checkpoint.headers if not _is_of_bake(header, checkpoint)]
    if strange:
        raise FileError(
            f"{strange[0]}: has no recipe in its header, so lorabake did not bake it",
            "Only what lorabake baked is published; for other files, there is `hf upload`.",
        )
    return checkpoint


def _is_of_bake(header: Header, checkpoint: Checkpoint) -> bool:
    """Tell whether lorabake wrote a file, or linked to it: then the first file names it among the inputs."""
    if RECIPE in header.metadata:
        return True
    inputs = checkpoint.metadata.get(INPUTS, "") if RECIPE in checkpoint.metadata else ""
    return bool(inputs) and (header.sha256 in inputs or file_sha256(header.path) in inputs)


def _inside(checkpoint: Checkpoint) -> tuple[dict[Path, str], list[str]]:
    """Sort the files of a folder into what lorabake wrote and other people's."""
    weights = {header.path for header in checkpoint.headers}
    names: dict[Path, str] = {}
    left_out = []
    for path in sorted(files_below(checkpoint.path)):
        name = path.relative_to(checkpoint.path).as_posix()
        if path in weights or any(fnmatchcase(path.name, known) for known in WITH_MODELS):
            names[path] = name
        elif name != CARD and _card(checkpoint.path / CARD) != [path]:
            left_out.append(name)
    return names, left_out


def _card(place: Path) -> list[Path] | None:
    """Return the pictures that a card of lorabake's shows; None if there is no such card."""
    if not place.is_file():
        return None
    mark = _MARK.search(content_of(place))
    if mark is None:
        return None
    picture = place.with_name(mark[1].decode()) if mark[1] else None
    return [picture] if picture is not None and picture.is_file() else []


def _beside(output: Path, checkpoint: Checkpoint) -> Iterator[Path]:
    """Yield what a bake writes beside its output: the statement of how it was made, and learned embeddings."""
    statement = statement_path(output, is_folder=checkpoint.is_folder)
    if statement.is_file() and is_of_bake(read_statement(statement)):
        yield statement
    stem = output.name if checkpoint.is_folder else output.stem
    for path in sorted(output.absolute().parent.glob("*.safetensors")):
        if path.name.startswith(f"{stem}.") and path.name != output.name and TOKEN in read_header(path).metadata:
            yield output.with_name(path.name)


# -- reports ---------------------------------------------------------------------------------------------------


def _reported(output: Path, checkpoint: Checkpoint, given: Path | None) -> tuple[dict[Path, str], list[str]]:
    """Return the pictures of the output's reports, and what is to be said of them."""
    pictures: dict[Path, str] = {}
    notes = []
    for folder in [given] if given is not None else _folders(output):
        report = read_object(folder / REPORT, MAX_INDEX) if is_there(folder / REPORT) else {}
        if report.get("lorabake") != "verify" and given is not None:
            raise FileError(f"{folder}: holds no report of `lorabake verify`")
        named = _dict(_dict(report.get("environment")).get("output"))
        if named.get("path") != output.name and given is None:
            continue
        if not _is_about(named, checkpoint):
            if given is not None:
                raise FileError(f"{folder}: the report is about another file than {output}: its digests are others")
            notes.append(f"{folder}: is about another version of this output, and counts for nothing")
            continue
        if report.get("verdict") == FAILED:
            raise FileError(
                f"{output}: is not what its recipe says: {folder / REPORT}",
                "Look at the report, and bake again. What failed its verification is not published.",
            )
        if (folder / GRID).is_file() and report.get("grid") is not None:
            pictures[folder / GRID] = f"report/{GRID}"
    return pictures, notes


def _folders(output: Path) -> list[Path]:
    """List the folders beside an output that hold a report."""
    around = output.absolute().parent
    try:
        inside = sorted(path for path in around.iterdir() if path.is_dir())[:MOST_BESIDE]
    except OSError:
        return []
    return [folder for folder in (around, *inside) if (folder / REPORT).is_file() and _is_report(folder / REPORT)]


def _is_report(place: Path) -> bool:
    try:
        return read_object(place, MAX_INDEX).get("lorabake") == "verify"
    except LorabakeError:  # another program's
        return False


def _is_about(named: Mapping[str, Any], checkpoint: Checkpoint) -> bool:
    """Tell whether a report's digests are those of an output."""
    listed = named.get("digests")
    said = {str(_dict(each).get("sha256")) for each in listed} if isinstance(listed, list) else set()
    if named.get("of") == "files":
        found: Iterable[str] = (
            file.sha256 for file in file_digests({str(header.path): header.path for header in checkpoint.headers})
        )
    else:
        found = (header.sha256 for header in checkpoint.headers)
    return said == {*found}


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
