"""Short tensors, read for what they say: one number, a shape, a note, a JSON object."""

from __future__ import annotations

from lorabake.tensors.dtypes import DTYPES, decode_scalar
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.reader import read_stored
from lorabake.tensors.small import parse_json

MAX_NOTE = 4096
"""Bytes of a short tensor that says how a weight is stored."""


def read_shape(info: TensorInfo) -> tuple[int, ...]:
    """Read a tensor of a few whole numbers, such as a shape; () where it holds none."""
    if info.dtype not in ("I64", "I32", "I16", "U8") or len(info.shape) != 1:
        return ()
    raw, width = read_note(info), DTYPES[info.dtype].bits // 8
    return tuple(int.from_bytes(raw[at : at + width], "little") for at in range(0, len(raw), width))


def read_scalar(info: TensorInfo) -> float:
    """Read a tensor of one number, such as an alpha; raise ValueError, before it is read, where it holds none."""
    if info.nbytes > 8:
        raise ValueError(f"{info.nbytes} bytes are not one {info.dtype}")
    return decode_scalar(info.dtype, read_note(info))


def read_note(info: TensorInfo) -> bytes:
    """Read a short tensor, its first bytes if it is long."""
    return read_stored(info, count=min(info.nbytes, MAX_NOTE))


def read_object(info: TensorInfo) -> dict[str, object]:
    """Read a tensor of bytes that hold a JSON object; an empty one where they do not."""
    try:
        said = parse_json(read_note(info))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
