"""Download files of a model on Hugging Face into the cache that all programs of the hub share.

huggingface_hub says where the hub is, who is logged in, and which files a commit has. A file is right when its
SHA-256 is the one that the hub lists; a small file has git's own SHA-1.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabake import __version__
from lorabake.errors import FileError, SurroundingsError
from lorabake.remote import hubcache
from lorabake.remote.address import Fetched, Progress, Wanted, quiet_network
from lorabake.remote.download import TRANSIENT, Digest, Download, Login, patiently
from lorabake.settings import DOWNLOAD
from lorabake.tensors.checkpoint import WEIGHT_SUFFIXES
from lorabake.tensors.choosing import weights_in, with_shards
from lorabake.tensors.reader import is_there
from lorabake.visible import some

EXTRA = ("huggingface_hub is not installed", "Install what Hugging Face takes: pip install 'lorabake[hub]'")

BESIDE = ("adapter_config.json", "config.json", "hyperparameters.yaml", "model_config.yaml")
"""Files beside a file of weights that say how it is read."""

DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""Digests of the hub's files, which name the blobs in its cache."""

SIDE_SUFFIXES = {
    ".jinja", ".json", ".jsonl", ".md", ".model", ".py", ".spm", ".tiktoken", ".txt", ".vocab", ".yaml", ".yml",
}  # fmt: skip
"""Endings of a model's files that are no weights: configurations, tokenizers, licences."""

MOST_BESIDE = 64 << 20
"""Most bytes of such a file; vocabularies are the largest of them."""


BROKEN = ("Connect", "Timeout", "Protocol", "ReadError", "NetworkError")
"""Parts of names of errors that mean a broken connection; the library below huggingface_hub changes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Describe one file of a commit."""

    size: int
    digest: Digest


def fetch(written: str, repo: str, revision: str, path: str, wanted: Wanted, progress: Progress) -> Fetched:
    """Download what an address names, unless the cache has it."""
    if hubcache.COMMIT.fullmatch(wanted.commit or revision):
        commit = wanted.commit or revision
        if hubcache.is_listed_whole(repo, commit, path, wanted.variant):
            return Fetched(written, hubcache.snapshot_of(repo, commit) / path, commit, 0)
    with quiet_network():
        commit, entries = _listed(written, repo, wanted.commit or revision)
        model = _Model(written, repo, commit, entries, _login(repo), progress)
        received, names = model.bring(path, wanted.variant)
    hubcache.keep_ref(repo, revision, commit)
    hubcache.keep_list(repo, commit, path, wanted.variant, names)
    return Fetched(written, hubcache.snapshot_of(repo, commit) / path, commit, received)


@dataclass(frozen=True, slots=True)
class _Model:
    """Bring files of one commit into the cache."""

    written: str
    repo: str
    commit: str
    entries: Mapping[str, Entry]
    login: Login
    progress: Progress

    def bring(self, path: str, variant: str | None) -> tuple[int, list[str]]:
        """Bring a file with what is read beside it, or a folder; return the bytes that came, and the files' names."""
        if path in self.entries:
            folder = path.rpartition("/")[0]
            beside = [f"{folder}/{name}".lstrip("/") for name in BESIDE]
            names = [path, *(name for name in beside if name in self.entries and name != path)]
            received = sum(map(self._bring, names))
            if path.endswith(".index.json"):
                shards = self._weights(folder, lambda root: with_shards(root / path.rpartition("/")[2]))
                received += sum(map(self._bring, shards))
                names += shards
            return received, names
        inside = [name for name in self.entries if not path or name.startswith(f"{path}/")]
        if not inside:
            raise FileError(
                f"{self.written}: {self.repo} has no {path!r} at {self.commit[:12]}",
                f"It has {some([*self.entries])}.",
            )
        names = [name for name in inside if self._is_beside(name)]
        received = sum(map(self._bring, names))
        weights = self._weights(path, lambda root: weights_in(root, variant))
        received += sum(map(self._bring, weights))
        return received, [*names, *weights]

    def _is_beside(self, name: str) -> bool:
        is_shown = not any(part.startswith(".") for part in name.split("/"))
        suffix = Path(name).suffix.lower()
        is_small = self.entries[name].size <= MOST_BESIDE
        return (
            is_shown and is_small and (suffix in SIDE_SUFFIXES or (not suffix and name.rpartition("/")[2].isupper()))
        )

    def _weights(self, folder: str, choose: Callable[[Path], list[Path]]) -> list[str]:
        """Choose the files of weights as a folder on the disk is read: in one of empty files with these names."""
        snapshot = hubcache.snapshot_of(self.repo, self.commit)
        with tempfile.TemporaryDirectory(prefix="lorabake-") as name:
            root = Path(name, folder.rpartition("/")[2] or self.repo.rpartition("/")[2])
            for file in self.entries:
                if folder and not file.startswith(f"{folder}/"):
                    continue
                place = root / file.removeprefix(f"{folder}/" if folder else "")
                if is_there(snapshot / file) and place.suffix == ".json":
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.symlink(snapshot / file, place)
                elif place.suffix.lower() in WEIGHT_SUFFIXES:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.touch()
            try:
                chosen = [path.relative_to(root).as_posix() for path in choose(root)]
            except FileError as error:
                told = [line.replace(str(root), self.written) for line in error.args]
                raise FileError(*told) from None
        return [f"{folder}/{file}".lstrip("/") for file in chosen]

    def _bring(self, name: str) -> int:
        """Bring one file into the cache, and link it into the commit's folder; return how many bytes came."""
        from huggingface_hub import hf_hub_url

        if name not in self.entries:
            raise FileError(f"{self.written}: {self.repo} has no {name!r} at {self.commit[:12]}")
        place = hubcache.snapshot_of(self.repo, self.commit) / name
        if is_there(place):
            return 0
        entry = self.entries[name]
        blob = hubcache.folder_of(self.repo) / "blobs" / entry.digest.value
        received = 0
        if not is_there(blob):
            url = hf_hub_url(self.repo, name, revision=self.commit, endpoint=endpoint())
            said = f"hf://{self.repo}@{self.commit[:12]}/{name}"
            received = Download(said, url, blob, entry.digest, self.login, self.progress, entry.size).run()
        hubcache.link(blob, place)
        return received


def _listed(written: str, repo: str, revision: str) -> tuple[str, dict[str, Entry]]:
    """Ask the hub for the commit of a revision, and for the files of that commit."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise SurroundingsError(*EXTRA) from None
    try:
        hub = HfApi(endpoint(), library_name="lorabake", library_version=__version__)
        info = patiently(
            written, lambda: hub.model_info(repo, revision=revision, files_metadata=True, timeout=30), passing
        )
    except Exception as error:
        raise _told(written, repo, revision, error) from None
    entries = entries_of(info)
    are_known = all(DIGEST.fullmatch(entry.digest.value) for entry in entries.values())
    if not are_known or not hubcache.COMMIT.fullmatch(info.sha or ""):
        raise FileError(f"{written}: the hub does not say what the files of {repo} are", "Is HF_ENDPOINT right?")
    for name in entries:
        if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
            raise FileError(f"{written}: {repo} has a file with an impossible name: {name!r:.80}")
    return info.sha, entries


def entries_of(info: Any) -> dict[str, Entry]:
    """List the files of what the hub says of a model."""
    entries = {}
    for file in info.siblings or ():
        sha256, sha1 = file.lfs and file.lfs.sha256, file.blob_id
        digest = Digest("sha256", sha256) if sha256 else Digest("git", sha1 or "")
        entries[file.rfilename] = Entry(file.size or 0, digest)
    return entries


def _login(repo: str) -> Login:
    """Return the token of the hub's own login, or of HF_TOKEN."""
    from huggingface_hub import constants, get_token

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return Login(token, _missing(repo), _gated(repo))


def _missing(repo: str) -> str:
    return f"If {repo} is private or asks for consent: log in with `hf auth login`, or set HF_TOKEN."


def endpoint() -> str:
    """Return the address of the hub: HF_ENDPOINT, or Hugging Face's own."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _gated(repo: str) -> str:
    return f"Open {endpoint()}/{repo} in a browser, accept its terms, and log in with `hf auth login`."


def passing(error: Exception) -> tuple[float | None, str] | None:
    """Tell whether a failure of the hub may pass: (seconds that it asks to wait, what it answers)."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in TRANSIENT:
        seconds = None
        with suppress(ValueError):
            seconds = float(response.headers.get("Retry-After") or "")  # type: ignore[union-attr]
        return seconds, f"the hub answers {status}"
    if status is None and any(
        word in type(error).__name__ for word in ("Connect", "Timeout", "Protocol", "ReadError")
    ):
        return None, f"the hub cannot be reached: {type(error).__name__}"
    return None


def _told(written: str, repo: str, revision: str, error: Exception) -> Exception:
    """Turn an error of huggingface_hub into lorabake's; its own words hold addresses."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    match error:
        case SurroundingsError():
            return error
        case errors.GatedRepoError():
            return FileError(f"{written}: {repo} gives its files only to those who accept its terms", _gated(repo))
        case errors.RevisionNotFoundError():
            return FileError(f"{written}: {repo} has no branch, tag or commit {revision!r}")
        case errors.RepositoryNotFoundError():
            return FileError(f"{written}: the hub has no model {repo}, or does not show it to you", _missing(repo))
        case errors.OfflineModeIsEnabled():
            return SurroundingsError(f"{written}: HF_HUB_OFFLINE forbids to ask the hub", f"Unset it, or {DOWNLOAD}.")
        case errors.HfHubHTTPError():
            advice = _missing(repo) if status in (401, 403) else "Try again later."
            return FileError(f"{written}: the hub answers {status}", advice)
    return SurroundingsError(f"{written}: the hub cannot be asked: {type(error).__name__}", "Try again later.")
