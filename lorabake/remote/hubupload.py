"""Put files into a model's repository on Hugging Face, in one commit, by huggingface_hub's own upload.

A file that the repository has already, by its SHA-256, is neither read again nor sent.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabake import __version__
from lorabake.errors import ArgumentError, FileError, LorabakeError, SurroundingsError
from lorabake.remote.address import quiet_network
from lorabake.remote.download import Digest, patiently
from lorabake.remote.hubfiles import EXTRA, Entry, endpoint, entries_of, passing
from lorabake.visible import keep_secret

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."

AGAIN = "Try again later: what was sent is not sent again."


@dataclass(frozen=True, slots=True)
class RepoState:
    """Say what the hub has of a repository now; `files` are those of its branch main."""

    name: str
    is_there: bool
    is_private: bool
    files: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Tell what an upload did: the address of its commit, None where nothing had changed."""

    repo: str
    commit_url: str | None
    sent: tuple[str, ...]
    unchanged: tuple[str, ...]


def check_name(repo: str) -> None:
    """Raise ArgumentError for what is no name of a repository."""
    if not NAME.fullmatch(repo) or "--" in repo or ".." in repo:
        raise ArgumentError(f"{repo}: is no name on Hugging Face: write OWNER/NAME")


def state_of(repo: str) -> RepoState:
    """Ask the hub for a repository; raise SurroundingsError without huggingface_hub, FileError without a login."""
    check_name(repo)
    with _told(repo), quiet_network():
        from huggingface_hub.errors import RepositoryNotFoundError

        hub = _hub(repo)
        try:
            info = patiently(repo, lambda: hub.model_info(repo, files_metadata=True, timeout=30), passing)
        except RepositoryNotFoundError:
            return RepoState(repo, False, False, {})
        return RepoState(repo, True, bool(info.private), entries_of(info))


def upload(
    state: RepoState,
    files: Mapping[str, Path],
    digests: Mapping[str, Digest],
    message: str,
    *,
    private: bool,
    bars: bool = False,
) -> Uploaded:
    """Bring files, by their names in the repository, into it; `digests` are their own.

    With `bars`, huggingface_hub shows its own progress bars on stderr.
    """
    unchanged = tuple(name for name in files if name in state.files and state.files[name].digest == digests[name])
    sent = tuple(name for name in files if name not in unchanged)
    with _told(state.name), quiet_network(), _bars(bars):
        from huggingface_hub import CommitOperationAdd

        hub = _hub(state.name)
        if not state.is_there:
            hub.create_repo(state.name, private=private, exist_ok=True)
        if not sent:
            return Uploaded(state.name, None, sent, unchanged)
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=files[name]) for name in sent]
        told = hub.create_commit(state.name, operations, commit_message=message)
        return Uploaded(state.name, str(told.commit_url), sent, unchanged)


def _hub(repo: str) -> Any:
    """Return the hub's interface; raise FileError where nobody is logged in."""
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise FileError(f"{repo}: nobody is logged in to Hugging Face", LOGIN)
    keep_secret(token)
    return HfApi(endpoint(), library_name="lorabake", library_version=__version__)


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    utils: Any = importlib.import_module("huggingface_hub.utils")

    before = utils.are_progress_bars_disabled()
    (utils.enable_progress_bars if shown else utils.disable_progress_bars)()
    try:
        yield
    finally:
        (utils.disable_progress_bars if before else utils.enable_progress_bars)()


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Turn errors of huggingface_hub into lorabake's; its own words hold addresses."""
    try:
        yield
    except LorabakeError:
        raise
    except ImportError:
        raise SurroundingsError(*EXTRA) from None
    except Exception as error:
        raise _worded(repo, error) from None


def _worded(repo: str, error: Exception) -> LorabakeError:
    from huggingface_hub import errors

    causes = (error, error.__cause__)  # a failed upload of one file has a cause of its own
    answers = (getattr(getattr(cause, "response", None), "status_code", None) for cause in causes)
    status = next((answer for answer in answers if answer is not None), None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return SurroundingsError(f"{repo}: HF_HUB_OFFLINE forbids to ask the hub", "Unset it to publish.")
    if status in (401, 403, 404):
        return FileError(f"{repo}: the hub does not let you write there: it answers {status}", LOGIN)
    if status == 409:
        return FileError(f"{repo}: somebody else changed it at the same time", "Publish again.")
    if status == 400 or isinstance(error, ValueError):
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        return FileError(f"{repo}: the hub does not take these files: {reason[0]}")
    if status is not None:
        return SurroundingsError(f"{repo}: the hub answers {status}", AGAIN)
    return SurroundingsError(f"{repo}: the upload stopped: {type(error).__name__}", AGAIN)
