"""Download a file: go on where the last try stopped, and give it its name only when its digest is right.

What came so far lies beside the target in `NAME.incomplete`. A connection that breaks is opened again, a server that
asks to wait is waited for, and a token goes to the host that it is for, and to no other.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from lorabake import __version__
from lorabake.errors import FileError, LorabakeError, SurroundingsError
from lorabake.machine import unwritable
from lorabake.remote.address import Progress
from lorabake.tensors.system import wait_for_lock
from lorabake.visible import keep_secret, size_of

PIECE = 1 << 20
TRIES = 5
"""Tries without a single new byte before a download is given up."""

PATIENCE = 300
"""Most seconds that a server may ask to wait."""

TIMEOUT = 30
"""Seconds without an answer after which a connection counts as broken."""

LATER = "What came so far is kept: the same command goes on from there."
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""Answers after which a later try may succeed."""

GONE = {404: "there is no such file", 410: "the file was removed"}
LOOPBACK = ("localhost", "127.0.0.1", "::1")

sleep = time.sleep


@dataclass(frozen=True, slots=True)
class Digest:
    """Know what a file must be: its SHA-256, or git's own SHA-1 with the size before the content."""

    name: str
    value: str

    def begun(self, size: int | None) -> Any:
        """Begin to hash a file of so many bytes."""
        if self.name == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % (size or 0), usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Login:
    """Hold the token for a host, and say what a user can do where it is missing or not enough."""

    token: str | None
    missing: str
    refused: str


@dataclass(slots=True)
class Download:
    """Say what is downloaded: from where, to where, and what it must be. `received` counts what came."""

    written: str
    url: str
    target: Path
    digest: Digest
    login: Login
    progress: Progress
    size: int | None = None
    received: int = 0
    tries: int = field(default=0, init=False)

    def run(self) -> int:
        """Bring the file to its name; return how many bytes came over the network.

        Raise FileError where the address, the login or the file is wrong, and SurroundingsError where the network or
        the disk is.
        """
        if self.login.token:
            keep_secret(self.login.token)
        partial = self.target.with_name(f"{self.target.name}.incomplete")
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "ab") as stream:
                wait_for_lock(stream.fileno())
                if self.target.exists():  # another process has just brought it
                    return 0
                self._bring(stream, partial)
                os.replace(partial, self.target)
        except OSError as error:
            raise self._unkept(error) from None
        return self.received

    def _bring(self, stream: IO[bytes], partial: Path) -> None:
        """Fill the partial file until it is whole and right; begin anew once if what was there before is wrong."""
        had = stream.tell()
        size = self.size
        found = self._filled(stream, partial)
        if found != self.digest.value and had:
            stream.truncate(0)
            self.size = size
            found = self._filled(stream, partial)
        if found != self.digest.value:
            stream.truncate(0)
            raise FileError(
                f"{self.written}: the server sends another file: its digest is {found}",
                f"It must be {self.digest.value}. Nothing of the file was kept.",
            )

    def _filled(self, stream: IO[bytes], partial: Path) -> str:
        """Download what is missing of the file, and return the digest of all of it."""
        self.tries = 0
        hashed = self.digest.begun(self.size)
        with partial.open("rb") as before:
            while piece := before.read(PIECE):
                hashed.update(piece)
        have = stream.seek(0, os.SEEK_END)
        while self.size is None or have < self.size:
            try:
                with self._opened(have) as answer:
                    if answer is None:  # nothing is behind what there is
                        break
                    if answer.status != 206 and have:  # the server begins anew
                        stream.truncate(0)
                        stream.seek(0)
                        have, hashed = 0, self.digest.begun(self.size)
                    self.size = self.size or _total(answer, have)
                    self._begin(have)
                    while piece := answer.read(PIECE):
                        stream.write(piece)
                        hashed.update(piece)
                        have, self.received, self.tries = have + len(piece), self.received + len(piece), 0
                        self.progress.advance(len(piece))
                    if self.size is None or have >= self.size:
                        break
                raise http.client.IncompleteRead(b"", self.size - have)
            except _LaterError as later:
                self._wait(later.seconds, later.reason)
            except (http.client.HTTPException, URLError, ConnectionError, TimeoutError) as error:
                self._wait(None, _reason(error))
        stream.flush()
        return str(hashed.hexdigest())

    def _begin(self, have: int) -> None:
        if self.size is not None:
            free = shutil.disk_usage(self.target.parent).free
            if free < self.size - have:
                raise SurroundingsError(
                    f"{self.target.parent}: has not enough room: {size_of(self.size - have)} are still to come, "
                    f"and {size_of(free)} are free",
                    "Make room, or name another folder: HF_HOME for Hugging Face's files, LORABAKE_CACHE for others.",
                )
        self.progress.begin(f"downloading {self.written.rpartition('/')[2]}", self.size or 0)
        self.progress.advance(have)

    @contextmanager
    def _opened(self, have: int) -> Iterator[Any]:
        """Ask for the file from a byte on; yield None if it ends there."""
        request = Request(self.url, headers={"User-Agent": f"lorabake/{__version__}", "Accept-Encoding": "identity"})
        if have:
            request.add_header("Range", f"bytes={have}-")
        if self.login.token:  # not a header that redirects would carry along
            request.add_unredirected_header("Authorization", f"Bearer {self.login.token}")
        try:
            answer = build_opener(_Redirects).open(request, timeout=TIMEOUT)
        except HTTPError as error:
            with error:
                if error.code == 416 and have:
                    answer = None
                else:
                    raise self._refused(error) from None
        if answer is None:
            yield None
            return
        with answer:
            yield answer

    def _refused(self, error: HTTPError) -> Exception:
        """Turn an answer that is no file into what to do about it."""
        host = urlsplit(error.url or self.url).hostname
        if error.code in TRANSIENT:
            return _LaterError(
                _seconds(error.headers.get("Retry-After")), f"{host} answers {error.code} {error.reason}"
            )
        if error.code == 401:
            return FileError(f"{self.written}: {host} asks for a login", self.login.missing)
        if error.code == 403:
            return FileError(f"{self.written}: {host} does not let you have it", self.login.refused)
        what = GONE.get(error.code, f"{host} answers {error.code} {error.reason}")
        return FileError(f"{self.written}: {what}", "Look at the address in a browser.")

    def _wait(self, seconds: float | None, reason: str) -> None:
        """Wait before the next try; raise SurroundingsError after too many, or where the wait would be too long."""
        self.tries += 1
        if self.tries >= TRIES:
            raise SurroundingsError(f"{self.written}: the download stopped after {TRIES} tries: {reason}", LATER)
        if seconds is not None and seconds > PATIENCE:
            raise SurroundingsError(f"{self.written}: {reason}, and asks to wait for {seconds:.0f} s", LATER)
        sleep(2.0 ** (self.tries - 1) if seconds is None else seconds)

    def _unkept(self, error: OSError) -> LorabakeError:
        told = unwritable(self.target.parent, error)
        return type(told)(
            told.args[0].replace("nothing was kept of this bake", "what came so far is kept"), *told.args[1:]
        )


class _LaterError(Exception):
    """Say that a server asks to come back later."""

    def __init__(self, seconds: float | None, reason: str) -> None:
        super().__init__(reason)
        self.seconds, self.reason = seconds, reason


class _Redirects(HTTPRedirectHandler):
    """Follow a server elsewhere: with the token to the same host only, and never out of https."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme != "https" and (new.scheme != "http" or new.hostname not in LOOPBACK):
            fp.close()
            raise FileError(
                f"{old.hostname} sends the download on to {new.scheme}://{new.hostname}, which is not safe",
                "Use an address that leads to https://.",
            )
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if following is not None and token and _origin(old) == _origin(new):
            following.add_unredirected_header("Authorization", token)
        return following


def _origin(parts: Any) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port


def _total(answer: Any, have: int) -> int | None:
    """Return the size of the whole file, as far as an answer says it."""
    whole = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
    if answer.status == 206 and whole.isdigit():
        return int(whole)
    length = answer.headers.get("Content-Length") or ""
    return have + int(length) if length.isdigit() else None


def _seconds(text: str | None) -> float | None:
    """Read Retry-After: seconds, or a date."""
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _reason(error: Exception) -> str:
    """Word why a connection broke."""
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ends before the file does"
    cause = error.reason if isinstance(error, URLError) else error
    return str(getattr(cause, "strerror", None) or cause) or type(error).__name__


def patiently(
    written: str, call: Callable[[], Any], later: Callable[[Exception], tuple[float | None, str] | None]
) -> Any:
    """Call what may fail for a while; `later` tells (seconds to wait, reason) of a failure that may pass."""
    for count in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:
            told = later(error)
            if told is None:
                raise
            seconds, reason = told
            if count == TRIES or (seconds or 0) > PATIENCE:
                raise SurroundingsError(f"{written}: {reason}", "Try again later.") from None
            sleep(2.0 ** (count - 1) if seconds is None else seconds)
    raise AssertionError("unreachable")
