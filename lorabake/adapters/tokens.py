"""Trained tokens (PEFT's trainable tokens): some rows of an embedding are replaced; the others stay.

`trainable_tokens_delta` (n, width) holds the new rows themselves; which they are, the configuration says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, Terms
from lorabake.adapters.shapes import Shapes, Tensors

if TYPE_CHECKING:
    import torch


def rows_of(config: Settings, module: str) -> object:
    """Return what a configuration says of a module's trained rows; None where it says nothing."""
    said = config.get("token_indices") or config.get("trainable_token_indices")
    if isinstance(said, dict):
        return next((rows for name, rows in said.items() if f".{module}".endswith(f".{name}")), None)
    return said


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

    def settings(self, config: Settings | None, module: str, shapes: Shapes) -> Settings:
        """Read which rows they are: one list for the embedding, or one for each module."""
        said = rows_of(config or {}, module)
        if not isinstance(said, list) or any(type(row) is not int or row < 0 for row in said):
            raise ValueError("no adapter_config.json says which rows (token_indices)")
        if len(said) != shapes["tokens"][0] or len(set(said)) != len(said):
            raise ValueError(f"it has {shapes['tokens'][0]} rows, and adapter_config.json names {len(set(said))}")
        return {"rows": tuple(said)}

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for rows of the weight's width."""
        shape = shapes["tokens"]
        return None if len(shape) == len(weight) == 2 and shape[1] == weight[1] else f"its rows are {shape}"

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Check that the rows are there."""
        last = max(cast(tuple[int, ...], terms.settings["rows"]), default=0)
        if last >= terms.shape[0]:
            raise ValueError(f"it replaces row {last}, and the base has {terms.shape[0]}")
        return tensors

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Return the difference, nothing but in the named rows."""
        change = weight.new_zeros(weight.shape)
        for number, row in enumerate(cast(tuple[int, ...], terms.settings["rows"])):
            if rows.start <= row < rows.stop:
                change[row - rows.start] = tensors["tokens"][number] - weight[row - rows.start]
        return change


KINDS = (TrainedTokens(),)
