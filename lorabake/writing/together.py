"""Make several outputs at once: enter them together, and leave them together whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from lorabake.errors import TargetError
from lorabake.interrupts import held
from lorabake.planning import Plan
from lorabake.planning.checks import check_is_no_input
from lorabake.writing.inputs import Inputs
from lorabake.writing.output import Output


class Outputs:
    """Hold the outputs of plans; no two are the same, and none is an input of another plan."""

    def __init__(self, plans: Iterable[Plan], inputs: Inputs, *, overwrite: bool, fsync: bool) -> None:
        self._outputs = tuple(Output(plan, inputs, overwrite=overwrite, fsync=fsync) for plan in plans)
        check_apart([output.plan for output in self._outputs])

    def __iter__(self) -> Iterator[Output]:
        return iter(self._outputs)

    def __enter__(self) -> Self:
        try:
            for output in self._outputs:
                output.__enter__()
        except BaseException:
            self.clean()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with held():
                self.clean()
        except BaseException:  # a signal arrived before signals were held
            self.clean()
            raise

    def clean(self) -> None:
        """Remove everything that is left beside the targets."""
        for output in self._outputs:
            output.clean()

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
    for number, plan in enumerate(plans):
        for other in plans[:number]:
            if _same(plan.path, other.path):
                raise TargetError(f"{plan.path}: two recipes would write it; give each an output of its own")
            check_is_no_input(other.sources, plan.path)
            check_is_no_input(plan.sources, other.path)


def _same(one: Path, other: Path) -> bool:
    with suppress(OSError, RuntimeError):
        return one.resolve() == other.resolve()
    return one == other
