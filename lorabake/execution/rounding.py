"""Round stochastically: draw one of a value's two neighbours in a dtype.

The farther neighbour is drawn more rarely, so that a value keeps its size on average. The random number of a value
depends only on the recipe's seed, the tensor's name and the value's place in the tensor: the place counts the steps
of SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195), which begins at a digest of the
other two. Whole numbers are the same on every device, for any cut into tiles.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BITS = 62
"""Bits of a random number; a product with them stays exact and positive in 64 bits."""

STEP = 0x9E3779B97F4A7C15
MIXES = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST = 31


def drawn(seed: int, key: str, start: int, like: torch.Tensor) -> torch.Tensor:
    """Draw a whole number below 2^BITS for each value of a flat tensor, the first of which has the place `start`."""
    import torch

    digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
    begin = int.from_bytes(digest, "little") + (start + 1) * STEP
    numbers = torch.arange(like.numel(), dtype=torch.int64, device=like.device)
    numbers.mul_(_signed(STEP)).add_(_signed(begin))
    for shift, factor in MIXES:
        numbers.bitwise_xor_(_shifted(numbers, shift)).mul_(_signed(factor))
    numbers.bitwise_xor_(_shifted(numbers, LAST))
    return _shifted(numbers, 64 - BITS)


def round_by(numbers: torch.Tensor, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return flat values, in their own dtype, each moved to a neighbour in another dtype by a random number.

    The magnitude is rounded up if the number is less than its distance from the lower neighbour. Every step is exact.
    Values beyond the largest one become the largest one; NaN stays.
    """
    import torch

    sizes = values.abs()
    whole, bits = (torch.int32, 0x7F800000) if values.dtype is torch.float32 else (torch.int64, 0x7FF << 52)
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        units = (sizes.view(whole) & bits).view(values.dtype).clamp_(min=info.smallest_normal).mul_(info.eps)
        largest = info.max
    else:
        units, largest = torch.ones_like(sizes), torch.iinfo(dtype).max
    counts = sizes.div_(units)
    lower = counts.floor()
    up = numbers < counts.sub_(lower).mul_(2.0**BITS).long()
    rounded = lower.add_(up).mul_(units).clamp_(max=largest).copysign_(values)
    return torch.where(values.isfinite(), rounded, values)


def rounded_to_odd(values: torch.Tensor) -> torch.Tensor:
    """Narrow float64 to float32 so that rounding once more, to 16 or 8 bits, gives what rounding once would give.

    torch narrows to so few bits by way of float32, and rounding to nearest twice may end at the wrong neighbour. Cut
    off instead, with the last bit set where anything was cut (Boldo and Melquiond 2008).
    """
    import torch

    near = values.float()
    inexact, beyond = near.double() != values, near.double().abs() > values.abs()
    bits = near.view(torch.int32) - beyond.int()
    return (bits | inexact.int()).view(torch.float32)


def _shifted(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Shift to the right as if there were no sign."""
    return (numbers >> count).bitwise_and_((1 << 64 - count) - 1)


def _signed(number: int) -> int:
    """Read the lowest 64 bits as torch's int64 does."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
