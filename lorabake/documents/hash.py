"""What `lorabake hash --json` prints."""

from __future__ import annotations

from dataclasses import dataclass

from lorabake.documents.records import STRICT


@dataclass(frozen=True, slots=True)
class HashedFile:
    """The digests of one file with weights."""

    __pydantic_config__ = STRICT
    name: str
    """The file's name; in a folder, its path there."""
    bytes: int
    """Its size."""
    sha256: str
    """The SHA-256 of all its bytes, in 64 hexadecimal digits."""
    autov1: str
    """A1111's first hash: eight digits of the SHA-256 of 64 KiB at 1 MiB. Many files share it."""
    autov2: str
    """The first ten digits of the SHA-256, by which A1111 and Civitai name a file."""
    autov3: str | None
    """The first twelve digits of `data_sha256`, by which Civitai finds a file of an edited header; null with it."""
    crc32: str
    """The CRC-32 of all its bytes, in eight hexadecimal digits."""
    data_sha256: str | None
    """The SHA-256 of its tensor data, without the header; null for a file that is not SafeTensors."""


@dataclass(frozen=True, slots=True)
class HashedBeside:
    """The digest of a file of a folder that has no weights."""

    __pydantic_config__ = STRICT
    name: str
    """The file's path in the folder."""
    bytes: int
    """Its size."""
    sha256: str
    """The SHA-256 of all its bytes, in 64 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class HashedNetwork:
    """The fingerprint of one network of a model."""

    __pydantic_config__ = STRICT
    component: str
    """The network, such as unet or text_encoder."""
    layout: str
    """The layout in which the files have it; the fingerprint does not depend on it."""
    weights: int
    """How many weights it has, as a diffusers folder counts them."""
    sha256: str
    """The fingerprint, in 64 hexadecimal digits: equal for equal weights in any layout."""
    left_out: tuple[str, ...]
    """The network's tensors that are in no fingerprint of it, because not every layout has them."""


@dataclass(frozen=True, slots=True)
class HashedPath:
    """The digests of a file or folder."""

    __pydantic_config__ = STRICT
    path: str
    """The file or folder."""
    bytes: int
    """The bytes of its files with weights."""
    sha256: str
    """The SHA-256 of the file; of a folder, the digest over its files that a lock has."""
    files: tuple[HashedFile, ...]
    """Its files with weights."""
    others: tuple[HashedBeside, ...]
    """The other files of a folder."""
    tensors: int
    """How many tensors it has."""
    content: str | None
    """The fingerprint of all tensors by their names, dtypes and shapes, whatever the header, their order and the
    number of files; null where a file is not SafeTensors."""
    family: str | None
    """The model family; null where no table knows it."""
    networks: tuple[HashedNetwork, ...]
    """The networks whose names a table knows."""


@dataclass(frozen=True, slots=True)
class HashDocument:
    """The digests of files and folders."""

    __pydantic_config__ = STRICT
    paths: tuple[HashedPath, ...]
    """What was hashed, in the order of the command."""
