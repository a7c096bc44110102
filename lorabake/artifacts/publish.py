"""Publish an output on Hugging Face: list it, ask what is there already, send what is new."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorabake import __version__
from lorabake.arguments import AnyPath, path_of, text, yes_or_no
from lorabake.artifacts.digests import file_sha256
from lorabake.artifacts.publishing import Publication, Published, publication_of
from lorabake.errors import FileError
from lorabake.progress import unseen
from lorabake.remote.download import Digest
from lorabake.remote.hubupload import RepoState, Uploaded, check_name, state_of, upload


@dataclass(frozen=True, slots=True)
class Steps:
    """Say what is called as publishing goes on: with what will be sent, and with what the hub has.

    With `bars`, the upload shows huggingface_hub's progress bars.
    """

    listed: Callable[[Publication], None] = unseen
    asked: Callable[[RepoState], None] = unseen
    bars: bool = False


def publish(
    output: AnyPath,
    repo: str,
    *,
    private: bool = False,
    report: AnyPath | None = None,
    steps: Steps | None = None,
) -> Uploaded:
    """Publish a baked file or folder as a model on Hugging Face, with its card, its statement and its pictures.

    `repo` is OWNER/NAME, and is made if it is new: `private`, or for all. `report` is the folder of a verification's
    report; without it, reports beside the output are looked for.

    Raise FileError for what lorabake did not bake, for an output whose verification failed, and where the hub does
    not take it; SurroundingsError where the network is.
    """
    check_name(text(repo, "repo"))
    yes_or_no(private, "private")
    steps = steps or Steps()
    publication = publication_of(path_of(output, "output"), None if report is None else path_of(report, "report"))
    steps.listed(publication)
    state = state_of(repo)
    if private and state.is_there and not state.is_private:
        raise FileError(
            f"{repo}: is there already, and everybody can see it",
            "Choose another name, or make it private on its page first.",
        )
    steps.asked(state)
    files = {file.name: file.path for file in publication.files}
    digests = {file.name: _digest(file, state) for file in publication.files}
    return upload(state, files, digests, message_of(publication.output), private=private, bars=steps.bars)


def message_of(output: Path) -> str:
    """Write the message of the commit."""
    return f"Publish {output.name}, baked by lorabake {__version__}"


def _digest(file: Published, state: RepoState) -> Digest:
    """Take the digest by which the hub knows a file; what it has not, or in another size, is not read."""
    known = state.files.get(file.name)
    if known is None or known.size != file.size:
        return Digest("", "")
    if known.digest.name == "sha256":
        return Digest("sha256", file_sha256(file.path))
    content = file.path.read_bytes()
    begun: hashlib._Hash = known.digest.begun(len(content))
    begun.update(content)
    return Digest("git", begun.hexdigest())
