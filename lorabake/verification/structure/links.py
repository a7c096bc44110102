"""Which files of a checkpoint are the base's own, header and all, as a bake makes them with links."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from lorabake.documents.names import Figures
from lorabake.planning import Plan
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.header import Header
from lorabake.verification.findings import Finding, Status
from lorabake.visible import counted_as


def name_of(checkpoint: Checkpoint, header: Header) -> str:
    """Name a file of a checkpoint by its path in the folder, since several components may use the same file name."""
    inside = checkpoint.is_folder and header.path.is_relative_to(checkpoint.path)  # what was a pickle lies elsewhere
    return header.path.relative_to(checkpoint.path).as_posix() if inside else header.path.name


def links_in(plan: Plan, baked: Checkpoint) -> dict[str, bool]:
    """Map the names of the files that have the header of the base's to whether they are links to them."""
    headers = {name_of(baked, header): header for header in baked.headers} if baked.is_folder else {}
    found = {}
    for file in plan.files:
        header, twin = headers.get(file.name), file.twin
        if header is None or twin is None or (header.sha256, header.size) != (twin.sha256, twin.size):
            continue
        found[file.name] = False
        with suppress(OSError):
            found[file.name] = os.path.samefile(header.path, twin.path)
    return found


def check_links(plan: Plan, baked: Checkpoint) -> Iterator[Finding]:
    """Say which files are links to the base's, and which are copies with the base's header."""
    for is_link in (True, False):
        names = [name for name, links in links_in(plan, baked).items() if links is is_link]
        if not names:
            continue
        how = "hard links to the base's own files" if is_link else "copies of the base's files, headers included"
        shown = ", ".join([*names[:3], *["…"] * (len(names) > 3)])
        figures = Figures(count=len(names))
        subject = counted_as(len(names), "file")
        yield Finding("structure.links", Status.PASS, subject, "", "", f"{how}: {shown}", figures)
