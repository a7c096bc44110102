"""Receipts: what of an output that is not complete is finished, and of which inputs, recipe and versions.

Each is a file in the folder `NAME.partial/receipts`, which gets its name when the data that it speaks of is on the
disk. So a restart can trust what a killed batch left, and do the rest.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from lorabake.batch import notes
from lorabake.batch.notes import sha256_of
from lorabake.errors import LorabakeError
from lorabake.execution.agenda import Computed, Place, Share, joined
from lorabake.machine import versions
from lorabake.planning import Plan
from lorabake.planning.tally import Tally
from lorabake.writing.output import Output

VERSION: Final = 2
KIND: Final = "receipt"

BROKEN: Final = (LorabakeError, OSError, ValueError, TypeError, KeyError, AttributeError)
"""What reading a receipt raises that lorabake has not written so."""

Ground = Mapping[str, str]
"""What an output is made of and by what, in words -> its digest or version."""


@dataclass(frozen=True, slots=True)
class Digested:
    """Hold a range of a planned file's data, and its SHA-256, or that of all data up to the range's end."""

    place: Place
    sha256: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """Say of an output which ranges are finished, what became of the steps there, and of what it is made.

    With `from_start`, digests are of all data of a file up to a range's end: the header's digest is taken on the way
    there, so that nothing is hashed twice.
    """

    ranges: tuple[Digested, ...]
    computed: Mapping[int, Computed]
    ground: Ground
    from_start: bool = False

    @property
    def name(self) -> str:
        """Return the receipt's name, by its ranges: who finishes the same has the same."""
        return hashlib.sha256(repr([each.place for each in self.ranges]).encode()).hexdigest()[:24] + ".json"

    @property
    def places(self) -> tuple[Place, ...]:
        """List its ranges, in order; what follows each other is one range."""
        return joined(each.place for each in self.ranges)

    @property
    def said(self) -> dict[str, object]:
        """Say it in JSON's types."""
        return {
            "version": VERSION,
            "ranges": [[*each.place, each.sha256] for each in self.ranges],
            "steps": {str(number): _said(each) for number, each in self.computed.items()},
            "ground": dict(self.ground),
            "from_start": self.from_start,
        }


def ground_of(plan: Plan, device: str | None) -> Ground:
    """Say what an output is made of: recipe, layout, versions, device, and each input's header, size and time.

    Files are told by what all machines see alike: an inode has another number on another machine.
    """
    headers = [header for checkpoint, _ in plan.sources.inputs for header in checkpoint.headers]
    layout = [
        [file.name, hashlib.sha256(file.header()).hexdigest() if file.link is None else file.link.sha256]
        for file in plan.files
    ]
    texts = sorted(plan.texts.items())
    asked = device if device is not None else os.environ.get("LORABAKE_DEVICE") or "auto"
    ground = {
        "recipe": sha256_of(plan.sources.recipe.normal_form()),
        "layout": sha256_of([layout, texts]),
        "device": asked.partition(":")[0],
        **{f"version of {name}": version for name, version in versions().items() if name != "Python"},
    }
    for header in headers:
        ground[f"file {header.path}"] = f"{header.sha256} {header.identity[2:4]}"
    for path, identity in plan.sources.evidence.read.items():
        ground.setdefault(f"file {path}", str(identity[2:4]))
    return ground


def folder_of(output: Output) -> Path:
    """Return where an output's receipts lie."""
    return output.partial.receipts


def land(
    output: Output,
    share: Share,
    computed: Mapping[int, Computed],
    ground: Ground,
    stop: threading.Event,
    *,
    followed: bool = False,
) -> Receipt | None:
    """Wait until the disk has what a share wrote, and put a receipt of it there; return None once `stop` is set.

    Without fsync, nobody waits for the disk: then a receipt is only as good as the system's memory. With `followed`,
    another thread hashes the output's files, and the ends of the ranges are marked there.
    """
    weights = output.weights
    ranges = tuple(
        Digested(place, weights.sha256_before(place[0], place[2], stop) if followed else weights.sha256(*place, stop))
        for place in share.places
    )
    if stop.is_set():  # then some are digests of a part
        return None
    receipt = Receipt(ranges, computed, ground, followed)
    for file in {each.place[0] for each in ranges} if output.fsync else ():
        output.weights.settle(file)
    notes.put(folder_of(output) / receipt.name, KIND, receipt.said, durable=output.fsync)
    return receipt


def are_all_of(folder: Path, ground: Ground) -> bool:
    """Tell whether there are receipts in a folder, and all are of these inputs, this recipe and these versions."""
    paths = [*folder.glob("*.json")]
    try:
        return bool(paths) and all(changed(ground, read(path).ground) is None for path in paths)
    except BROKEN:
        return False


def changed(due: Ground, said: Ground) -> str | None:
    """Say what has changed since a receipt was written; None if nothing has."""
    for name in (*due, *said):
        if due.get(name) != said.get(name):
            kind, _, what = name.partition(" ")
            match kind:
                case "file":
                    return f"{what} has changed"
                case "version":
                    return f"it was made with another {name}"
                case "device":
                    return f"it was made for another device, {said.get(name)}"
                case _:
                    return f"the {name} has changed"
    return None


# -- the text of a receipt ---------------------------------------------------------------------------------


def read(path: Path) -> Receipt:
    """Read a receipt; raise ValueError, KeyError, TypeError or AttributeError for what lorabake does not write."""
    said: Any = notes.taken(path, KIND)
    if said["version"] != VERSION:
        raise ValueError("another version")
    ranges = tuple(
        Digested((int(file), int(start), int(stop)), sha256) for file, start, stop, sha256 in said["ranges"]
    )
    computed = {int(number): _computed(each) for number, each in said["steps"].items()}
    return Receipt(ranges, computed, said["ground"], bool(said["from_start"]))


def _said(computed: Computed) -> dict[str, object]:
    tallies = {
        str(lora): {
            field.name: sorted(value) if isinstance(value := getattr(tally, field.name), set) else value
            for field in fields(Tally)
        }
        for lora, tally in computed.tallies.items()
    }
    return {"kind": computed.kind, "asked": computed.asked, "tallies": tallies}


def _computed(said: Mapping[str, object]) -> Computed:
    kind, asked, tallies = said["kind"], said["asked"], said["tallies"]
    if not isinstance(kind, str) or not isinstance(asked, str) or not isinstance(tallies, dict):
        raise TypeError("no step")
    return Computed(kind, asked, {int(lora): _tally(each) for lora, each in tallies.items()})


def _tally(said: Mapping[str, object]) -> Tally:
    return Tally(**{name: set(value) if isinstance(value, list) else value for name, value in said.items()})  # type: ignore[arg-type]
