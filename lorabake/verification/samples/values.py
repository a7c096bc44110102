"""Read a checkpoint's tensors as networks see them: packed and scaled weights as what they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lorabake.reference.arrays import Files
from lorabake.storage.recognition import NOTES, find_packing
from lorabake.storage.statements import read_beside
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.packing import PackedInfo

if TYPE_CHECKING:
    import torch


def seen(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return a checkpoint's tensors as networks see them: packed and scaled weights whole, what unpacks them gone."""
    packing = find_packing(checkpoint, read_beside(checkpoint))
    found = packing.logical(checkpoint.tensors)
    if not packing.packed and not packing.scaled:
        return found
    gone = {part.key for info in packing.scaled.values() for part in info.parts.values()} - packing.scaled.keys()
    return {
        key: packing.scaled.get(key, info)
        for key, info in found.items()
        if key not in gone and not key.endswith((*NOTES, "scaled_fp8"))
    }


def as_torch(info: TensorInfo, files: Files) -> torch.Tensor:
    """Read a tensor; floats become float32, and packed weights what they hold."""
    import torch

    if isinstance(info, PackedInfo):
        return torch.from_numpy(files.whole(info).astype(np.float32))
    raw = torch.frombuffer(bytearray(files.raw(info.file, info.start, info.nbytes) or b"\0"), dtype=torch.uint8)
    kind = getattr(torch, str(DTYPES[info.dtype].torch))
    tensor = raw[: info.nbytes].view(kind).reshape(info.shape)
    return tensor.float() if tensor.is_floating_point() else tensor
