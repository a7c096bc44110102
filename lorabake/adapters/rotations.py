"""Rotations of blocks, out of skew matrices Q: Cayley's map, its series, and the bound of ‖Q‖."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cayley(skew: torch.Tensor) -> torch.Tensor:
    """Return (I + Q)(I − Q)⁻¹ of skew matrices Q (…, b, b)."""
    import torch

    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    # The two commute. Where `solve` would fail, no numbers come out, and the bake refuses those by the weight's name.
    turn: torch.Tensor = torch.linalg.solve_ex(identity - skew, identity + skew).result
    return turn


def series(skew: torch.Tensor, terms: int, last: int) -> torch.Tensor:
    """Return I + 2Q + 2Q² + … + last·Q^(terms−1), the series of Cayley's map cut off as PEFT does.

    `last` is 1 since PEFT 0.18, and was 2 before; of one or two terms PEFT makes the same.
    """
    import torch

    total = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device).expand(skew.shape).clone()
    power = skew
    for term in range(1, terms):
        total = total + power * (last if term == terms - 1 and terms > 2 else 2)
        power = power @ skew
    return total


def bounded(skew: torch.Tensor, bound: float) -> torch.Tensor:
    """Shrink Q of all blocks together to the norm `bound` where it is longer."""
    norm = float(skew.norm())
    return skew * (max(bound, 0.0) / norm) if norm > max(bound, 0.0) else skew
