"""What a lock has of a recipe's output: compare a bake's data with it, and write down what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lorabake import __version__
from lorabake.artifacts.inputs import lock_of
from lorabake.artifacts.lock import Lock, LockedOutput, recipe_sha256
from lorabake.artifacts.locking import data_sha256, output_of, same_inputs, torch_version, write_lock
from lorabake.artifacts.reading import command, read_lock, shown
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

    def recorded(self, device: str) -> LockedOutput | None:
        """Return what the lock has of this recipe's output on a class of device, the newest last."""
        own = [output for output in self._own(self.pins.lock) if output.device == device]
        same = [output for output in own if (output.lorabake, output.torch) == (__version__, torch_version())]
        return (same or own)[-1] if own else None

    def with_output(self, lock: Lock, data: str, device: str) -> Lock:
        """Return a lock that has this output, too, and none of an earlier state of its recipe."""
        recipe, output = self.pins.recipe, output_of(data, device)
        if not recipe.choices:
            return replace(lock, recipe=recipe_sha256(recipe), outputs=(*self._own(lock), output))
        others = tuple(each for each in lock.outputs if each.name != recipe.name)
        own = replace(output, name=recipe.name, recipe=recipe_sha256(recipe))
        return replace(lock, outputs=(*others, *self._own(lock), own))

    def _own(self, lock: Lock) -> tuple[LockedOutput, ...]:
        """List what a lock has of this output, as the recipe is now."""
        recipe = self.pins.recipe
        if not recipe.choices:
            return lock.outputs if lock.recipe == recipe_sha256(recipe) else ()
        name, sha256 = recipe.name, recipe_sha256(recipe)
        return tuple(each for each in lock.outputs if (each.name, each.recipe) == (name, sha256))


def record(made: Iterable[tuple[PinnedOutput, Sequence[str], str]]) -> Iterator[str]:
    """Write into locks what bakes gave, where they have nothing of this kind; yield a warning where that fails.

    Each has the hashes of its files' data and the class of device. A CI job's lock stays as it is.
    """
    new: dict[Path, list[tuple[PinnedOutput, str, str]]] = {}
    for output, hashes, device in made if not in_ci() else ():
        data = output.data_sha256(hashes)
        if data is not None and output.recorded(device) is None:
            new.setdefault(output.pins.file, []).append((output, data, device))
    for file, outputs in new.items():
        lock = outputs[0][0].pins.lock
        with suppress(LockError):  # another process may have written outputs meanwhile
            now = read_lock(file)
            lock = now if same_inputs(now, lock) else lock
        for output, data, device in outputs:
            lock = output.with_output(lock, data, device)
        try:
            write_lock(file, lock)
        except SurroundingsError as error:
            yield str(error.args[0])


def _versions(output: LockedOutput) -> str:
    return f"lorabake {output.lorabake}" + (f" with PyTorch {output.torch}" if output.torch else "")
