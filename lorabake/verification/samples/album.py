"""Keep what bases made of prompts, for all verifications on them: a base draws each prompt once.

Arrays lie in files of a folder, so memory does not grow with the number of bases or prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorabake.planning import Plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lorabake.verification.findings import Pixels


SETTINGS = {"prompts", "seed", "steps", "size", "guidance", "negative_prompt"}
"""What a recipe's `verify` says, and options may say otherwise: whoever samples states these facts."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Hold what is left of the noise (channels, height, width), and the picture made of it (height, width, 3)."""

    latents: NDArray[np.float32]
    picture: Pixels


class Album:
    """Keep pictures and texts by the facts that they depend on; `folder` is there, and whoever made it removes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def picture(self, facts: Iterable[object]) -> Drawn | None:
        """Return what was drawn under these facts; None if nothing was."""
        place = self._place(facts, "npz")
        if not place.exists():
            return None
        with np.load(place) as arrays:
            return Drawn(arrays["latents"], arrays["picture"])

    def keep_picture(self, facts: Iterable[object], drawn: Drawn) -> None:
        """Keep what was drawn."""
        np.savez(self._place(facts, "npz"), latents=drawn.latents, picture=drawn.picture)

    def tokens(self, facts: Iterable[object]) -> NDArray[np.int64] | None:
        """Return the tokens that were written under these facts; None if none were."""
        place = self._place(facts, "npy")
        return np.load(place) if place.exists() else None

    def keep_tokens(self, facts: Iterable[object], tokens: NDArray[np.int64]) -> None:
        """Keep the tokens of a text."""
        np.save(self._place(facts, "npy"), tokens)

    def _place(self, facts: Iterable[object], ending: str) -> Path:
        return self.folder / f"{hashlib.sha256(repr((*facts,)).encode()).hexdigest()}.{ending}"


def facts_of_base(plan: Plan) -> tuple[object, ...]:
    """Return what a base's samples depend on, but for the prompt and the sampling's settings.

    Files are told by where they lie, their size and their time.
    """
    sources = plan.sources
    said = sources.recipe.verify
    told = said.model_dump(exclude=SETTINGS) if said else {}
    for name in ("config", "tokenizers"):
        if told.get(name):
            told[name] = str(sources.recipe.locate(told[name]))
    files = []
    for header in sources.base.headers:
        status = header.path.stat()
        files.append((str(header.path.resolve()), status.st_size, status.st_mtime_ns))
    family = sources.key_map.architecture.name
    return family, str(sources.base.path.resolve()), sources.recipe.base.model_dump(), tuple(files), told
