"""How much room outputs need on each disk, and how much is free there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabake.machine import folder_above
from lorabake.planning import Plan
from lorabake.writing.linking import room_of


@dataclass(frozen=True, slots=True)
class Room:
    """Hold the plans of one disk, a folder there, the bytes that their outputs need, and those that are free."""

    folder: Path
    plans: tuple[Plan, ...]
    needed: int
    free: int

    @property
    def missing(self) -> int:
        """Count the bytes that are missing."""
        return max(0, self.needed - self.free)


def rooms_for(plans: Sequence[Plan]) -> tuple[Room, ...]:
    """Say for each disk what it has to hold until all outputs are complete."""
    disks: dict[int, tuple[Path, list[Plan]]] = {}
    for plan in plans:
        folder = folder_above(plan.path)
        disks.setdefault(folder.stat().st_dev, (folder, []))[1].append(plan)
    return tuple(
        Room(folder, tuple(own), sum(map(room_of, own)), shutil.disk_usage(folder).free)
        for folder, own in disks.values()
    )
