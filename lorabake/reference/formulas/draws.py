"""Random numbers that a file leaves out, drawn again as PEFT draws them: by torch's generator on the CPU.

This is the only place of `reference/` that knows torch: no other generator draws the same. It draws, and no more.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lorabake.reference.formulas.formula import Array, Indices

if TYPE_CHECKING:
    from lorabake.adapters.randlora import RandLoraDraws
    from lorabake.adapters.vera import VeraDraws


def places_of(count: int, seed: int, chosen: int) -> Indices:
    """Draw so many different places of `count`."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    places: Indices = torch.randperm(count, generator=generator)[:chosen].numpy()
    return places


@lru_cache(maxsize=1)
def vera_bases(drawn: VeraDraws) -> tuple[Array, Array]:
    """Draw A and B as PEFT does, by Kaiming's law; torch draws, and no more."""
    import torch

    generator = torch.Generator().manual_seed(drawn.seed)
    a, b = torch.empty(drawn.high, drawn.inputs), torch.empty(drawn.outputs, drawn.rank)
    for matrix in (a, b):
        torch.nn.init.kaiming_uniform_(matrix, generator=generator)
    return a.double().numpy(), b.double().numpy()


@lru_cache(maxsize=1)
def randlora_bases(drawn: RandLoraDraws) -> tuple[Array, Array]:
    """Draw A and B as PEFT does, rounded to bfloat16 as it rounds; torch draws, and no more."""
    import torch

    generator, found, sparsity = torch.Generator().manual_seed(drawn.seed), [], drawn.sparsity
    for rows, bases, columns in (drawn.a, drawn.b):
        if sparsity:
            chances = torch.rand((rows, bases, columns), generator=generator).numpy()
            signs = np.where(chances < 1 / (2 * sparsity), -1.0, np.where(chances > 1 - 1 / (2 * sparsity), 1.0, 0.0))
            found.append(signs / signs.std(ddof=1))
        else:
            values = torch.empty((bases, rows, columns), dtype=torch.bfloat16)
            for basis in values:
                torch.nn.init.kaiming_uniform_(basis[:, None], a=5**0.5, generator=generator)
            found.append((values / values.std()).double().numpy().swapaxes(0, 1))
    return found[0], found[1]
