"""Headers: what is known of a file of tensors, of whatever format, once it has been checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lorabake.errors import FileError
from lorabake.visible import brief, short_repr

MAX_HEADER = 100_000_000
"""Most bytes of a header; the safetensors library has the same limit."""

MAX_NAME = 1000
"""Most letters of a tensor's name; released models have up to 200."""

MAX_TENSORS = 2_000_000
"""Most tensors of one model or LoRA, in all of its files."""

MAX_DIMENSIONS = 64
"""Most dimensions of a tensor; torch has the same limit. It also bounds the product of a hostile shape."""

EMBEDDING = "<embed>"
"""Marks a learned embedding in cloneofsimo's metadata: {"<s1>": "<embed>"}."""

Fingerprint = tuple[int, ...]
"""Identifies a version of a file: device, inode, size, and the times of change of content and of status (ns).

It misses a change only if an earlier one happened within the same tick of the file system's clock (some ms).
"""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Say where a tensor lies, without its data.

    `name` is the key as the file spells it; `key` has the folder in front where the checkpoint is a diffusers
    folder (`unet/conv_in.weight`). `start` and `stop` are byte offsets in `file`. A matrix that is stored
    `by_columns` lies there as its transpose, whose shape `shape` is.
    """

    __repr__ = short_repr

    key: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int
    by_columns: bool = False

    @property
    def nbytes(self) -> int:
        """Count the bytes of data."""
        return self.stop - self.start


class Described(Protocol):
    """Say what a tensor is called and how large it is, wherever and however it is stored."""

    @property
    def key(self) -> str:
        """Return its key, which has the component's folder in front."""

    @property
    def name(self) -> str:
        """Return its key as the file spells it."""

    @property
    def dtype(self) -> str:
        """Return its dtype, or what it is stored as."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape."""


@dataclass(frozen=True, slots=True)
class Record:
    """State the CRC-32 that the bytes from `start` to `stop` of a file must have."""

    start: int
    stop: int
    crc: int


@dataclass(frozen=True, slots=True)
class Header:
    """Describe one file of tensors whose header has been checked.

    `tensors` keeps the order of the JSON. `data_start` and `size` count bytes from the file's start. `sha256` is the
    hex digest of all bytes before the data; for a pickle, whose data lie anywhere, that of an equivalent SafeTensors
    header. `facts` are what a GGUF file says of its model, `records` the checksums in a zip archive, and `identity`
    the file's fingerprint when it was read.
    """

    __repr__ = short_repr

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    size: int
    sha256: str
    facts: Mapping[str, object] = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    identity: Fingerprint = ()

    def __post_init__(self) -> None:
        """Raise FileError for names of tensors that are too long."""
        if longest := next((info.name for info in self.tensors.values() if len(info.name) > MAX_NAME), None):
            raise FileError(
                f"{self.path}: a tensor's name has {len(longest):,} letters, and {MAX_NAME:,} are the limit: "
                f"{brief(longest)}"
            )

    def in_order(self) -> list[TensorInfo]:
        """List the tensors in the order of their data; a pickle's, whose data lie anywhere, in its own order."""
        if not self.data_start:
            return [*self.tensors.values()]
        return sorted(self.tensors.values(), key=lambda info: (info.start, info.stop))


def check_count(path: Path, tensors: int) -> None:
    """Raise FileError for too many tensors."""
    if tensors > MAX_TENSORS:
        raise FileError(f"{path}: has {tensors:,} tensors, and {MAX_TENSORS:,} are the limit")
