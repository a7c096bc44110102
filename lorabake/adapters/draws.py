"""Random places, drawn again as PEFT drew them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def scattered(values: torch.Tensor, shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Put values into a matrix of zeros, in places drawn as PEFT does: by torch's generator on the CPU."""
    import torch

    count = shape[0] * shape[1]
    places = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: len(values)]
    dense = values.new_zeros(count)
    dense[places.to(values.device)] = values
    return dense.view(shape)
