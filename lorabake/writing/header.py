"""Change the metadata of a finished file in place, where its header has the room, so that no crash damages it.

The new header has the old one's length, so that no tensor moves. Before it is written, the old one is kept beside the
file, in a journal; the journal goes when the new one is on the disk. A journal that is there when somebody next edits
the file tells of an edit that broke off: the old header is put back first.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorabake.errors import FileError, TargetError
from lorabake.machine import unreadable, unwritable
from lorabake.tensors.safetensors import parse_object, read_header
from lorabake.tensors.system import bytes_at
from lorabake.visible import short_repr
from lorabake.writing.system import fsync, fsync_folder, lock, open_again, open_new, write_all

LENGTH_BYTES = 8
METADATA = "__metadata__"

SIGNED = (".sig", ".sigstore", ".sigstore.json", ".asc", ".minisig", ".intoto.json", ".intoto.jsonl")
"""How files end that vouch for a file's bytes: signatures, sigstore's bundles, in-toto's statements."""

WHOLE = "model"
"""Whose signature stands for a whole folder: model-signing writes model.sig."""


@dataclass(frozen=True, slots=True)
class Edited:
    """Tell what an edit did: the bytes that the header still has to spare, and whether anything changed."""

    __repr__ = short_repr

    room: int
    is_changed: bool


def room_of(path: Path) -> int:
    """Count the spaces at the end of a file's header."""
    raw = _raw(path)
    return len(raw) - len(raw.rstrip(b" "))


def with_metadata(raw: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return a header's JSON with other metadata, sorted, as long as the old one needs; shorter or longer than it."""
    entries = parse_object(raw)
    changed = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    entries = {**changed, **{key: entry for key, entry in entries.items() if key != METADATA}}
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()


def edit(path: Path, metadata: Mapping[str, str]) -> Edited:
    """Give a SafeTensors file other metadata in place.

    Raise TargetError if its header lacks the room, if something vouches for its bytes, or if the file has further
    names; FileError for a file that cannot be read.
    """
    undo(path)
    _check_one_name(path)
    _check_unsigned(path)
    header = read_header(path)
    raw = _raw(path)
    text = with_metadata(raw, metadata)
    if dict(header.metadata) == dict(metadata):
        return Edited(len(raw) - len(raw.rstrip(b" ")), is_changed=False)
    if len(text) > len(raw):
        over, spare = len(text) - len(raw), len(raw) - len(with_metadata(raw, header.metadata))
        raise TargetError(
            f"{path}: the header has {max(spare, 0):,} bytes to spare, and this needs {max(spare, 0) + over:,}",
            "Shorten a field, or remove one. Or set it in the recipe, under output.metadata, and bake again.",
        )
    _write(path, raw, text + b" " * (len(raw) - len(text)))
    return Edited(len(raw) - len(text), is_changed=True)


def undo(path: Path) -> bool:
    """Put back the header that an edit left in its journal, if one broke off; tell whether one did."""
    journal = _journal(path)
    try:
        kept = journal.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unreadable(journal, error) from None
    try:
        digest, inode, raw = _parsed(kept)
    except ValueError:
        raise FileError(f"{journal}: is no header that lorabake kept", "Remove it if it is yours.") from None
    status = path.stat()
    if hashlib.sha256(raw).hexdigest() != digest:
        raise FileError(f"{journal}: the header that it keeps is damaged", "Remove it, and check the file beside it.")
    if inode == status.st_ino:  # else another file has taken its place
        with _Opened(path) as fd:
            _put(fd, raw)
    _forget(journal)
    return True


def vouchers(path: Path) -> list[Path]:
    """List the files that vouch for a file's bytes: beside it, or beside the folder around it."""
    folder = path.absolute().parent
    own = _vouching(folder, {path.name, path.stem, WHOLE, folder.name}, nameless=True)
    return [*own, *_vouching(folder.parent, {folder.name, WHOLE}, nameless=False)]


# -- Refusals --------------------------------------------------------------------------------------------


def _vouching(folder: Path, of: set[str], *, nameless: bool) -> list[Path]:
    """List the signatures in a folder that are named after one of these, or, with `nameless`, after no file there."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    others = {name for name in names if not name.endswith(SIGNED)}
    others |= {Path(name).stem for name in others}
    found = [(name, name.removesuffix(end)) for name in names for end in SIGNED if name.endswith(end)]
    return [folder / name for name, base in found if base in of or (nameless and base not in others)]


def _check_unsigned(path: Path) -> None:
    if found := vouchers(path):
        raise TargetError(
            f"{path}: {found[0].name} vouches for its bytes, and an edit changes them",
            "Move it away, edit, and sign again.",
        )


def _check_one_name(path: Path) -> None:
    try:
        status = path.lstat()
    except OSError as error:
        raise unreadable(path, error) from None
    if stat.S_ISLNK(status.st_mode):
        raise TargetError(f"{path}: is a link to {os.path.realpath(path)}", "Name that file, or copy it first.")
    if status.st_nlink > 1:
        raise TargetError(
            f"{path}: has {status.st_nlink} names (hard links), and an edit would show under all of them",
            "Copy it, and edit the copy.",
        )


# -- Writing ---------------------------------------------------------------------------------------------


class _Opened:
    """Hold a file open for writing, and locked."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> int:
        try:
            self._fd = open_again(self.path)
        except OSError as error:
            raise unwritable(self.path, error) from None
        try:
            lock(self._fd)
        except BlockingIOError:
            os.close(self._fd)
            raise TargetError(f"{self.path}: another program is writing it", "Wait until it is done.") from None
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _write(path: Path, old: bytes, new: bytes) -> None:
    """Replace a header by one of the same length, with the old one in a journal meanwhile."""
    journal = _journal(path)
    with _Opened(path) as fd:
        if bytes_at(fd, len(old), LENGTH_BYTES) != old:
            raise FileError(f"{path}: changed while it was read", "Run it again once nothing writes to it.")
        _keep(journal, os.fstat(fd).st_ino, old)
        try:
            _put(fd, new)
        except OSError as error:
            raise unwritable(path, error) from None
    _forget(journal)


def _put(fd: int, raw: bytes) -> None:
    write_all(fd, memoryview(raw), LENGTH_BYTES)
    os.fsync(fd)


def _keep(journal: Path, inode: int, raw: bytes) -> None:
    """Write a journal that is whole, or not there."""
    head = json.dumps({"lorabake": "header", "sha256": hashlib.sha256(raw).hexdigest(), "inode": inode}).encode()
    partial = journal.with_name(journal.name + ".new")
    try:
        partial.unlink(missing_ok=True)
        fd = open_new(partial)
        try:
            write_all(fd, memoryview(head + b"\n" + raw), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(partial, journal)
        fsync_folder(journal.parent)
    except OSError as error:
        raise unwritable(journal, error) from None


def _forget(journal: Path) -> None:
    journal.unlink(missing_ok=True)
    with suppress(OSError):
        fsync(journal.parent)


def _parsed(kept: bytes) -> tuple[str, int, bytes]:
    head, found, raw = kept.partition(b"\n")
    said = json.loads(head) if found else None
    if not isinstance(said, dict) or said.get("lorabake") != "header":
        raise ValueError("no journal")
    return str(said["sha256"]), int(said["inode"]), raw


def _journal(path: Path) -> Path:
    return path.with_name(f".{path.name}.lorabake-header")


def _raw(path: Path) -> bytes:
    """Return the JSON of a header that was checked, with the spaces behind it."""
    with open(path, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(LENGTH_BYTES))
        return stream.read(length)
