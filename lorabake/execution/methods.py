"""Combine several LoRAs' deltas on the same rows by methods other than the sum.

All methods work on whole deltas of one piece of a weight: rows that every LoRA treats as a unit. Deltas come at
strength 1, with strengths separate. The results equal those of PEFT's `add_weighted_adapter` on whole deltas
(`ties_svd` and the like, before they cut the rank), except for random masks, which depend only on the recipe's seed,
the tensor and the LoRA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lorabake.planning.steps import Method

if TYPE_CHECKING:
    import torch


def kept(method: Method, key: str, row: int, lora: int, count: int) -> NDArray[np.bool_]:
    """Draw which of `count` values DARE keeps: each with the probability `density`, the same on any machine."""
    text = f"{method.seed}/{key}/{row}/{lora}".encode()
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=seed)).random(count) < method.density


def masks_of(method: Method, key: str, row: int, loras: Sequence[int], count: int) -> list[NDArray[np.bool_]]:
    """Draw the masks of all LoRAs on one piece; none where the method is not random."""
    return [kept(method, key, row, lora, count) for lora in loras] if method.name.startswith("dare") else []


def combine(
    method: Method, deltas: Sequence[torch.Tensor], strengths: Sequence[float], masks: Sequence[NDArray[np.bool_]]
) -> torch.Tensor:
    """Combine deltas (rows, columns) of one piece; `masks` are what `kept` drew, flat, where the method is random.

    TIES: Yadav et al. 2023 (arXiv 2306.01708), signs elected by total. DARE: Yu et al. 2023 (arXiv 2311.03099).
    """
    import torch

    if method.name == "svd":
        total = sum((delta * strength for delta, strength in zip(deltas, strengths, strict=True)), deltas[0] * 0)
        if not bool(total.isfinite().all()):
            return (
                total  # NaN and infinity have no singular values; the bake refuses them later, with the weight's name
            )
        left, values, right = torch.linalg.svd(total, full_matrices=False)
        rank = method.rank or 1
        thin: torch.Tensor = (left[:, :rank] * values[:rank]) @ right[:rank]
        return thin
    if method.name.startswith("dare"):
        pruned = [
            delta * torch.from_numpy(mask.reshape(delta.shape)).to(delta.device) / method.density
            for delta, mask in zip(deltas, masks, strict=True)
        ]
    else:
        pruned = [_largest(delta, method.density) for delta in deltas]
    stack = torch.stack(pruned)
    weighted = stack * stack.new_tensor(list(strengths))[:, None, None]
    if not method.name.endswith("ties"):
        return weighted.sum(0)
    sign = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    agrees = stack.sign() == sign
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _largest(delta: torch.Tensor, density: float) -> torch.Tensor:
    """Keep the largest values, a share `density` of all; of equal values, the first."""
    flat = delta.flatten()
    order = flat.abs().sort(descending=True, stable=True).indices[: int(density * flat.numel())]
    found = flat.new_zeros(flat.shape)
    found[order] = flat[order]
    return found.view(delta.shape)
