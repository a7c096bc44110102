"""`https://…`: a file anywhere, which the recipe pins by its SHA-256.

Downloads lie in lorabake's cache folder, by their digest: an address may change what it leads to, a digest may not.
Where a site asks for a token, it comes from the environment: LORABAKE_TOKEN_EXAMPLE_ORG for example.org.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

from lorabake.errors import FileError
from lorabake.paths import cache_folder
from lorabake.remote.address import Fetched, Progress, Wanted
from lorabake.settings import FETCH
from lorabake.tensors.reader import is_there
from lorabake.visible import SECRETS

BEGINS = re.compile(r"https?:/", re.IGNORECASE)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
NAME = "LORABAKE_TOKEN_"


@dataclass(frozen=True, slots=True)
class WebAddress:
    """Name a file on the web."""

    needs_digest: ClassVar[bool] = True

    written: str

    @property
    def source(self) -> str:
        """Return the address itself."""
        return self.written

    def uri(self, _: str | None) -> str:
        """Return the address itself."""
        return self.written

    def cached(self, wanted: Wanted) -> Path:
        """Return where the file with the recipe's digest lies; raise FileError if it is not there."""
        place = self._place(self._digest(wanted))
        if not is_there(place):
            raise FileError(f"{self.written}: is not on this machine", str(FETCH))
        return place

    def resolved(self) -> None:
        """Return None: the digest says all."""

    def fetch(self, wanted: Wanted, progress: Progress) -> Fetched:
        """Download the file unless one with its digest is there."""
        place = self._place(self._digest(wanted))
        if is_there(place):
            return Fetched(self.written, place, None, 0)
        place.parent.mkdir(parents=True, exist_ok=True)
        if same := next((path for path in place.parent.iterdir() if not path.name.endswith(".incomplete")), None):
            os.link(same, place)  # the same file, from another address
            return Fetched(self.written, place, None, 0)
        from lorabake.remote.download import Digest, Download, Login

        name = name_for(urlsplit(self.written).hostname or "")
        login = Login(
            os.environ.get(name) or None,
            missing=f"Set {name} in the environment to a token of that site.",
            refused=f"Look in a browser what it asks for; it gets the token in {name}.",
        )
        digest = Digest("sha256", self._digest(wanted))
        received = Download(self.written, self.written, place, digest, login, progress).run()
        return Fetched(self.written, place, None, received)

    def _digest(self, wanted: Wanted) -> str:
        if wanted.sha256 is None:
            raise FileError(f"{self.written}: an address of the web needs the sha256 of its file beside it")
        return wanted.sha256

    def _place(self, sha256: str) -> Path:
        return cache_folder() / "downloads" / sha256 / self._name()

    def _name(self) -> str:
        """Take the file's name from the address; its ending tells the file's format."""
        last = unquote(urlsplit(self.written).path.rpartition("/")[2])
        return re.sub(r"[^\w.+-]", "_", last).lstrip(".")[-150:] or "file"


def read(text: str) -> WebAddress:
    """Read an address of the web; raise ValueError with what to write instead."""
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        host = ""
    if not host or not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("This is no address of a file: write it as https://HOST/FILE, without spaces.")
    if parts.scheme.lower() not in ("https", "http"):
        raise ValueError("Write https:// before the address.")
    if "@" in parts.netloc:
        raise ValueError(
            f"A recipe must not hold a password: take out what stands before @, and set {name_for(host)}=TOKEN "
            "in the environment."
        )
    if secret := next((name for name, _ in parse_qsl(parts.query, True) if SECRETS.fullmatch(name)), None):
        raise ValueError(
            f"A recipe must not hold a token: take {secret}=… out of the address, "
            f"and set {name_for(host)} in the environment."
        )
    if parts.scheme.lower() == "http" and host not in LOOPBACK:
        raise ValueError("Anyone on the way can change what http:// brings: write https://.")
    return WebAddress(text)


def name_for(host: str) -> str:
    """Name the environment variable that holds the token for a host: LORABAKE_TOKEN_EXAMPLE_ORG."""
    return NAME + re.sub(r"\W", "_", host).upper()
