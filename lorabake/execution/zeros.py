"""Zeros keep their signs where nothing is added to them: −0 + 0 is 0, whose bytes are others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorabake.execution.parts import FEW, Place
from lorabake.planning.steps import Step

WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers with a sign, by their bytes."""


Zeros = torch.Tensor | NDArray[np.intp] | None
"""Where flat values are −0.0, as an array on the host; None where none is."""


def negative_zeros(stored: torch.Tensor) -> Zeros:
    """Return where flat values are −0.0, as an array on the host; None where none is.

    In every dtype its bits are those of the least whole number with a sign.
    """
    codes = stored.view(WHOLE[stored.itemsize])
    least = torch.iinfo(codes.dtype).min
    if not codes.is_cpu:
        found = (codes == least).nonzero().view(-1)
        return found if len(found) else None
    numbers, places = codes.numpy(), list[int]()
    rest = numbers
    while len(rest) and len(places) < FEW:  # the quickest way to see that there is none, or few, as mostly
        nearest = int(rest.argmin())
        if rest[nearest] != least:
            return np.array(places) if places else None
        places.append(len(numbers) - len(rest) + nearest)
        rest = rest[nearest + 1 :]
    return np.flatnonzero(numbers == least) if places else None


def keep_signs(
    weight: torch.Tensor, zeros: torch.Tensor | NDArray[np.intp], replaced: Iterable[Place], first: int
) -> None:
    """Make the zeros negative again that were so before, where they are zeros still: what they got is zero.

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
    """Make zeros of a whole tensor negative again that were so in `base`."""
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
