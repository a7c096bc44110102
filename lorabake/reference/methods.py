"""Combine deltas by the recipe's methods, including the random draws, a second time in NumPy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorabake.planning.steps import Method
from lorabake.reference.formulas.formula import Array


def combined(
    method: Method, deltas: Sequence[Array], strengths: Sequence[float], masks: Sequence[NDArray[np.bool_]]
) -> Array:
    """Combine deltas (rows, columns) at strength 1."""
    if method.name == "svd":
        total = np.einsum("k,kij->ij", np.array(strengths), np.array(deltas))
        if not np.isfinite(total).all():
            return np.asarray(total)
        left, values, right = np.linalg.svd(total, full_matrices=False)
        values[method.rank :] = 0
        return np.asarray(left @ np.diag(values) @ right)
    pruned = []
    for number, delta in enumerate(deltas):
        if method.name.startswith("dare"):
            pruned.append(np.where(masks[number].reshape(delta.shape), delta, 0) / method.density)
        else:
            count = int(method.density * delta.size)
            ranks = np.empty(delta.size, np.intp)
            ranks[np.argsort(-np.abs(delta).ravel(), kind="stable")] = np.arange(delta.size)
            pruned.append(np.where(ranks.reshape(delta.shape) < count, delta, 0))
    result = np.zeros_like(deltas[0])
    votes = np.zeros_like(deltas[0])
    elected = np.where(np.sum(pruned, axis=0) >= 0, 1, -1)
    for part, strength in zip(pruned, strengths, strict=True):
        voter = np.sign(part) == elected if method.name.endswith("ties") else np.ones_like(part, bool)
        result += strength * part * voter
        votes += voter
    return np.asarray(result / np.maximum(votes, 1) if method.name.endswith("ties") else result)


def masks_of(method: Method, key: str, row: int, loras: Sequence[int], count: int) -> list[NDArray[np.bool_]]:
    """Draw again which of a piece's `count` values each LoRA keeps; return none if the method is not random.

    Philox counts from a key: 16 bytes of BLAKE2b of the method's seed, the tensor, the piece's first row, the LoRA.
    """
    if not method.name.startswith("dare"):
        return []
    masks = []
    for lora in loras:
        digest = hashlib.blake2b(f"{method.seed}/{key}/{row}/{lora}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
        masks.append(generator.random(count) < method.density)
    return masks
