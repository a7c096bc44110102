"""Cut tensors into tiles. The cuts depend only on the tensor and the device class.

So the bytes depend neither on the number of workers nor on free memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch

from lorabake.execution.device import Device
from lorabake.planning.cost import DEVICE_TILE_VALUES, TILE_VALUES
from lorabake.tensors.dtypes import DTYPES


@dataclass(frozen=True, slots=True)
class Span:
    """Name bytes `start` to `stop` of the data of an output file."""

    file: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Count the bytes."""
        return self.stop - self.start


def tile_values(device: Device) -> int:
    """Return how many values a device computes at a time."""
    return TILE_VALUES if device.is_cpu else DEVICE_TILE_VALUES


def tiles_of(rows: int, columns: int, values: int) -> Iterator[tuple[int, int]]:
    """Cut rows of so many columns into tiles of about so many values: (first row, the one after the last)."""
    size = max(1, values // max(1, columns))
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


@cache
def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype by SafeTensors' name; raise TypeError where torch has none."""
    dtype = getattr(torch, str(DTYPES[name].torch), None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"torch has no {name}")
    return dtype


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return a contiguous CPU tensor's bytes without copying."""
    return memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]
