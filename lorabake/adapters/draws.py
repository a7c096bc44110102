"""Random numbers that a file leaves out, drawn again as PEFT drew them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.keymap.said import Said

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


def seed_of(said: Said) -> int:
    """Return the seed of random matrices that a file left out; raise ValueError where that was not meant."""
    seed = said.seed("projection_prng_key")
    if not said.has("save_projection") or said.is_set("save_projection"):
        raise ValueError("adapter_config.json says save_projection, and its random matrices are not in the file")
    return seed
