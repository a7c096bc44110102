"""Read NumPy archives (`.npz`), as older MLX saved LoRAs: in place, and without pickled objects.

An archive is a zip file with one `.npy` file for each array: a short header, then the values. MLX writes bfloat16 as
two untyped bytes, and matrices that it keeps by columns in Fortran order.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import BinaryIO, Final

from lorabake.errors import FileError
from lorabake.machine import unreadable
from lorabake.tensors.archives import Archive, ArchiveError, Member, open_archive
from lorabake.tensors.dtypes import nbytes
from lorabake.tensors.header import MAX_DIMENSIONS, Header, TensorInfo
from lorabake.tensors.reader import fingerprint

MAX_HEAD: Final = 10_000
"""Most bytes of the header before an array's values; NumPy writes 128 and reads at most this many."""

_FIELD = re.compile(r"'(descr|fortran_order|shape)': *('[^']*'|\[[^]]*\]|True|False|\([\d, ]{0,1999}\))")

_DTYPES = {
    "<f8": "F64", "<f4": "F32", "<f2": "F16", "<V2": "BF16", "|V2": "BF16",
    "<i8": "I64", "<i4": "I32", "<i2": "I16", "|i1": "I8",
    "<u8": "U64", "<u4": "U32", "<u2": "U16", "|u1": "U8", "|b1": "BOOL",
}  # fmt: skip
_SAVE = "Load it with numpy.load, and save its arrays with safetensors.numpy.save_file."


def open_npz(path: Path) -> Header:
    """Find the arrays of an archive without reading them; raise FileError for anything but plain stored arrays."""
    identity = fingerprint(path)
    try:
        with open_archive(path) as archive, path.open("rb") as stream:
            return _header(path, archive, stream, identity)
    except OSError as error:
        raise unreadable(path, error) from None
    except ArchiveError as error:
        raise FileError(f"{path}: a damaged NumPy archive: {error!s:.100}", "Download it again.") from None


def _header(path: Path, archive: Archive, stream: BinaryIO, identity: tuple[int, ...]) -> Header:
    members = archive.members.values()
    tensors = {info.key: info for info in (_array(path, stream, member) for member in members)}
    size = stream.seek(0, 2)
    data_start = min((info.start for info in tensors.values()), default=0)
    stream.seek(0)
    digest = hashlib.sha256(stream.read(data_start)).hexdigest()
    if len(tensors) < len(members):
        raise ArchiveError("two arrays have one name")
    records = tuple(member.record for member in members)
    return Header(path, tensors, {}, data_start, size, digest, records=records, identity=identity)


def _array(path: Path, stream: BinaryIO, member: Member) -> TensorInfo:
    name = member.name.removesuffix(".npy")
    if name == member.name:
        raise FileError(f"{path}: holds {name!r:.100}, which is no array")
    if member.is_packed:
        raise FileError(f"{path}: {name!r:.100} is compressed, and cannot be read in place", _SAVE)
    stream.seek(member.start)
    shape, by_columns, dtype, length = _read_head(stream.read(min(member.size, MAX_HEAD)))
    if dtype not in _DTYPES:
        raise FileError(
            f"{path}: {name!r:.100} holds {dtype:.50}, no plain numbers of this machine's order of bytes", _SAVE
        )
    first = member.start + length
    if first + nbytes(_DTYPES[dtype], shape) != member.stop:
        raise ArchiveError(f"{name!r:.50} says {str(shape)[:99]} of {dtype}, and is {member.stop - first} bytes")
    if not by_columns or len(shape) < 2:
        return TensorInfo(name, name, _DTYPES[dtype], shape, path, first, member.stop)
    if len(shape) > 2:
        raise FileError(f"{path}: {name!r:.100} is stored by columns", _SAVE)
    return TensorInfo(name, name, _DTYPES[dtype], shape[::-1], path, first, member.stop, by_columns=True)


def _read_head(head: bytes) -> tuple[tuple[int, ...], bool, str, int]:
    """Return an array's shape, whether it is stored by columns, its dtype, and the length of its header.

    The text is a dict as Python writes it (numpy.lib.format, versions 1 to 3).
    """
    if head[:6] != b"\x93NUMPY" or head[6:7] not in (b"\1", b"\2", b"\3"):
        raise ArchiveError("no array begins there")
    width = 2 if head[6] == 1 else 4
    length = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    if length > len(head):
        raise ArchiveError("an array's header is too long, or ends early")
    text = head[8 + width : length].decode("latin-1")
    said = dict(_FIELD.findall(text))
    if said.keys() != {"descr", "fortran_order", "shape"} or _FIELD.sub("", text).strip(" \n,{}"):
        raise ArchiveError("an array's header says other things than its dtype, order and shape")
    shape = tuple(int(side) for side in re.findall(r"\d+", said["shape"]))
    if len(shape) > MAX_DIMENSIONS or max(shape, default=0) >= 1 << 62:
        raise ArchiveError("its shape is none")
    return shape, said["fortran_order"] == "True", said["descr"].strip("'"), length
