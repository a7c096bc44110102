"""Tell where the inputs of a received checkpoint were found, and by what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorabake import settings
from lorabake.sources.received import Found, Received
from lorabake.verification.findings import Finding, Status


def tell_inputs(received: Received) -> Iterator[Finding]:
    """Yield a finding for each input; one that was found by its name alone may be another file."""
    for found in received.found:
        if found.place is not None:
            status, note = _told(found, _shown(found.place))
            yield Finding("structure.found", status, found.input.path, "", "", note)


def _told(found: Found, place: str) -> tuple[Status, str]:
    if found.by == "option":
        return Status.PASS, f"is {place}, as {settings.CHANGES} says"
    if found.by == "digest":
        return Status.PASS, f"is {place}: its size and its digest are those that the header states"
    if not found.input.files:
        return Status.PASS, f"is {place}, by its name: the header states no digest"
    return Status.WARN, f"is taken to be {place}, by its name alone: no file here has the stated size and digest"


def _shown(place: Path) -> str:
    """Write a path from the current folder, if it lies there."""
    whole, here = place.absolute(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)
