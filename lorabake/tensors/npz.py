"""NumPy archives (`.npz`), as MLX once saved LoRAs: read in place, as any other file, and without pickled objects.

An archive is a zip file that stores one `.npy` file an array: a short header, then the values. MLX marks bfloat16 as
two bytes of no type, and matrices that it holds by columns as Fortran's order.
"""

from __future__ import annotations

import hashlib
import struct
import tokenize
import zipfile
from pathlib import Path
from typing import IO

from lorabake.errors import FileError, lines_of
from lorabake.tensors.dtypes import nbytes
from lorabake.tensors.packing import turned
from lorabake.tensors.safetensors import Header, TensorInfo, why

_LOCAL_HEADER = 30
_DTYPES = {
    "<f8": "F64", "<f4": "F32", "<f2": "F16", "<V2": "BF16", "|V2": "BF16",
    "<i8": "I64", "<i4": "I32", "<i2": "I16", "|i1": "I8",
    "<u8": "U64", "<u4": "U32", "<u2": "U16", "|u1": "U8", "|b1": "BOOL",
}  # fmt: skip
_SAVE = "Load it with numpy.load, and save its arrays with safetensors.numpy.save_file."


def open_npz(path: Path) -> Header:
    """Find where an archive's arrays lie, and read none; raise FileError for what is no plain stored array."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            members = archive.infolist()
            tensors = {info.key: info for info in (_array(path, stream, member) for member in members)}
            size = stream.seek(0, 2)
            data_start = min((info.start for info in tensors.values()), default=0)
            stream.seek(0)
            digest = hashlib.sha256(stream.read(data_start)).hexdigest()
        if len(tensors) < len(members):
            raise ValueError("two arrays have one name")
        if any(info.stop > size for info in tensors.values()):
            raise ValueError("an array goes beyond its end")
    except OSError as error:
        raise FileError(*lines_of(f"{path}: ", why(error))) from None
    except (
        EOFError,
        MemoryError,
        NotImplementedError,
        RecursionError,
        SyntaxError,
        ValueError,
        struct.error,
        tokenize.TokenError,
        zipfile.BadZipFile,
    ) as error:  # whatever zipfile's and NumPy's readers stumble over in a damaged file
        raise FileError(f"{path}: a damaged NumPy archive: {error!s:.100}", "Download it again.") from None
    return Header(path, tensors, {}, data_start, size, digest)


def _array(path: Path, stream: IO[bytes], member: zipfile.ZipInfo) -> TensorInfo:
    name = member.filename.removesuffix(".npy")
    if name == member.filename:
        raise FileError(f"{path}: holds {member.filename!r}, which is no array")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise FileError(f"{path}: {name!r} is compressed or encrypted, and cannot be read in place", _SAVE)
    stream.seek(member.header_offset)
    local = stream.read(_LOCAL_HEADER)
    start = stream.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), 1)
    shape, by_columns, dtype = _read_header(stream)
    first, stop = stream.tell(), start + member.file_size
    if dtype not in _DTYPES:
        raise FileError(f"{path}: {name!r} holds {dtype}, no plain numbers of this machine's order of bytes", _SAVE)
    if first + nbytes(_DTYPES[dtype], shape) != stop:
        raise ValueError(f"{name!r} says {shape} of {dtype}, and is {stop - first} bytes")
    if not by_columns or len(shape) < 2:
        return TensorInfo(name, name, _DTYPES[dtype], shape, path, first, stop)
    if len(shape) > 2:
        raise FileError(f"{path}: {name!r} is stored by columns", _SAVE)
    return turned(TensorInfo(name, name, _DTYPES[dtype], shape[::-1], path, first, stop))


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, str]:
    """Return an array's shape, whether it is stored by columns, and its dtype; `stream` is at its values then."""
    from numpy.lib import format as npy

    major, _ = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    return shape, by_columns, dtype.str
