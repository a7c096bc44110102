"""The ledger of one LoRA: what became of each of its tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from lorabake.keymap.embeddings import Vectors

RANK_0 = "rank 0: no effect"
"""Why a module without a rank is left out."""


@dataclass(slots=True)
class Ledger:
    """Count what became of one LoRA's tensors: applied, or excluded by the recipe and why.

    `embeddings` are learned ones, by token and name, which go to files of their own.
    """

    lora: str
    tensors: int
    family: str | None = None
    applied: int = 0
    modules: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ranks: Counter[int] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)
    embeddings: dict[str, dict[str, Vectors]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def is_balanced(self) -> bool:
        """Tell whether every tensor is accounted for."""
        embedded = sum(map(len, self.embeddings.values()))
        return self.applied + sum(self.excluded.values()) + embedded == self.tensors
