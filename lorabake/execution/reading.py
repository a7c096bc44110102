"""Read tensors of the inputs, and convert them to the compute dtype on the device."""

from __future__ import annotations

import time
from collections import defaultdict

import torch

from lorabake.adapters.shapes import matrix
from lorabake.codecs.codec import Stored
from lorabake.execution.device import Buffer, Lane
from lorabake.execution.ends import Reader
from lorabake.execution.tiles import bytes_of, torch_dtype
from lorabake.tensors.header import TensorInfo

Seconds = defaultdict[str, float]
"""Where a worker's time went, by stage."""


class Loader:
    """Read for one worker, through its lane; `dtype` is that of the arithmetic."""

    def __init__(self, reader: Reader, lane: Lane, dtype: torch.dtype, seconds: Seconds) -> None:
        self.dtype, self.lane = dtype, lane
        self._reader, self._seconds = reader, seconds

    def raw(self, info: TensorInfo) -> bytes:
        """Read a small tensor's bytes."""
        raw = bytearray(info.nbytes)
        self._reader.read(info.file, info.start, memoryview(raw))
        return bytes(raw)

    def whole(self, weight: Stored) -> torch.Tensor:
        """Read a whole weight into the compute dtype on the device, decoded, in its own shape."""
        if (info := weight.tensor) is not None:
            return self.rows(info, 0, *matrix(info.shape)).reshape(info.shape)
        return weight.decode({role: self.stored(part) for role, part in weight.parts.items()}, self.dtype)

    def integers(self, weight: Stored) -> torch.Tensor:
        """Read a whole weight of integers as stored, or decoded if it is not plain."""
        return self.whole(weight) if weight.tensor is None else self.stored(weight.tensor)

    def stored(self, info: TensorInfo) -> torch.Tensor:
        """Read a whole tensor as it is stored."""
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        self._reader.read(info.file, info.start, bytes_of(raw))
        return raw.view(torch_dtype(info.dtype)).reshape(info.shape).to(self.lane.device.place)

    def rows(self, info: TensorInfo, start: int, stop: int, columns: int) -> torch.Tensor:
        """Read rows of a tensor into the compute dtype on the device, in memory of their own."""
        buffer, source = self.stored_rows(info, start, stop, columns)
        return self.widened(buffer, source, fresh=True).view(stop - start, columns)

    def stored_rows(self, info: TensorInfo, start: int, stop: int, columns: int) -> tuple[Buffer, torch.Tensor]:
        """Read rows of a tensor as they are stored; return the worker's buffer, and flat the values in it."""
        began = time.perf_counter()
        dtype = torch_dtype(info.dtype)
        size = (stop - start) * columns * dtype.itemsize
        buffer = self.lane.buffer("in", size)
        self._reader.read(info.file, info.start + start * columns * dtype.itemsize, buffer.bytes_to_fill()[:size])
        self._seconds["read"] += time.perf_counter() - began
        return buffer, buffer.to_read()[:size].view(dtype)

    def widened(self, buffer: Buffer, source: torch.Tensor, *, fresh: bool = False) -> torch.Tensor:
        """Bring values in a buffer into the compute dtype on the device; into the worker's own unless `fresh`."""
        began = time.perf_counter()
        if not self.lane.device.is_cpu:
            weight = self.lane.send(buffer, source.numel(), source.dtype).to(self.dtype)
        elif fresh:
            weight = source.to(self.dtype, copy=True)
        else:
            size = source.numel() * self.dtype.itemsize
            weight = self.lane.buffer("weight", size).to_fill()[:size].view(self.dtype)
            weight.copy_(source)
        self._seconds["compute"] += time.perf_counter() - began
        return weight
