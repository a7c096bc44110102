"""Headers: what is known of a file of tensors, of whatever format, once it has been checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorabake.errors import FileError
from lorabake.visible import brief

MAX_HEADER = 100_000_000
"""Bytes of JSON beyond which the safetensors library refuses a file, and so does lorabake."""

MAX_NAME = 1000
"""Letters of a tensor's name beyond which a file is refused; those of released models have up to 200."""

MAX_TENSORS = 2_000_000
"""Tensors of one model or LoRA, in all of its files, beyond which it is refused."""

MAX_DIMENSIONS = 64
"""torch's own limit; it also keeps a hostile shape's product small."""

Fingerprint = tuple[int, ...]
"""Device, inode, size, times of change of content and of status (ns).

A change leaves all as they are only within one tick of the file system's clock (some ms) after the one before.
"""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Say where a tensor lies; holds no data.

    `name` is the key as the file spells it; `key` has the folder in front where the checkpoint is a diffusers
    folder (`unet/conv_in.weight`). `start` and `stop` are byte offsets in `file`.
    """

    key: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Count the bytes of data."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Record:
    """Say what the bytes from `start` to `stop` of a file have to come to, by CRC-32."""

    start: int
    stop: int
    crc: int


@dataclass(frozen=True, slots=True)
class Header:
    """Describe one file of tensors whose header has been checked.

    `tensors` keeps the order of the JSON; `data_start` and `size` are in bytes from the file's start;
    `sha256` is the hex digest of all bytes before the data; of a pickle, whose tensors lie anywhere, that of the
    SafeTensors header that would hold them. `facts` is what a GGUF file says of its model, `records` what a zip
    archive says of its bytes; `identity` is the file's fingerprint when it was read.
    """

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    size: int
    sha256: str
    facts: Mapping[str, object] = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    identity: Fingerprint = ()

    def __post_init__(self) -> None:
        """Raise FileError for names of tensors that no program gave."""
        if longest := next((info.name for info in self.tensors.values() if len(info.name) > MAX_NAME), None):
            raise FileError(
                f"{self.path}: a tensor's name has {len(longest):,} letters, and {MAX_NAME:,} are the limit: "
                f"{brief(longest)}"
            )

    def in_order(self) -> list[TensorInfo]:
        """List the tensors in the order of their data; those of a pickle, whose data lie anywhere, in its own."""
        if not self.data_start:
            return [*self.tensors.values()]
        return sorted(self.tensors.values(), key=lambda info: (info.start, info.stop))


def check_count(path: Path, tensors: int) -> None:
    """Raise FileError for more tensors than lorabake takes."""
    if tensors > MAX_TENSORS:
        raise FileError(f"{path}: has {tensors:,} tensors, and {MAX_TENSORS:,} are the limit")
