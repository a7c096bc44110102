"""kohya's `split_qkv`: q, k and v trained apart, then saved as one module of the fused layer.

Such a module has the parts' downs below each other and their ups on the diagonal of blocks, and an alpha that is
still that of one part: its scale is alpha over a part's rank. The trainer's metadata says so; where there is
none, the zeros beside the diagonal and the scale of the file's other modules do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import takewhile

from lorabake.codecs.codec import Stored
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.module import Module
from lorabake.keymap.slots import LoraModule
from lorabake.tensors.reader import read_stored
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


def rows_of_parts(name: str, modules: Mapping[str, Module]) -> tuple[int, ...]:
    """List the rows of what a fused module holds; `modules` are all of its component."""
    names = (f"{name}.{part}" for part in range(len(modules)))
    parts = (modules[part] for part in takewhile(modules.__contains__, names))
    return tuple(part.views["weight"].rows for part in takewhile(lambda part: "weight" in part.views, parts))


def fused_rows(key_map: KeyMap) -> frozenset[tuple[int, ...]]:
    """Collect what `rows_of_parts` says of all fused modules of a base."""
    stems = (
        (name.removesuffix(".0"), modules)
        for modules in key_map.modules.values()
        for name in modules
        if name.endswith(".0")
    )
    rows = (rows_of_parts(stem, modules) for stem, modules in stems)
    return frozenset(sizes for sizes in rows if len(sizes) > 1)


def has_rank(module: LoraModule) -> bool:
    """Tell whether a module has the factor whose rows count its rank."""
    return "down" in module.slots and module.slots["down"].shape[:1] > (0,)


def fits(module: LoraModule, sizes: Sequence[int]) -> bool:
    """Tell by shapes whether a module may hold parts of so many rows that each have a share of its rank."""
    if "up" not in module.slots or not has_rank(module):
        return False
    up, rank = module.slots["up"].shape, module.slots["down"].shape[0]
    return up[:2] == (sum(sizes), rank) and rank % len(sizes) == 0


def scale_of(module: LoraModule, alpha: float, parts: int = 1) -> float:
    """Return a module's scale where its alpha is over the rank of one of so many parts."""
    return alpha * parts / module.slots["down"].shape[0]


def may_be_apart(module: LoraModule, alpha: float, parts: int, scales: AbstractSet[float]) -> bool:
    """Tell whether a module's alpha makes sense as that of one of so many parts.

    `scales` are those of the file's modules that are not fused: a converted file, too, may have blocks on the
    diagonal, but its alpha is for them all.
    """
    whole, part = scale_of(module, alpha), scale_of(module, alpha, parts)
    return part in scales and whole not in scales if scales else whole != 1


def has_blocks(stored: Stored, sizes: Sequence[int]) -> bool:
    """Read whether all values beside the diagonal of blocks are zero, and not all on it."""
    import numpy as np

    up = stored.tensor
    if up is None:
        return False
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
