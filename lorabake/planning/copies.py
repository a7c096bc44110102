"""What of an output is not computed: ranges of the base's bytes, and bytes that are no input's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lorabake.planning.steps import Target


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy bytes `start` to `stop` of an input to `offset` in the data of a planned file."""

    source: Path
    start: int
    stop: int
    file: int
    offset: int


@dataclass(frozen=True, slots=True)
class Given:
    """Write bytes that are no input's to `offset` in the data of a planned file."""

    data: bytes
    file: int
    offset: int


def copies_of(targets: Iterable[Target]) -> Iterator[Copy]:
    """Copy tensors as they are; those that follow each other in both files are one range."""
    run: Copy | None = None
    for copy in (copy for target in targets for copy in _ranges(target)):
        if (
            run
            and (run.source, run.stop, run.file) == (copy.source, copy.start, copy.file)
            and run.offset + run.stop - run.start == copy.offset
        ):
            run = Copy(run.source, run.start, copy.stop, run.file, run.offset)
            continue
        if run and run.stop > run.start:
            yield run
        run = copy
    if run and run.stop > run.start:
        yield run


def _ranges(target: Target) -> Iterator[Copy]:
    """Yield the ranges of the base that are a target's bytes, in the target's order."""
    if target.is_direct:
        info = target.weight.first
        yield Copy(info.file, info.start, info.stop, target.file, target.offset)
        return
    width = target.nbytes // max(target.source.rows, 1)
    infos = {weight.key: weight.first for weight in target.weights}
    for span in target.source.spans():
        info = infos[span.key]
        start, stop = info.start + span.stored.start * width, info.start + span.stored.stop * width
        yield Copy(info.file, start, stop, target.file, target.offset + span.own.start * width)
