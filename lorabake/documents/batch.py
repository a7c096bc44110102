"""What `lorabake batch --json` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorabake.documents.names import AnyVerdict
from lorabake.documents.records import STRICT


@dataclass(frozen=True, slots=True)
class Chosen:
    """The value that an output has on an axis of its recipe's matrix."""

    __pydantic_config__ = STRICT
    axis: str
    """The axis."""
    value: str
    """The value's name."""


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """What became of one output."""

    __pydantic_config__ = STRICT
    name: str
    """The output's name: its file's without the ending, or its folder's; the file of a recipe that cannot be read."""
    recipe: str | None
    """The recipe's file; null for one that cannot be read."""
    path: str | None
    """The output, as the recipe writes it; null where that is unknown."""
    choices: tuple[Chosen, ...]
    """Its values on the axes of the matrix; empty without one."""
    status: Literal["baked", "current", "waiting", "failed", "left"]
    """current: it was there already; waiting: other shards do the rest; left: not begun, because another failed."""
    bytes: int | None
    """The bytes of its files with weights; null unless it was baked."""
    data_sha256: tuple[str, ...]
    """The SHA-256 of the tensor data of each of its files."""
    error: tuple[str, ...]
    """The lines of the error; none unless it failed."""
    exit_code: int
    """0, or the code of the error."""
    verdict: AnyVerdict | None
    """What --verify found; null without it, and for a recipe that cannot be read."""


@dataclass(frozen=True, slots=True)
class BatchDocument:
    """What became of a batch."""

    __pydantic_config__ = STRICT
    outputs: tuple[BatchOutput, ...]
    """Every output, in the order of the recipes."""
    passes: int
    """How many times a base was read."""
    seconds: float
    """How long it took."""
