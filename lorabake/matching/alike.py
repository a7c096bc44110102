"""Whether two modules of a file hold the same change of one tensor."""

from __future__ import annotations

from lorabake.adapters.embedding import AS_LINEAR
from lorabake.codecs.codec import Stored
from lorabake.keymap.slots import LoraModule
from lorabake.sources.evidence import TensorEvidence


def are_alike(first: LoraModule, other: LoraModule, evidence: TensorEvidence) -> bool:
    """Tell whether two modules of a file hold the same change of one tensor.

    A head's LoRA has the factors of the embedding's, transposed.
    """
    if AS_LINEAR.keys() <= other.slots.keys():
        first, other = other, first
    turned = AS_LINEAR.keys() <= first.slots.keys() and not AS_LINEAR.keys() <= other.slots.keys()
    names = {slot: AS_LINEAR.get(slot, slot) if turned else slot for slot in first.slots}
    return {*names.values()} == other.slots.keys() and all(
        _are_equal(info, other.slots[names[slot]], evidence, turned=names[slot] != slot)
        for slot, info in first.slots.items()
    )


def _are_equal(first: Stored, other: Stored, evidence: TensorEvidence, *, turned: bool) -> bool:
    shape = first.shape[::-1] if turned else first.shape
    if (first.dtype, shape) != (other.dtype, other.shape):
        return False
    return evidence.content_of(first, turned=turned) == evidence.content_of(other)
