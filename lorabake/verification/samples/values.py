"""Read a checkpoint's tensors as networks see them: packed and scaled weights as what they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lorabake.codecs.codec import NOTES, Stored
from lorabake.reference.arrays import Files
from lorabake.storage.recognition import find_packing
from lorabake.storage.statements import read_beside
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.dtypes import DTYPES

if TYPE_CHECKING:
    import torch


def seen(checkpoint: Checkpoint) -> dict[str, Stored]:
    """Return a checkpoint's tensors as networks see them: packed and scaled weights whole, what unpacks them gone."""
    packing = find_packing(checkpoint, read_beside(checkpoint))
    found = packing.logical(checkpoint.tensors)
    if not packing.known:
        return found
    gone = {key for weight in packing.scaled.values() for key in weight.keys} - packing.scaled.keys()
    return {
        key: packing.scaled.get(key, info)
        for key, info in found.items()
        if key not in gone and not key.endswith((*NOTES, "scaled_fp8"))
    }


def as_torch(weight: Stored, files: Files) -> torch.Tensor:
    """Read a weight; floats become float32, and what is stored otherwise what it holds."""
    import torch

    if (info := weight.tensor) is None:
        return torch.from_numpy(files.weight(weight).astype(np.float32))
    raw = torch.frombuffer(bytearray(files.raw(info.file, info.start, info.nbytes) or b"\0"), dtype=torch.uint8)
    kind = getattr(torch, str(DTYPES[info.dtype].torch))
    tensor = raw[: info.nbytes].view(kind).reshape(info.shape)
    return tensor.float() if tensor.is_floating_point() else tensor


MODELS = {
    "base": "the base alone",
    "runtime": "the base with LoRAs",
    "floor": "the base with LoRAs, rounded",
    "baked": "the checkpoint",
}
"""Models by their names in results, in words."""


def in_words(name: str) -> str:
    """Say which model is at work: one of MODELS, "without 0" or "sweep 0.5"."""
    sort, _, which = name.partition(" ")
    if sort == "without":
        return f"without LoRA {int(which) + 1}"
    return f"strengths times {which}" if sort == "sweep" else MODELS.get(name, name)
