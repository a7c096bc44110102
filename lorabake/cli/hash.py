"""`lorabake hash`: Print the digests by which programs and sites know a file, and fingerprints of its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

from lorabake.artifacts.hashes import FileHashes, Hashes, hash_path
from lorabake.cli import CONTEXT, example
from lorabake.cli.progress import Bar
from lorabake.cli.show import LABEL
from lorabake.cli.terminal import echo, echo_json
from lorabake.documents import document
from lorabake.documents.hash import HashDocument, HashedBeside, HashedFile, HashedNetwork, HashedPath
from lorabake.visible import size_of


@click.command(
    context_settings=CONTEXT, epilog=example("hash baked.safetensors", "hash --json model/ model.safetensors")
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the digests as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def hash(paths: tuple[Path, ...], as_json: bool, quiet: bool) -> None:  # noqa: A001
    """Print the digests of files and folders, each read once.

    SHA-256, AutoV1 to AutoV3 and CRC-32, as A1111 and Civitai have them; the SHA-256 of the tensor data; and
    fingerprints of the weights that depend neither on the header nor on how they are spread over files.
    """
    bar = Bar(shown=not quiet)
    found = []
    try:
        for path in paths:
            bar.begin(f"hash {path.name}", _size(path))
            found.append(hash_path(path, progress=bar.advance))
    finally:
        bar.close()
    if as_json:
        echo_json(document("hash", HashDocument(tuple(map(_record, found)))))
        return
    for number, hashes in enumerate(found):
        for line in _lines(hashes):
            echo(line)
        if number + 1 < len(found):
            echo("")


def _size(path: Path) -> int:
    """Estimate the bytes that are read; 0 where that would take a look into folders."""
    return os.path.getsize(path) if path.is_file() else 0


def _lines(hashes: Hashes) -> Iterator[str]:
    kind = "folder" if hashes.is_folder else "file"
    yield f"{kind:<{LABEL}}{hashes.path}: {size_of(hashes.size)}, {hashes.tensors:,} tensors"
    if hashes.is_folder:
        yield f"{'sha256':<{LABEL}}{hashes.sha256}, over {len(hashes.files) + len(hashes.others)} files"
    for file in hashes.files:
        if hashes.is_folder:
            yield f"{'file':<{LABEL}}{file.name}: {size_of(file.size)}"
        yield from (f"{label:<{LABEL}}{text}" for label, text in _digests(file))
    if hashes.content is not None:
        yield f"{'content':<{LABEL}}{hashes.content}"
    label = "networks"
    for network in hashes.networks:
        yield f"{label:<{LABEL}}{network.component} {network.sha256}"
        label = ""


def _digests(file: FileHashes) -> Iterator[tuple[str, str]]:
    yield "sha256", file.sha256
    yield "autov1", file.autov1
    yield "autov2", file.autov2
    if file.autov3 is not None and file.data_sha256 is not None:
        yield "autov3", file.autov3
    yield "crc32", file.crc32
    if file.data_sha256 is not None:
        yield "data", file.data_sha256


def _record(hashes: Hashes) -> HashedPath:
    return HashedPath(
        path=str(hashes.path),
        bytes=hashes.size,
        sha256=hashes.sha256,
        files=tuple(
            HashedFile(
                each.name, each.size, each.sha256, each.autov1, each.autov2, each.autov3, each.crc32, each.data_sha256
            )
            for each in hashes.files
        ),
        others=tuple(HashedBeside(each.name, each.size, each.sha256) for each in hashes.others),
        tensors=hashes.tensors,
        content=hashes.content,
        family=hashes.family or None,
        networks=tuple(
            HashedNetwork(each.component, each.layout, each.weights, each.sha256, each.left_out)
            for each in hashes.networks
        ),
    )
