"""Find files that were saved without their content, so that their tensors are empty.

DeepSpeed's ZeRO-3 and FSDP split each parameter over all processes. If a program saves without gathering the parts,
the file has parameters of shape (0,), except the few that are too small to be split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lorabake.errors import FileError
from lorabake.tensors.header import TensorInfo
from lorabake.visible import some

WEIGHT = "weight"
"""Ending of keys that are never empty in a good checkpoint."""

ADVICE = (
    "Save it anew with its weights gathered: stage3_gather_16bit_weights_on_model_save: true for DeepSpeed, a full "
    "state dict for FSDP.",
    "A checkpoint of the training may still hold them: zero_to_fp32.py puts one together.",
)


def hollow_words(tensors: Mapping[str, TensorInfo], ends: str = "") -> str:
    """Say how many of a file's tensors are empty, and why; "" if none is.

    Unless all tensors are empty, only keys with the ending `ends` count, because some formats have empty tensors
    beside the weights.
    """
    hollow = [key for key, info in tensors.items() if info.shape == (0,)]
    if len(hollow) == len(tensors):
        count = f"all of its {len(tensors)} tensors are empty"
    elif hollow := [key for key in hollow if key.endswith(ends)]:
        count = f"{len(hollow)} of its {len(tensors)} tensors are empty ({some(hollow)})"
    return f"{count}: it was saved under DeepSpeed ZeRO-3 or FSDP without gathering the weights" if hollow else ""


def check_lora(name: str, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise FileError if all tensors of a LoRA are empty. If only some are, matching refuses them."""
    if tensors and all(info.shape == (0,) for info in tensors.values()):
        raise FileError(f"LoRA {name!r}: {hollow_words(tensors)}", *ADVICE)


def check_checkpoint(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise FileError for a checkpoint with empty weights."""
    if hollow := hollow_words(tensors, WEIGHT):
        raise FileError(f"{path}: {hollow}", *ADVICE)
