"""Compose what a baked file says of itself: the base's metadata, the recipe, and digests of all inputs.

Digests and hashes are known only at the end of a bake. Zeros hold their places, so that the header's length is fixed
before the first byte is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lorabake import __version__
from lorabake.sources.evidence import SideFile
from lorabake.storage.fields import INPUTS, LEGACY_HASH, RECIPE, changed, kept
from lorabake.tensors.checkpoint import Checkpoint

PLACEHOLDER = "0" * 64
DEVICE = "lorabake.device"
"""Metadata key for the device classes that computed the file, "cpu" or "cuda"; in one class, bytes are the same."""

DEVICE_ROOM = 40
"""Bytes reserved in a header for these names, which are known only at the end of a bake."""

VERSION = "lorabake.version"

OUTPUT_VERSION = 2
"""The version of the bytes that bakes give.

It rises with a lorabake that gives other bytes for some recipe and inputs, on the same class of device, than the
lorabake before it; lorabake's own version in the header does not count. An output of another version is not taken for
the one that a bake would give now.
"""

MOST_LISTED = 1 << 26
"""Most letters that all files of an output together may spend on their inputs; 500 shards of 500 need half of it."""

EDIT_ROOM = 1024
"""Bytes that a header has to spare, so that a title or a note can be set later without moving the tensors."""

LEGACY_START, LEGACY_BYTES = 0x100000, 0x10000


def describe(
    checkpoint: Checkpoint, path: str, digests: Mapping[Path, str], sides: Iterable[SideFile]
) -> dict[str, object]:
    """Identify an input by name, size and digest: of the whole file if known, or else of its header.

    `sides` are the files beside it that say how it is applied.
    """
    files: list[dict[str, object]] = []
    for header in checkpoint.headers:
        given = header.path
        name = given.relative_to(checkpoint.path).as_posix() if checkpoint.is_folder else path
        digest = {"sha256": digests[given]} if given in digests else {"header_sha256": header.sha256}
        files.append({"name": name, "size": header.size, **digest})
    files += ({"name": side.name, "sha256": side.sha256} for side in sides)
    return {"path": path, "files": files} if checkpoint.is_folder or len(files) > 1 else files[0]


def listed(inputs: Mapping[str, object], files: Sequence[str]) -> list[str]:
    """Return for each output file the list of inputs that it carries.

    If the list is too long to be repeated in so many files, only the first file has it, and the others name that
    file.
    """
    whole = _json(inputs)
    is_long = len(whole) * len(files) > MOST_LISTED
    return [_json({"listed_in": files[0]}) if is_long and place else whole for place in range(len(files))]


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def metadata(
    base: Mapping[str, str],
    identity: Mapping[str, str],
    recipe: str,
    inputs: str,
    *,
    changes: Mapping[str, str | None],
    hashed: bool,
) -> dict[str, str]:
    """Compose a baked file's metadata: what programs read in the base's, the bake's identity, lorabake's own.

    `inputs` come from `listed`, `changes` from the recipe, which has the last word on what is not computed. Model
    sites identify a file by the hash inside it, so the base's hash goes. With `hashed`, zeros hold the place of the
    SHA-256 of the tensor data.
    """
    own = {**kept(base), **identity}
    own.setdefault("format", "pt")
    own = changed(own, changes)
    own[VERSION] = __version__
    own["lorabake.output_version"] = str(OUTPUT_VERSION)
    own[RECIPE] = recipe
    own[INPUTS] = inputs
    if hashed:
        own |= fill(PLACEHOLDER)
        if LEGACY_HASH in base:
            own[LEGACY_HASH] = PLACEHOLDER[:8]
    return own


def filled_in(inputs: str, placeholder: str, sha256: str) -> str:
    """Put a digest in its place in the list of inputs; a file's name may be all zeros, too."""
    return inputs.replace(f'"sha256":"{placeholder}"', f'"sha256":"{sha256}"')


def fill(data_sha256: str) -> dict[str, str]:
    """Return the SHA-256 of the tensor data under the keys of both metadata conventions."""
    return {"modelspec.hash_sha256": "0x" + data_sha256, "sshs_model_hash": data_sha256}


def said_sha256(metadata: Mapping[str, str]) -> str | None:
    """Return the SHA-256 of the tensor data that a header says, whoever wrote it."""
    for name in ("modelspec.hash_sha256", "sshs_model_hash"):
        said = metadata.get(name, "").removeprefix("0x").lower()
        if re.fullmatch("[0-9a-f]{64}", said):
            return said
    return None
