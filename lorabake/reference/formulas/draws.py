"""Random numbers that a file leaves out, drawn again as PEFT draws them: by torch's generator on the CPU.

This is the only place of `reference/` that knows torch: no other generator draws the same. It draws, and no more.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lorabake.reference.formulas.formula import Array, Indices


def places_of(count: int, seed: int, chosen: int) -> Indices:
    """Draw so many different places of `count`."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    places: Indices = torch.randperm(count, generator=generator)[:chosen].numpy()
    return places


@lru_cache(maxsize=1)
def vera_bases(drawn: tuple[int, int, int, int, int]) -> tuple[Array, Array]:
    """Draw A and B as PEFT does, by Kaiming's law; torch draws, and no more."""
    import torch

    seed, high, rank, outputs, inputs = drawn
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.empty(high, inputs), torch.empty(outputs, rank)
    for matrix in (a, b):
        torch.nn.init.kaiming_uniform_(matrix, generator=generator)
    return a.double().numpy(), b.double().numpy()


@lru_cache(maxsize=1)
def randlora_bases(drawn: tuple[int, tuple[int, ...], tuple[int, ...], float]) -> tuple[Array, Array]:
    """Draw A and B as PEFT does, rounded to bfloat16 as it rounds; torch draws, and no more."""
    import torch

    seed, of_a, of_b, sparsity = drawn
    generator, found = torch.Generator().manual_seed(seed), []
    for rows, bases, columns in (of_a, of_b):
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
