"""Trained tokens (PEFT's trainable tokens): some rows of an embedding are replaced; the others stay.

`trainable_tokens_delta` (n, width) holds the new rows themselves; which they are, the configuration says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


def rows_of(said: Said) -> object:
    """Return what a configuration says of a module's trained rows; None where it says nothing."""
    listed = said.value("token_indices") or said.value("trainable_token_indices")
    if isinstance(listed, dict):
        return next((rows for name, rows in listed.items() if f".{said.module}".endswith(f".{name}")), None)
    return listed


@dataclass(frozen=True, slots=True)
class TokenSettings(Settings):
    """Name the trained rows, in the order of the file."""

    rows: tuple[int, ...]


class TrainedTokens(Delta):
    """Replace rows of an embedding."""

    name = "trainable_tokens"
    title = "trained tokens"
    required = frozenset({"tokens"})
    suffixes = ((r"\.(?:token_adapter\.)?trainable_tokens_delta(?:\.[^.]+)?", "tokens"),)
    on_embedding = True
    peft_type = "TRAINABLE_TOKENS"
    whole_in = frozenset({"peft"})
    reads_weight = True
    peft_fields = frozenset({"token_indices", "init_weights"})

    def settings(self, said: Said, shapes: Shapes) -> TokenSettings:
        """Read which rows they are: one list for the embedding, or one for each module."""
        rows = rows_of(said)
        if not isinstance(rows, list) or any(type(row) is not int or row < 0 for row in rows):
            raise ValueError("no adapter_config.json says which rows (token_indices)")
        if len(rows) != shapes["tokens"][0] or len(set(rows)) != len(rows):
            raise ValueError(f"it has {shapes['tokens'][0]} rows, and adapter_config.json names {len(set(rows))}")
        return TokenSettings(tuple(rows))

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for rows of the weight's width."""
        shape = shapes["tokens"]
        return None if len(shape) == len(weight) == 2 and shape[1] == weight[1] else f"its rows are {shape}"

    def prepare(self, tensors: Tensors, terms: TermsOf[TokenSettings]) -> Tensors:
        """Check that the rows are there."""
        last = max(terms.settings.rows, default=0)
        if last >= terms.shape[0]:
            raise ValueError(f"it replaces row {last}, and the base has {terms.shape[0]}")
        return tensors

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[TokenSettings]
    ) -> torch.Tensor:
        """Return the difference, nothing but in the named rows."""
        change = weight.new_zeros(weight.shape)
        for number, row in enumerate(terms.settings.rows):
            if rows.start <= row < rows.stop:
                change[row - rows.start] = tensors["tokens"][number] - weight[row - rows.start]
        return change


KINDS = (TrainedTokens(),)
