"""Keep the signs of zeros to which nothing is added: −0 + 0 is +0, which has other bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorabake.execution.parts import FEW, Place
from lorabake.planning.steps import Step

WHOLE = {
    dtype.itemsize: (dtype, torch.iinfo(dtype).min) for dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
}
"""Signed integer dtypes by their bytes, with their smallest values."""


Zeros = torch.Tensor | NDArray[np.intp] | None
"""Places of −0.0 among flat values: an array, or a tensor on the device; None if there are none."""


def negative_zeros(stored: torch.Tensor) -> Zeros:
    """Return the places of −0.0 among flat values: an array, or a tensor on the device; None if there are none.

    In every dtype, its bits are those of the smallest signed integer.
    """
    dtype, least = WHOLE[stored.itemsize]
    codes = stored.view(dtype)
    if not codes.is_cpu:
        found = (codes == least).nonzero().view(-1)
        return found if len(found) else None
    numbers, places = codes.numpy(), list[int]()
    rest = numbers
    while len(rest) and len(places) < FEW:  # the fastest way for the usual case of none or few
        nearest = int(rest.argmin())
        if rest[nearest] != least:
            return np.array(places) if places else None
        places.append(len(numbers) - len(rest) + nearest)
        rest = rest[nearest + 1 :]
    return np.flatnonzero(numbers == least) if places else None


def keep_signs(
    weight: torch.Tensor, zeros: torch.Tensor | NDArray[np.intp], replaced: Iterable[Place], first: int
) -> None:
    """Make zeros negative again if they were negative before and are still zero, since only zero was added.

    `weight` holds the rows from `first`, and `zeros` the places in it; what is replaced has its own zeros.
    """
    for start, stop in replaced:
        rows = zeros // weight.shape[1] + first
        zeros = zeros[(rows < start) | (rows >= stop)]
    flat: Any = weight.view(-1)
    if weight.is_cpu:
        flat, zeros = flat.numpy(), np.asarray(zeros)
    else:
        zeros = torch.as_tensor(zeros, device=weight.device)
    still = zeros[flat[zeros] == 0]
    if len(still):
        flat[still] = -0.0


def keep_all_signs(step: Step, key: str, baked: torch.Tensor, base: torch.Tensor) -> None:
    """Make zeros of a whole tensor negative again if they were negative in `base`."""
    zeros = negative_zeros(base.reshape(-1))
    if zeros is None:
        return
    replaced = [
        (span.stored.start, span.stored.stop)
        for patch in step.patches
        if patch.sets_all
        for span in patch.view.spans(key)
    ]
    keep_signs(baked.view(step.matrix(key)), zeros, replaced, 0)
