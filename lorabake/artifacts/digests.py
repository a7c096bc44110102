"""Digest files and folders, and remember digests between runs, so that a file that nobody touched is read once.

The cache has one small file for each digest, in `sha256` in the user's cache folder for lorabake. An entry is found
by what identifies a version of a file: its device, inode, size, and times of change of content and of status. Any
number of processes may use it at once: entries appear whole, by a rename, and never change. An entry that cannot be
read counts as none, and a folder that cannot be written costs nothing but the time of another hash.

What the cache says is as good as the file system's times. It can be wrong where a program writes through a memory
map without the system noticing, or where another machine's clock sets the times. So nobody may take it for the only
evidence where a file has to be proven: `cached=False` always reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorabake.errors import FileError
from lorabake.machine import default_workers, unreadable
from lorabake.paths import cache_folder
from lorabake.progress import unseen
from lorabake.tensors.header import Fingerprint
from lorabake.tensors.reader import fingerprint
from lorabake.tensors.small import open_regular
from lorabake.tensors.system import read_at

PIECE = 1 << 20
"""Bytes that are hashed at a time."""

TICK_NS = 3_000_000_000
"""Age that a file's times must have when it is hashed, in nanoseconds.

Two changes within one tick of a file system's clock leave the same times. The longest tick is FAT's, two seconds.
"""

SMALLEST = 1 << 18
"""Bytes from which on a digest is worth remembering; smaller files are read as quickly as the cache."""

MOST_ENTRIES = 20_000
"""Most digests that are remembered; beyond that, the oldest half is forgotten."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Identify a file by its name (relative to its folder, with `/`), its size and the SHA-256 of all its bytes."""

    name: str
    size: int
    sha256: str


# -- Digests ---------------------------------------------------------------------------------------------


def file_sha256(path: Path, *, cached: bool = True, progress: Callable[[int], None] = unseen) -> str:
    """Return the SHA-256 of a file's bytes, as `file_digest` does."""
    return file_digest(path, cached=cached, progress=progress).sha256


def file_digest(
    path: Path, name: str = "", *, cached: bool = True, progress: Callable[[int], None] = unseen
) -> FileDigest:
    """Digest a file, which gets its own name unless another is given.

    With `cached` the digest may come from the user's cache; it is remembered there in any case. `progress` receives
    counts of bytes. Raise FileError for what is no regular file, cannot be read, or changes meanwhile.
    """
    name, seen = name or path.name, fingerprint(path)
    is_kept = seen[2] >= SMALLEST
    if cached and is_kept and (known := remembered(seen)) is not None:
        progress(seen[2])
        return FileDigest(name, seen[2], known)
    began, taken, buffer = time.time_ns(), hashlib.sha256(), memoryview(bytearray(PIECE))
    try:
        with open_regular(path) as stream:
            if fingerprint(stream.fileno()) != seen:
                raise _changed(path)
            position = 0
            while count := read_at(stream.fileno(), buffer, position):
                taken.update(buffer[:count])
                position += count
                progress(count)
            if not fingerprint(stream.fileno()) == fingerprint(path) == seen:
                raise _changed(path)
    except OSError as error:
        raise unreadable(path, error) from None
    if is_kept:
        remember(seen, taken.hexdigest(), began)
    return FileDigest(name, position, taken.hexdigest())


def file_digests(
    paths: Mapping[str, Path], *, cached: bool = True, progress: Callable[[int], None] = unseen
) -> tuple[FileDigest, ...]:
    """Digest several files side by side; `paths` are by the names that they get. They come back sorted by name.

    `progress` receives counts of bytes, from any thread.
    """

    def digested(name: str) -> FileDigest:
        return file_digest(paths[name], name, cached=cached, progress=progress)

    names = sorted(paths)
    if len(names) < 2:
        return tuple(map(digested, names))
    with ThreadPoolExecutor(min(default_workers(), len(names))) as pool:
        return tuple(pool.map(digested, names))


def folder_sha256(files: Iterable[FileDigest]) -> str:
    """Return one digest over a folder's files: the SHA-256 of their list as JSON.

    The list is `[["NAME",SIZE,"SHA256"],…]`, without spaces, in UTF-8, sorted by names as sequences of code points.
    The folder's own name and place, the files' times and modes, and links do not enter.

    Examples:
        >>> from lorabake.artifacts.digests import FileDigest, folder_sha256
        >>> one, two = FileDigest("a.json", 2, "0" * 64), FileDigest("unet/b.safetensors", 9, "1" * 64)
        >>> folder_sha256([two, one]) == folder_sha256([one, two])
        True
    """
    listed = sorted([file.name, file.size, file.sha256] for file in files)
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


# -- The cache -------------------------------------------------------------------------------------------


def own_cache() -> Path | None:
    """Return the user's cache folder for lorabake; None where the user has no home."""
    folder = cache_folder()
    return folder if folder.is_absolute() else None


def remembered(seen: Fingerprint) -> str | None:
    """Return the SHA-256 that the cache has of a version of a file; None if it has none that can be read."""
    if (place := _place(seen)) is None:
        return None
    try:
        entry = json.loads(place.read_bytes()[:1000])
    except (OSError, ValueError):
        return None
    if not isinstance(entry, dict) or entry.get("file") != [*seen]:
        return None
    sha256 = entry.get("sha256")
    return sha256 if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None


def remember(seen: Fingerprint, sha256: str, began: int) -> None:
    """Keep the SHA-256 of a version of a file, unless the file changed just before its hashing `began`.

    `began` is in nanoseconds, as `time.time_ns` counts them. A cache that cannot be written is no fault.
    """
    if is_settled(seen, began) and (place := _place(seen)) is not None:
        put_whole(place, json.dumps({"file": [*seen], "sha256": sha256}).encode())


def is_settled(seen: Fingerprint, began: int) -> bool:
    """Tell whether a file's times identify its version: whether it had its last change long enough before `began`.

    A time of change of content may be anywhere, since programs set it; the system sets that of status.
    """
    _, _, _, content, status = seen
    return status <= began - TICK_NS and not began - TICK_NS < content < began + TICK_NS


def put_whole(place: Path, content: bytes) -> None:
    """Write an entry of the cache, whole or not at all; a cache that cannot be written is no fault."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _forget(place.parent)
        fd, partial = tempfile.mkstemp(dir=place.parent, prefix=".")
        try:
            with os.fdopen(fd, "wb") as stream:
                stream.write(content)
            os.replace(partial, place)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise


def _place(seen: Fingerprint) -> Path | None:
    folder = own_cache()
    name = hashlib.sha256(json.dumps([*seen]).encode()).hexdigest()
    return None if folder is None else folder / "sha256" / name[:40]


def _forget(folder: Path) -> None:
    """Remove the older half of the entries where there are too many."""
    with os.scandir(folder) as entries:
        names = [entry.path for entry in entries]
    if len(names) < MOST_ENTRIES:
        return
    by_age = []
    for name in names:
        with suppress(OSError):  # another process removes them, too
            by_age.append((os.stat(name).st_mtime_ns, name))
    for _, name in sorted(by_age)[: len(by_age) // 2]:
        with suppress(OSError):
            os.unlink(name)


def _changed(path: Path) -> FileError:
    return FileError(f"{path}: changed while it was read", "Run it again once nothing writes to it.")
