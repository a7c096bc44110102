"""Plain weights: a tensor holds one value after the other, as networks use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.codecs.codec import WEIGHT, Codec, Parts, Stored
from lorabake.tensors.header import TensorInfo

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Plain(Codec):
    """Take a tensor's values for the weight's own."""

    name = "plain"
    is_plain = True
    encodes = True

    def title(self, stored: Stored) -> str:
        """Return the tensor's dtype."""
        return stored.parts[WEIGHT].dtype

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Return the values as they are."""
        return parts[WEIGHT].to(dtype)

    def written(self, stored: Stored) -> tuple[str, ...]:
        """Fill the tensor under the weight's own key."""
        return (WEIGHT,)

    def encode(self, stored: Stored, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the values as they are."""
        return {WEIGHT: weight}


PLAIN = Plain()
CODECS = (Plain,)


def plain(info: TensorInfo) -> Stored:
    """Describe a tensor that holds its own values."""
    return Stored(info.key, info.name, info.shape, PLAIN, {WEIGHT: info})


def all_plain(infos: Mapping[str, TensorInfo]) -> dict[str, Stored]:
    """Describe tensors that hold their own values, by their keys."""
    return {key: plain(info) for key, info in infos.items()}
