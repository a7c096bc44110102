"""Compose the files beside the weights of a folder that is made of a single file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lorabake.planning.layout import OutputLayout
from lorabake.sources import Sources


@dataclass(frozen=True, slots=True)
class Beside:
    """Hold the texts of files, by their paths below the output, and what is to be told of them."""

    texts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def texts_beside(sources: Sources, layout: OutputLayout) -> Beside:
    """Compose the texts of a converted folder: its list of components, and what each says of itself."""
    return Beside()
