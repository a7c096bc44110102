"""What a bake has to watch beside its plan: inputs that a lock pins, digests that a recipe states of folders.

The digests are taken while the inputs stream. A lock's are checked as soon as one is taken, those of folders at the
end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorabake.artifacts.digests import FileDigest
from lorabake.artifacts.inputs import InputFiles, entries_of, input_files, lock_of
from lorabake.errors import FileError
from lorabake.planning import Plan
from lorabake.recipe import Recipe
from lorabake.tensors.reader import fingerprint
from lorabake.visible import short_repr

if TYPE_CHECKING:  # most bakes have no lock, and begin without its modules
    from lorabake.artifacts.lock import LockedInput
    from lorabake.artifacts.pinned import PinnedOutput
    from lorabake.artifacts.stale import Pins


def has_lock(recipe: Recipe) -> bool:
    """Tell whether a lock lies beside the recipe's file."""
    return recipe.file is not None and lock_of(recipe.file).is_file()


@dataclass(frozen=True, slots=True)
class Watch:
    """Hold what is watched in the bake of a plan; `pins` are those of its lock, or None where no lock has to fit."""

    __repr__ = short_repr

    plan: Plan
    inputs: tuple[InputFiles, ...]
    pins: Pins | None

    @classmethod
    def of(cls, plan: Plan, *, locked: bool) -> Watch:
        """Say what to watch; raise LockError for a lock that is missing, or that does not fit at a first look."""
        if locked:
            from lorabake.artifacts.locking import pins_of
            from lorabake.artifacts.stale import stale_error

            pins = pins_of(plan)
            if stale := [*pins.differing()]:
                raise stale_error(pins.file, stale)
            return cls(plan, pins.inputs, pins)
        stated = any(checkpoint.is_folder and entry.sha256 for checkpoint, entry in plan.sources.inputs)
        return cls(plan, input_files(plan.sources) if stated else (), None)

    @property
    def all_inputs(self) -> tuple[InputFiles, ...]:
        """List every input with its files."""
        return self.inputs or input_files(self.plan.sources)

    @property
    def paths(self) -> tuple[Path, ...]:
        """List the files whose digests have to be taken, beside those that the plan needs."""
        stated = (path for each, _ in self.stated() for path in each.files.values())
        return tuple(dict.fromkeys([*(self.pins.paths if self.pins is not None else ()), *stated]))

    def check(self, path: Path, sha256: str) -> None:
        """Raise LockError where a pinned file has another digest than the lock says."""
        if self.pins is not None:
            self.pins.check(path, sha256)

    def check_stated(self, taken: Mapping[Path, str]) -> None:
        """Raise FileError for a folder that has another digest than the recipe states."""
        for each, sha256 in self.stated():
            from lorabake.artifacts.locking import stated_as
            from lorabake.artifacts.stale import spots_of

            now = self.digested(each, taken)
            if sha256 not in stated_as(now, each):
                spot = spots_of(self.plan.sources.recipe)[each.places[0]]
                raise FileError(
                    f"{spot}: {each.path}: its SHA-256 is {now.sha256}, and the recipe states {sha256}",
                    "Nothing was written. The folder has changed, or is another one: find the right one, "
                    "or write this SHA-256 into the recipe.",
                )

    @staticmethod
    def digested(each: InputFiles, taken: Mapping[Path, str]) -> LockedInput:
        """Put the digests of an input's files together."""
        from lorabake.artifacts.lock import LockedInput

        files = {name: FileDigest(name, fingerprint(path)[2], taken[path]) for name, path in each.files.items()}
        return LockedInput(each.path, files)

    def stated(self) -> Iterator[tuple[InputFiles, str]]:
        """Yield the folders whose digest the recipe states, with that digest."""
        for each in self.inputs:
            for place in each.places if each.is_folder else ():
                entry = entries_of(self.plan.sources.recipe).get(place)
                if entry is not None and entry.sha256:
                    yield each, entry.sha256

    # -- the output ------------------------------------------------------------------------------------------

    def check_output(self, hashes: Sequence[str], device: str) -> str | None:
        """Compare an output's data with what the lock has of it; return a warning where they differ for a reason.

        Raise LockError where the same lorabake gave other data on the same class of device.
        """
        return None if self.pinned is None else self.pinned.check(hashes, device)

    @property
    def pinned(self) -> PinnedOutput | None:
        """Return what the lock has of the output; None without a lock."""
        if self.pins is None:
            return None
        from lorabake.artifacts.pinned import PinnedOutput

        return PinnedOutput(self.plan, self.pins)
