"""The SafeTensors container: read a header that may be hostile, and encode one byte for byte.

A file is 8 bytes (little-endian length of the header), the header (JSON), and the tensors' data. Offsets in
the JSON count from the data's start; the ones in this program, from the file's.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from lorabake.errors import FileError
from lorabake.machine import unreadable
from lorabake.tensors.dtypes import DTYPES, nbytes
from lorabake.tensors.header import MAX_DIMENSIONS, MAX_HEADER, Fingerprint, Header, TensorInfo, check_count
from lorabake.tensors.magic import BY_NAME, PICKLE, SAFETENSORS, SNIFFED, ZIP, Format, format_of
from lorabake.tensors.reader import fingerprint_of, is_folder
from lorabake.visible import brief

_LENGTH_BYTES = 8
_FIELDS = {"dtype", "shape", "data_offsets"}
_LIMIT = 2**63
_DOWNLOAD = "Download it again."


def read_header(path: Path) -> Header:
    """Read a file's header and check it against the file, so that other code can trust it.

    Raise FileError for every fault. For a file of another format, the message names that format.
    """
    raw, size, identity = _read_raw(path)
    try:
        entries = parse_object(raw[_LENGTH_BYTES:])
    except ValueError as error:
        raise FileError(f"{path}: the header is {error}") from None
    metadata = _checked_metadata(path, entries.pop("__metadata__", {}))
    check_count(path, len(entries))
    tensors = {}
    for key in [*entries]:  # one at a time, because parsed JSON takes three times the memory of a TensorInfo
        tensors[key] = _checked_entry(path, key, entries.pop(key), len(raw))
    _check_layout(path, tensors.values(), len(raw), size)
    digest = hashlib.sha256(raw).hexdigest()
    return Header(path, tensors, metadata, len(raw), size, digest, identity=identity)


def parse_object(raw: bytes) -> dict[str, object]:
    """Parse a JSON object more strictly than `json`: UTF-8, no duplicate keys, no half surrogate pairs.

    Raise ValueError whose message completes "the text is …".
    """
    try:
        text = raw.decode()
        value = json.loads(text, object_pairs_hook=_object)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except _DuplicateKeyError as error:
        raise ValueError(f"ambiguous: the key {brief(error.key)} is there twice") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.start} is {raw[error.start]:#04x}") from None
    except UnicodeEncodeError:
        raise ValueError("not Unicode: it has half of a surrogate pair") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {brief(value)}")
    return value


def encode_header(
    entries: Iterable[tuple[str, str, tuple[int, ...]]],
    metadata: Mapping[str, str],
    *,
    phase: int = 0,
    align: int = 1,
    order: Sequence[str] | None = None,
    room: int = 0,
) -> bytes:
    """Encode everything before the data, always the same bytes for the same arguments.

    `entries` are (key, dtype, shape) in the order of the data, which has no gaps. `order` lists the keys in the order
    of the JSON, if that differs. Spaces pad the result to a multiple of 8 bytes that leaves the same remainder as
    `phase` when divided by `align`. So untouched tensors can keep their place relative to the file system's blocks,
    and share them with the base instead of being copied. `room` adds spaces, which longer metadata may use up later.

    Raise ValueError for a repeated or reserved key, for an `order` with other keys, and for an `align` or `phase`
    that is not a multiple of 8 (`align` may be 1). Raise KeyError for an unknown dtype.
    """
    if align != 1 and (align % 8 or phase % 8):
        raise ValueError(f"align {align} and phase {phase} must be multiples of 8")
    described: dict[str, object] = {}
    position = 0
    for key, dtype, shape in entries:
        if key in described or key == "__metadata__":
            raise ValueError(f"the key {key!r} is reserved or there twice")
        stop = position + nbytes(dtype, shape)
        described[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    if order is not None:
        if len(order) != len(described) or set(order) != described.keys():
            raise ValueError("order must list each key of the entries once")
        described = {key: described[key] for key in order}
    if metadata:
        described = {"__metadata__": dict(sorted(metadata.items())), **described}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * room
    padding = (phase - _LENGTH_BYTES - len(text)) % align if align != 1 else -len(text) % 8
    return struct.pack("<Q", len(text) + padding) + text + b" " * padding


class _DuplicateKeyError(ValueError):
    """Carry the key out of the JSON parser."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _DuplicateKeyError(counts.most_common(1)[0][0])
    return result


def _read_raw(path: Path) -> tuple[bytes, int, Fingerprint]:
    """Return the bytes before the data, whose length is checked, the file's size and its fingerprint."""
    if is_folder(path):
        raise FileError(f"{path}: is a folder, not a file")
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            head = file.read(SNIFFED)
            length = _checked_length(path, head, size)
            raw = (head + file.read(max(0, length - len(head))))[:length]
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if len(raw) < length:
        raise FileError(f"{path}: changed while it was read")
    return raw, size, fingerprint_of(status)


def _advice(form: Format, path: Path) -> str:
    """Say what to do with a file of another format; a pickle needs another name to be read as one."""
    if form in (ZIP, PICKLE) and path.suffix.lower() == ".safetensors":
        return f"If it holds the model or LoRA, rename it to {path.with_suffix('.pt').name}, or convert it."
    return form.advice


def _checked_length(path: Path, head: bytes, size: int) -> int:
    """Return the number of bytes before the data."""
    if not head:
        raise FileError(f"{path}: the file is empty", _DOWNLOAD)
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    begins_well = head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"
    if begins_well and length <= min(MAX_HEADER, size - _LENGTH_BYTES):
        return _LENGTH_BYTES + length
    form = format_of(head) or BY_NAME.get(path.suffix.lower())
    if form is not None and form is not SAFETENSORS:
        raise FileError(f"{path}: is {form.title}, not SafeTensors", _advice(form, path))
    if len(head) < _LENGTH_BYTES:
        raise FileError(f"{path}: too short for SafeTensors: {len(head)} bytes", _DOWNLOAD)
    if length > MAX_HEADER:
        raise FileError(f"{path}: not SafeTensors: the header would take {length} bytes, the limit is {MAX_HEADER}")
    if length > size - _LENGTH_BYTES:
        raise FileError(
            f"{path}: truncated: the header alone takes {_LENGTH_BYTES + length} bytes, the file has {size}",
            _DOWNLOAD,
        )
    raise FileError(f"{path}: not SafeTensors: the header does not begin with '{{'")


def _checked_metadata(path: Path, value: object) -> dict[str, str]:
    if value is None:  # MLX writes null if there are no metadata, and the safetensors library accepts it
        return {}
    if not isinstance(value, dict):
        raise FileError(f"{path}: __metadata__ is not an object but {brief(value)}")
    for key, entry in value.items():
        if not isinstance(entry, str):
            raise FileError(f"{path}: __metadata__ {brief(key)} is not a string but {brief(entry)}")
    return value


def _checked_entry(path: Path, key: str, entry: object, data_start: int) -> TensorInfo:
    """Check all that can be checked without the other tensors."""

    def fault(what: str) -> FileError:
        return FileError(f"{path}: tensor {brief(key)}: {what}")

    if not isinstance(entry, dict):
        raise fault(f"described by {brief(entry)}, not by an object")
    if entry.keys() != _FIELDS:
        raise fault(f"has the fields {brief(sorted(entry))}, not data_offsets, dtype and shape")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FileError(f"{fault(f'unknown dtype {brief(dtype)}')}", f"Known: {', '.join(DTYPES)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise fault(f"impossible shape {brief(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise fault(f"data_offsets {brief(offsets)} are not two positions")
    start, stop = offsets
    if start > stop:
        raise fault(f"data_offsets {offsets} run backwards")
    try:
        expected = nbytes(dtype, shape)
    except ValueError as error:
        raise fault(str(error)) from None
    if expected >= _LIMIT:
        raise fault(f"impossible shape {brief(shape)}")
    if expected != stop - start:
        raise fault(f"{dtype} {shape} takes {expected} bytes, but data_offsets give it {stop - start}")
    return TensorInfo(key, key, dtype, tuple(shape), path, data_start + start, data_start + stop)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or not {*map(type, value)} <= {int}:
        return False
    return not value or (min(value) >= 0 and max(value) < _LIMIT)


def _check_layout(path: Path, tensors: Iterable[TensorInfo], data_start: int, size: int) -> None:
    """Check that the tensors cover the data: each byte exactly once, up to the end of the file."""
    position, before = data_start, None
    for info in sorted(tensors, key=lambda info: (info.start, info.stop)):
        if info.start > position:
            where = "before" if before is None else f"between {brief(before)} and"
            raise FileError(f"{path}: {info.start - position} unused bytes {where} {brief(info.key)}")
        if info.start < position:
            raise FileError(f"{path}: tensors {brief(before)} and {brief(info.key)} overlap")
        position, before = info.stop, info.key
    if position > size:
        raise FileError(
            f"{path}: truncated: the header describes {position} bytes, the file has {size}",
            f"{position - size} bytes are missing. {_DOWNLOAD}",
        )
    if position < size:
        raise FileError(f"{path}: {size - position} unused bytes after the last tensor")
