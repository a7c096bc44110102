"""What `lorabake metadata --json` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorabake.documents.records import STRICT


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the header."""

    __pydantic_config__ = STRICT
    group: Literal["identity", "training", "lorabake", "loading", "other"]
    """What it is for: what the model is, how it was trained or merged, what lorabake wrote, what programs read, or
    unknown."""
    field: str
    """Its name."""
    text: str
    """Its value, whole."""


@dataclass(frozen=True, slots=True)
class MetadataDocument:
    """What a file's header says beside its tensors."""

    __pydantic_config__ = STRICT
    path: str
    """The file."""
    header_bytes: int
    """The bytes before the tensor data."""
    room: int
    """How many of them are spaces at the end, which longer fields can take."""
    fields: tuple[Field, ...]
    """The fields, sorted by group and name."""
