"""Put a small copy of the picture that a bake drew into its header, where programs that list models look for one.

The header has the room from the bake on, so that no tensor moves. A checkpoint that failed gets no picture.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lorabake.errors import LorabakeError, first_line
from lorabake.planning import Plan
from lorabake.planning.metadata import THUMBNAIL_ROOM
from lorabake.storage.fields import THUMBNAIL
from lorabake.tensors.safetensors import read_header
from lorabake.verification.findings import Finding, Samples, Status
from lorabake.writing.header import edit

if TYPE_CHECKING:
    from lorabake.verification.findings import Pixels

SIDE = 256
"""Pixels of the longer side, which ModelSpec recommends."""

MOST = THUMBNAIL_ROOM - 1024
"""Letters that a picture may take in the header."""

QUALITIES = (85, 75, 60, 40, 20)
"""JPEG's qualities, of which the first counts that is small enough."""

CHECK = "samples.thumbnail"


def thumbnail_finding(plan: Plan, path: Path, samples: Samples | None, findings: Iterable[Finding]) -> Finding | None:
    """Put the picture of the first prompt into the header; say what became of it, None where none is wanted."""
    if plan.sources.recipe.output.thumbnail is None or samples is None or not samples.pictures:
        return None
    if any(finding.status in (Status.FAIL, Status.ERROR) for finding in findings):
        return Finding(CHECK, Status.SKIP, path.name, "", "", "no picture is put in: the checkpoint is not right")
    first = samples.pictures[0]
    file = path / plan.files[0].name if plan.is_folder else path
    try:
        text = data_url(first.pictures["baked"])
        edited = edit(file, {**read_header(file).metadata, THUMBNAIL: text})
    except LorabakeError as error:
        note = f"no picture is put in: {first_line(error).removeprefix(f'{file}: ')}"
        return Finding(CHECK, Status.SKIP, file.name, "", "", note)
    note = f"the header shows the picture of {first.prompt!r}"
    note += ", and the whole file has another SHA-256 now" if edited.is_changed else ""
    return Finding(CHECK, Status.PASS, file.name, f"{len(text):,} bytes", "", note)


def data_url(pixels: Pixels) -> str:
    """Write a picture as a small JPEG in a data URL."""
    from PIL import Image

    image = Image.fromarray(pixels).convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    text = ""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        text = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        if len(text) <= MOST:
            break
    return text
