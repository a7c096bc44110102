"""Read tensors as NumPy arrays, float64 or float32, a few rows at a time, apart from the code that bakes."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorabake.codecs.codec import Stored
from lorabake.errors import FileError
from lorabake.machine import unreadable
from lorabake.reference.codecs import worth
from lorabake.reference.formulas.formula import Array
from lorabake.tensors.dtypes import DTYPES, decode_scalar
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.system import bytes_at, open_to_read, read_at

Bytes = NDArray[np.uint8]
Singles = NDArray[np.float32]

CHUNK, PIECE = 4 << 20, 1 << 17
F16_BITS = np.int32(0x8FFFE000 - (1 << 32))
"""Mask of a float16's sign, exponent and mantissa after they are shifted up to the sign of a float32."""

BIAS = np.float32(2.0**112)
"""Factor that corrects the exponents of such a float32."""

TINIEST = np.float32(2.0**-136)
"""What the smallest float16 becomes by the shift."""


class Woven(Protocol):
    """Be a file that does not exist: its bytes are gathered from others."""

    def fill(self, files: Files, start: int, into: Bytes) -> None:
        """Fill an array with the bytes from `start`."""


class Files:
    """Hold files open and read them from any thread; `woven` are files that are gathered from others, by path."""

    def __init__(self, woven: Mapping[Path, Woven] | None = None) -> None:
        self._fds: dict[Path, int] = {}
        self._woven = dict(woven or {})
        self._lock = threading.Lock()

    def raw(self, path: Path, start: int, count: int) -> bytes:
        """Return `count` bytes from `start`; raise FileError if the file has become shorter."""
        if path in self._woven:
            gathered = np.empty(count, np.uint8)
            self.fill(path, start, gathered)
            return gathered.tobytes()
        data = self._pread(path, count, start)
        while len(data) < count:
            more = self._pread(path, count - len(data), start + len(data))
            if not more:
                raise FileError(f"{path}: became shorter while it was read")
            data += more
        return data

    def fill(self, path: Path, start: int, into: Bytes) -> None:
        """Fill an array with the bytes from `start`; raise FileError if the file has become shorter."""
        if path in self._woven:
            self._woven[path].fill(self, start, into)
            return
        done = 0
        while done < len(into):
            fd = self._opened(path)
            try:
                count = read_at(fd, into[done:].data, start + done)
            except OSError as error:
                raise unreadable(path, error) from None
            if not count:
                raise FileError(f"{path}: became shorter while it was read")
            done += count

    def _pread(self, path: Path, count: int, start: int) -> bytes:
        fd = self._opened(path)
        try:
            return bytes_at(fd, count, start)
        except OSError as error:
            raise unreadable(path, error) from None

    def _opened(self, path: Path) -> int:
        with self._lock:
            fd = self._fds.get(path)
            if fd is None:
                try:
                    fd = self._fds[path] = open_to_read(path)
                except OSError as error:
                    raise FileError(f"{path}: cannot be read: {error.strerror}") from None
        return fd

    def rows(self, info: TensorInfo, start: int, stop: int, columns: int) -> Array:
        """Return rows of a tensor as (rows, columns)."""
        width = DTYPES[info.dtype].bits // 8
        raw = self.raw(info.file, info.start + start * columns * width, (stop - start) * columns * width)
        return decode(info.dtype, raw).reshape(stop - start, columns)

    def weight_rows(self, weight: Stored, start: int, stop: int, columns: int) -> Array:
        """Return rows of a weight as (rows, columns)."""
        if weight.tensor is not None:
            return self.rows(weight.tensor, start, stop, columns)
        return self.weight(weight).reshape(-1, columns)[start:stop]

    def single(self, weight: Stored) -> Singles | None:
        """Return a whole plain weight in its own shape as float32; None if float32 cannot hold all of its values."""
        info = weight.tensor
        if info is None or not DTYPES[info.dtype].fits_single:
            return None
        raw, into = np.empty(info.nbytes, np.uint8), np.empty(prod(info.shape), np.float32)
        self.fill(info.file, info.start, raw)
        widen(info.dtype, raw.view(f"<u{DTYPES[info.dtype].bits // 8}"), into)
        return into.reshape(info.shape) if not _may_be_none(info.dtype, into) else None

    def weight(self, weight: Stored) -> Array:
        """Return the values of a weight, decoded, in its own shape."""
        if weight.tensor is not None:
            return self.whole(weight.tensor)
        return worth(weight, lambda role: self.stored(weight.parts[role]))

    def whole(self, info: TensorInfo) -> Array:
        """Return a whole tensor in its own shape, as numbers."""
        if info.nbytes <= PIECE:
            return decode(info.dtype, self.raw(info.file, info.start, info.nbytes)).reshape(info.shape)
        width, raw = DTYPES[info.dtype].bits // 8, np.empty(PIECE, np.uint8)
        values = np.empty(info.nbytes // width)
        for place in range(0, info.nbytes, PIECE):  # fresh memory costs more than the work in it
            piece = raw[: info.nbytes - place]
            self.fill(info.file, info.start + place, piece)
            values[place // width : (place + len(piece)) // width] = decode(info.dtype, piece)
        return values.reshape(info.shape)

    def stored(self, info: TensorInfo) -> NDArray[Any]:
        """Return a part of a packed weight: bytes unchanged, numbers of any dtype as float64."""
        if info.dtype == "U8":
            return np.frombuffer(self.raw(info.file, info.start, info.nbytes), np.uint8).reshape(info.shape)
        return self.whole(info)

    def equal(self, one: TensorInfo, other: TensorInfo) -> bool:
        """Tell whether two tensors hold the same bytes."""
        if one.nbytes != other.nbytes:
            return False
        buffers = [np.empty(min(one.nbytes, PIECE), np.uint8) for _ in range(2)]
        for place in range(0, one.nbytes, PIECE):
            pieces = [each[: one.nbytes - place] for each in buffers]
            for info, piece in zip((one, other), pieces, strict=True):
                self.fill(info.file, info.start + place, piece)
            if not np.array_equal(pieces[0], pieces[1]):
                return False
        return True

    def close(self) -> None:
        """Close every file."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def decode(dtype: str, raw: bytes | Bytes) -> Array:
    """Widen little-endian values of any dtype with a plain number, given as bytes, to float64."""
    if dtype in ("F16", "BF16"):
        halves = np.frombuffer(raw, "<u2")
        singles = np.empty(halves.shape, np.float32)
        widen(dtype, halves, singles)
        if not _may_be_none(dtype, singles):
            return _doubles(singles)
    if dtype in ("F8_E4M3", "F8_E5M2"):
        values = np.array([decode_scalar(dtype, bytes([byte])) for byte in range(256)])
        return np.asarray(values[np.frombuffer(raw, np.uint8)])
    if dtype == "F8_E8M0":
        exponents = np.frombuffer(raw, np.uint8).astype(np.float64) - 127
        return np.asarray(np.where(exponents == 128, np.nan, np.exp2(exponents)))
    values_of_any: NDArray[Any] = np.frombuffer(raw, f"<{DTYPES[dtype].code}")
    return _doubles(values_of_any)


def _may_be_none(dtype: str, widened: Singles) -> bool:
    """Tell whether float16 values may include NaN or infinity, which `widen` would treat as finite."""
    return dtype == "F16" and max(float(widened.max(initial=0.0)), -float(widened.min(initial=0.0))) >= 2.0**16


def _doubles(values: NDArray[Any]) -> Array:
    with np.errstate(invalid="ignore"):  # signalling NaN
        return values.astype(np.float64)


def widen(dtype: str, stored: NDArray[Any], into: Singles) -> None:
    """Widen float16, bfloat16 or float8 values to float32, or take that as it is; they come as whole numbers.

    NaN and infinity in float16 become 65,536 or more; the other dtypes keep them. These four passes take a fifth of
    the time of NumPy's own conversion of float16.
    """
    if dtype == "F16":
        bits = into.view(np.int32)
        np.copyto(bits, stored.view("<i2"))  # the sign fills the upper half
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, F16_BITS, out=bits)
        np.multiply(into, BIAS, out=into)
        if not TINIEST * BIAS:  # a library has made the processor flush denormal numbers to zero
            np.copyto(into, stored.view("<f2"))
    elif dtype == "BF16":
        np.copyto(into.view(np.uint32), stored)
        np.left_shift(into.view(np.uint32), 16, out=into.view(np.uint32))
    elif dtype == "F32":
        np.copyto(into, stored.view("<f4"))
    else:
        np.take(decode(dtype, bytes(range(256))).astype(np.float32), stored, out=into, mode="clip")
