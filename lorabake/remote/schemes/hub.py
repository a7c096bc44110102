"""`hf://OWNER/NAME@REVISION/PATH`: a file or a folder of a model on Hugging Face, or the whole model.

What is in the cache of Hugging Face's programs is found without any of them. Downloads take huggingface_hub, the
extra `lorabake[hub]`, for the address of the hub, the login, and the list of a model's files; the bytes come by
lorabake's own downloads, which go on where they stopped and check what they got.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

from lorabake.errors import FileError
from lorabake.remote import hubcache
from lorabake.remote.address import Fetched, Progress, Wanted
from lorabake.settings import FETCH
from lorabake.tensors.reader import is_folder, is_there

BEGINS = re.compile(r"hf:/", re.IGNORECASE)
EXAMPLE = "hf://OWNER/NAME@REVISION/FILE"
OTHERS = ("datasets", "spaces", "kernels", "buckets")
"""What else the hub has."""

_ADDRESS = re.compile(
    r"hf://(?:models/)?(?P<repo>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)"
    r"(?:@(?P<revision>refs/(?:pr/\d+|convert/[\w.-]+)|[^/@?#]+))?(?:/(?P<path>[^?#]*))?"
)


@dataclass(frozen=True, slots=True)
class HubAddress:
    """Name a file or folder of a model on Hugging Face; `path` is "" for the whole model."""

    needs_digest: ClassVar[bool] = False

    written: str
    repo: str
    revision: str
    path: str

    @property
    def source(self) -> str:
        """Return the address without its revision."""
        return "/".join(filter(None, [f"hf://{self.repo}", self.path]))

    def uri(self, commit: str | None) -> str:
        """Name the model as a package URL does: pkg:huggingface/OWNER/NAME@COMMIT."""
        return f"pkg:huggingface/{self.repo}" + (f"@{commit}" if commit else "")

    def cached(self, wanted: Wanted) -> Path:
        """Return where it lies in the cache of Hugging Face's programs; raise FileError if it is not whole there."""
        commit = wanted.commit or self.resolved()
        if commit is None:
            raise FileError(f"{self.written}: is not on this machine", str(FETCH))
        if not hubcache.COMMIT.fullmatch(commit):
            raise FileError(f"{self.written}: {commit!r:.60} is no commit: a lock holds 40 hexadecimal digits")
        snapshot = hubcache.snapshot_of(self.repo, commit)
        place = snapshot / self.path
        if not is_there(place):
            how = "is not whole on this machine" if is_there(snapshot) else "is not on this machine"
            raise FileError(f"{self.written}: commit {commit[:12]} of it {how}", *self._near(snapshot), str(FETCH))
        if is_folder(place):
            hubcache.check_whole(self.written, self.repo, commit, self.path, wanted.variant)
        return place

    def resolved(self) -> str | None:
        """Return the commit that the revision leads to in the cache; None if it was never downloaded."""
        return hubcache.commit_of(self.repo, self.revision)

    def fetch(self, wanted: Wanted, progress: Progress) -> Fetched:
        """Download what the cache lacks, and note which commit the revision leads to."""
        from lorabake.remote.hubfiles import fetch

        return fetch(self.written, self.repo, self.revision, self.path, wanted, progress)

    def _near(self, snapshot: Path) -> list[str]:
        """Say what the cache has of the same commit."""
        if not snapshot.is_dir() or not self.path:
            return []
        names = [path.relative_to(snapshot).as_posix() for path in sorted(snapshot.rglob("*")) if path.is_file()]
        return [f"The cache has {', '.join(names[:3])} of that commit."] if names else []


def read(text: str) -> HubAddress:
    """Read an address of the hub; raise ValueError with what to write instead."""
    match = _ADDRESS.fullmatch(text)
    kind = text.removeprefix("hf://").partition("/")[0]
    if kind in OTHERS and text.count("/") > 3:
        raise ValueError(f"An address that begins with hf://{kind} names no model: write {EXAMPLE}.")
    if re.fullmatch(r"[\w.-]+", kind) and text == f"hf://{kind}":
        whole = f"hf://OWNER/{kind}"
        raise ValueError(
            f"The owner is missing: write {whole} for the whole model, or {whole}@REVISION/FILE for a file."
        )
    path = (match["path"] or "").removesuffix("/") if match else ""
    revision = unquote(match["revision"] or "main") if match else ""
    if match is None or not _is_inside(revision) or (path and not _is_inside(path)):
        raise ValueError(f"Write an address of Hugging Face as {EXAMPLE}, or hf://OWNER/NAME for a whole model.")
    return HubAddress(text, match["repo"], revision, path)


def _is_inside(path: str) -> bool:
    """Tell whether a path leads into a folder, and nowhere else."""
    return "\0" not in path and not any(part in ("", ".", "..") for part in path.split("/"))
