"""What a bake has to watch beside its plan: inputs that a lock pins, digests that a recipe states of folders.

The digests are taken while the inputs stream. A lock's are checked as soon as one is taken, those of folders at the
end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabake import __version__
from lorabake.artifacts.digests import FileDigest
from lorabake.artifacts.inputs import InputFiles, entries_of, input_files, lock_of
from lorabake.artifacts.lock import Lock, LockedInput, LockedOutput, recipe_sha256
from lorabake.artifacts.locking import data_sha256, output_of, pins_of, stated_as, torch_version, write_lock
from lorabake.artifacts.reading import command, shown
from lorabake.artifacts.stale import Pins, spots_of, stale_error
from lorabake.errors import FileError, LockError, SurroundingsError
from lorabake.planning import Plan
from lorabake.recipe import Recipe
from lorabake.tensors.reader import fingerprint
from lorabake.visible import short_repr


def in_ci() -> bool:
    """Tell whether a CI service runs this, as they all say in the environment."""
    return os.environ.get("CI", "").lower() in ("true", "1")


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
        data = data_sha256(self.plan, hashes)
        before = self.recorded(device)
        if self.pins is None or data is None or before is None or before.data_sha256 == data:
            return None
        name = shown(lock_of(self.pins.file))
        digests = (f"  locked: SHA-256 {before.data_sha256}", f"  now:    SHA-256 {data}")
        now = output_of(data, device)
        if (before.lorabake, before.torch) == (now.lorabake, now.torch):
            raise LockError(
                f"{name}: {self.plan.path.name} has other data than the lock says, and nothing was written",
                *digests,
                f"The inputs are the lock's, and so are lorabake ({__version__}) and the class of device ({device}). "
                "Another type of processor can give other last bits.",
                f"If the new data is right, make the lock anew, and bake again: {command(self.pins.file)}",
            )
        made, makes = (_versions(output) for output in (before, now))
        return (
            f"the output has other data than {name} says: {made} gave {before.data_sha256}, and {makes} gives {data}"
        )

    def record(self, hashes: Sequence[str], device: str) -> str | None:
        """Write into the lock what the bake gave, where it has nothing of this kind; return a warning if that fails.

        A CI job's lock stays as it is.
        """
        data = data_sha256(self.plan, hashes)
        if self.pins is None or data is None or in_ci() or self.recorded(device) is not None:
            return None
        lock, recipe = self.pins.lock, recipe_sha256(self.pins.recipe)
        kept = lock.outputs if lock.recipe == recipe else ()
        try:
            write_lock(self.pins.file, Lock(recipe, lock.inputs, (*kept, output_of(data, device))))
        except SurroundingsError as error:
            return str(error.args[0])
        return None

    def recorded(self, device: str) -> LockedOutput | None:
        """Return what the lock has of this recipe's output on a class of device, the newest last."""
        if self.pins is None or self.pins.lock.recipe != recipe_sha256(self.pins.recipe):
            return None
        own = [output for output in self.pins.lock.outputs if output.device == device]
        same = [output for output in own if (output.lorabake, output.torch) == (__version__, torch_version())]
        return (same or own)[-1] if own else None


def _versions(output: LockedOutput) -> str:
    return f"lorabake {output.lorabake}" + (f" with PyTorch {output.torch}" if output.torch else "")
