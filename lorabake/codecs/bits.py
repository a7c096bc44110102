"""Unpack several values from one number, and scale them by group."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Cut 32-bit numbers (rows, n) into values of so many bits (rows, n·32/bits), the lowest bits first.

    Shifting negative numbers brings in ones from above; the mask removes them.
    """
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    return (words[..., None] >> shifts).bitwise_and_((1 << bits) - 1).flatten(1)


def by_group(
    codes: torch.Tensor,
    zeros: torch.Tensor,
    scales: torch.Tensor,
    groups: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return (code − zero)·scale, transposed; codes are (in, out), zeros and scales (groups, out).

    `groups` say which group each input is in; without them, groups have as many inputs each, one after the other.
    """
    import torch

    scales, inputs = scales.to(dtype), codes.shape[0]
    even = torch.arange(inputs, device=codes.device) // (inputs // len(scales))
    group = groups.long() if groups is not None else even
    if torch.equal(group, even):  # the usual case, in which scales need not be gathered for each value
        apart = codes.reshape(len(scales), -1, codes.shape[1])
        return (apart - zeros[:, None]).to(dtype).mul_(scales[:, None]).flatten(0, 1).T.contiguous()
    return (codes - zeros[group]).to(dtype).mul_(scales[group]).T.contiguous()
