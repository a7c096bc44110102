"""kohya's `split_qkv`: q, k and v trained apart, then saved as one module of the fused layer.

Such a module has the parts' downs below each other and their ups on the diagonal of blocks, and an alpha that is
still that of one part: its scale is alpha over a part's rank. The trainer's metadata says so; where there is
none, the zeros beside the diagonal and the scale of the file's other modules do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorabake.keymap.slots import LoraModule
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.packing import read_scalar
from lorabake.tensors.reader import is_there, read_stored
from lorabake.tensors.small import parse_json

NOTE = "q, k and v were trained apart (split_qkv): alpha is over the rank of one part in {count} modules, by {source}"


def said_by(metadata: Mapping[str, str]) -> bool | None:
    """Return what the trainer's metadata says of split_qkv; None where it has no arguments of the network.

    kohya's script that changes ranks keeps these, but not the blocks; it leaves a comment.
    """
    comment = metadata.get("ss_training_comment", "")
    if "is resized from" in comment or "Dynamic resize with" in comment:
        return None
    try:
        arguments = parse_json(metadata.get("ss_network_args", "null"))
    except ValueError:
        return None
    return str(arguments.get("split_qkv")) == "True" if isinstance(arguments, dict) else None


def seen_in(module: LoraModule, sizes: Sequence[int], scales: set[float]) -> bool:
    """Tell by a fused module's values whether its parts were trained apart.

    `sizes` are the rows of the parts, `scales` those of the file's modules that are not fused: a converted file,
    too, may have blocks on the diagonal, but its alpha is for them all.
    """
    rank = module.shapes["down"][0]
    alpha = alpha_of(module)
    if alpha is None:
        return False
    whole, part = alpha / rank, alpha * len(sizes) / rank
    may_be = part in scales and whole not in scales if scales else whole != 1
    return may_be and _has_blocks(module.slots["up"], sizes)  # last: it reads a tensor


def scale_of(module: LoraModule) -> float | None:
    """Return alpha/rank of a module; None where it has none, or only its header is at hand."""
    alpha = alpha_of(module) if "down" in module.slots and "alpha" in module.slots else None
    return None if alpha is None else alpha / module.shapes["down"][0]


def alpha_of(module: LoraModule) -> float | None:
    """Read a module's alpha; None where it has none, or only its header is at hand."""
    info = module.slots.get("alpha")
    if info is None or not is_there(info.file):
        return None
    try:
        return read_scalar(info)
    except ValueError:
        return None


def _has_blocks(up: TensorInfo, sizes: Sequence[int]) -> bool:
    """Tell whether all values beside the diagonal of blocks are zero, and not all on it."""
    import numpy as np

    raw = np.frombuffer(read_stored(up), np.uint8)
    rows, parts = sum(sizes), len(sizes)
    if up.shape[0] != rows or raw.size % (rows * up.shape[1]):
        return False
    values = raw.reshape(rows, parts, -1, up.nbytes // (rows * up.shape[1]))
    signless = values & np.array([0xFF] * (values.shape[3] - 1) + [0x7F], np.uint8)  # minus zero is zero
    filled = signless.reshape(rows, parts, -1).max(axis=2)
    start = 0
    for part, size in enumerate(sizes):
        block = filled[start : start + size]
        if block[:, [other for other in range(parts) if other != part]].any() or not block[:, part].any():
            return False
        start += size
    return True
