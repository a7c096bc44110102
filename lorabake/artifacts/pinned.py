"""What a lock has of a recipe's output: compare a bake's data with it, and write down what it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorabake import __version__
from lorabake.artifacts.inputs import lock_of
from lorabake.artifacts.lock import Lock, LockedOutput, recipe_sha256
from lorabake.artifacts.locking import data_sha256, output_of, torch_version, write_lock
from lorabake.artifacts.reading import command, shown
from lorabake.artifacts.stale import Pins
from lorabake.errors import LockError, SurroundingsError
from lorabake.machine import in_ci
from lorabake.planning import Plan
from lorabake.visible import short_repr


@dataclass(frozen=True, slots=True)
class PinnedOutput:
    """Hold the output of a plan against the lock of its inputs."""

    __repr__ = short_repr

    plan: Plan
    pins: Pins

    def data_sha256(self, hashes: Sequence[str]) -> str | None:
        """Put the digests of the files' data together; None where one is missing."""
        return data_sha256(self.plan, hashes)

    def check(self, hashes: Sequence[str], device: str) -> str | None:
        """Compare an output's data with what the lock has of it; return a warning where they differ for a reason.

        Raise LockError where the same lorabake gave other data on the same class of device.
        """
        data = self.data_sha256(hashes)
        before = self.recorded(device)
        if data is None or before is None or before.data_sha256 == data:
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
        data = self.data_sha256(hashes)
        if data is None or in_ci() or self.recorded(device) is not None:
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
        if self.pins.lock.recipe != recipe_sha256(self.pins.recipe):
            return None
        own = [output for output in self.pins.lock.outputs if output.device == device]
        same = [output for output in own if (output.lorabake, output.torch) == (__version__, torch_version())]
        return (same or own)[-1] if own else None


def _versions(output: LockedOutput) -> str:
    return f"lorabake {output.lorabake}" + (f" with PyTorch {output.torch}" if output.torch else "")
