"""Make several outputs at once: enter them together, and leave them together whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from lorabake.errors import FileError, LockError, TargetError, ValueTooLargeError
from lorabake.interrupts import held
from lorabake.planning import Plan
from lorabake.planning.checks import InputPlaces
from lorabake.visible import counted_as
from lorabake.writing.inputs import Inputs
from lorabake.writing.output import Keep, Output

OF_THE_BAKE: Final = (FileError, LockError, ValueTooLargeError)
"""Errors of a recipe or its inputs: what was finished before is of no use to the next bake."""


class Outputs:
    """Hold the outputs of plans; no two are the same, and none is an input of another plan.

    With `keep`, what is finished of an output stays for the next batch if this one is stopped, unless the only
    output's own recipe or inputs are at fault.
    """

    def __init__(
        self,
        plans: Iterable[Plan],
        inputs: Inputs,
        *,
        overwrite: bool,
        fsync: bool,
        keep: Keep | None = None,
        shared: bool = False,
    ) -> None:
        self._outputs = tuple(
            Output(plan, inputs, overwrite=overwrite, fsync=fsync, keep=keep, shared=shared) for plan in plans
        )
        self._keeps = keep is not None
        check_apart([output.plan for output in self._outputs])

    def __iter__(self) -> Iterator[Output]:
        return iter(self._outputs)

    def __enter__(self) -> Self:
        try:
            for output in self._outputs:
                output.__enter__()
        except BaseException as error:
            self.clean(keep=self._is_kept_after(error))
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        keep = self._is_kept_after(error)
        try:
            with held():
                self.clean(keep=keep)
        except BaseException:  # a signal arrived before signals were held
            self.clean(keep=keep)
            raise

    def _is_kept_after(self, error: BaseException | None) -> bool:
        """Tell whether receipts stay: not where the only output's recipe or inputs are at fault."""
        is_at_fault = len(self._outputs) == 1 and isinstance(error, OF_THE_BAKE)
        return self._keeps and error is not None and not is_at_fault

    def clean(self, *, keep: bool = False) -> None:
        """Remove everything that is left beside the targets; with `keep`, leave what is finished."""
        for output in self._outputs:
            output.clean(keep=keep)

    def tell_copied(self, warn: Callable[[str], None]) -> None:
        """Warn of files that were to be links, and are copies."""
        for output in self._outputs:
            if whys := output.copied_links:
                files = counted_as(len(whys), "file")
                why = whys[0].strerror
                warn(f"{output.path}: {files} could not be linked to the base's, and copied instead: {why}")

    def tell_left(self, warn: Callable[[str], None]) -> None:
        """Warn of leftovers beside a complete target that the system refused to remove."""
        for output in self._outputs:
            if output.left is not None:
                place, why = output.partial.path, output.left.strerror
                warn(
                    f"{output.path} is complete, but {place} cannot be removed: {why}; "
                    "the next bake of this target removes it"
                )


def check_apart(plans: Sequence[Plan]) -> None:
    """Raise TargetError for two plans with one output, and for an output that is an input of another plan."""
    places = InputPlaces(known for plan in plans for known in plan.sources.evidence.locations)
    written: dict[Path, Plan] = {}
    for plan in plans:
        target = _real(plan.path)
        if target in written:
            one, two = map(_told, (written[target], plan))
            by = f"two recipes would write it: {one}, and {two}" if one != two else f"{one} would write it twice"
            raise TargetError(f"{plan.path}: {by}", "Give each an output of its own.")
        written[target] = plan
        places.check(plan.path)


def _told(plan: Plan) -> str:
    """Name a plan's recipe by its file, and which of its outputs it is where it has several."""
    recipe = plan.sources.recipe
    if recipe.file is None:
        return recipe.name
    return f"{recipe.file} ({recipe.name})" if recipe.choices else str(recipe.file)


def _real(path: Path) -> Path:
    with suppress(OSError, RuntimeError):
        return path.resolve()
    return path
