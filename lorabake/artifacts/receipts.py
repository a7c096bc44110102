"""Keep a receipt of each bake in the user's cache folder: which versions of which files an output was made of.

A header names the digests of LoRAs, but not that of a base, which a plain bake does not digest: that would take too
much of its time. A receipt remembers what identifies the base's version instead: device, inode, size, and times of
change of content and of status; and its digest where that is known. So a second bake can tell that nothing has
changed without reading anything. A receipt is found by the output's own identity. Whoever copies an output has none,
and that costs no more than another bake.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from lorabake.artifacts.digests import own_cache, put_whole
from lorabake.tensors.header import Fingerprint


@dataclass(frozen=True, slots=True)
class Made:
    """Identify a file that an output was made of: by its version's fingerprint, by its digest, or by both.

    There is no fingerprint where the file had changed just before, since it may have changed again within the same
    tick of the clock.
    """

    seen: Fingerprint | None
    sha256: str | None


Receipt = Mapping[str, Mapping[str, Made]]
"""Input, as the recipe writes it -> name of its file -> what that was."""


def keep(output: Sequence[Path], made_of: Receipt) -> None:
    """Keep a receipt of an output with these files with weights; a cache that cannot be written is no fault."""
    if (place := _place(output)) is None:
        return
    content = {
        path: {name: {"file": made.seen, "sha256": made.sha256} for name, made in files.items()}
        for path, files in made_of.items()
    }
    put_whole(place, json.dumps(content).encode())


def find(output: Sequence[Path]) -> Receipt | None:
    """Return the receipt of an output; None if there is none that can be read."""
    if (place := _place(output)) is None:
        return None
    try:
        said = json.loads(place.read_bytes())
        return {path: {name: _made(entry) for name, entry in files.items()} for path, files in said.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


def _made(entry: Mapping[str, object]) -> Made:
    seen, digest = entry["file"], entry["sha256"]
    if not (seen is None or (isinstance(seen, list) and all(type(number) is int for number in seen))):
        raise ValueError("no fingerprint")
    if not (digest is None or isinstance(digest, str)):
        raise ValueError("no digest")
    return Made(None if seen is None else tuple(seen), digest)


def _place(output: Sequence[Path]) -> Path | None:
    """Return where the receipt of an output lies; a rename does not change what identifies the output."""
    folder, seen = own_cache(), list[list[int]]()
    with suppress(OSError):
        for path in output:
            status = os.stat(path)
            seen.append([status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns])
        name = sha256(json.dumps(seen).encode()).hexdigest()
        return None if folder is None else folder / "receipts" / name[:40]
    return None
