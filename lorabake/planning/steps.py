"""What a bake does to each tensor of the output: compute it in a step, or copy it in a range of bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from lorabake.adapters import dora
from lorabake.adapters.kind import matrix
from lorabake.matching.patches import Patch
from lorabake.tensors.dtypes import nbytes
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.packing import PackedInfo

Touched = Mapping[str, Sequence[Patch]]
"""The patches that change each base tensor, by its key."""


@dataclass(frozen=True, slots=True)
class Target:
    """Say where one tensor comes from and where it goes: `file` of the plan, `offset` from that file's data.

    `encoding` says how it is stored, where it is stored scaled and stays so. What is computed for it is rounded by
    chance where `is_drawn`.
    """

    key: str
    source: TensorInfo
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    encoding: PackedInfo | None = None
    is_drawn: bool = False

    @property
    def scale_key(self) -> str:
        """Name the tensor whose values multiply this one's; nothing where it is stored plain."""
        return self.encoding.parts["scale"].key if self.encoding is not None else ""

    @property
    def nbytes(self) -> int:
        """Count the bytes written."""
        return nbytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy bytes `start` to `stop` of an input to `offset` in the data of a planned file."""

    source: Path
    start: int
    stop: int
    file: int
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Say which rows of its module a patch has in a piece of a tensor."""

    patch: Patch
    rows: slice


@dataclass(frozen=True, slots=True)
class Step:
    """Compute tensors that patches touch together; without patches, cast one.

    `summed` is false where the recipe's method combines deltas otherwise.
    """

    targets: tuple[Target, ...]
    patches: tuple[Patch, ...]
    summed: bool = True

    @property
    def by_rows(self) -> bool:
        """Tell whether any rows of the tensor can be computed without the others."""
        if len(self.targets) > 1 or isinstance(self.targets[0].source, PackedInfo):
            return False
        return self.summed and all(not needs_whole(patch) for patch in self.patches)

    def matrix(self, target: Target) -> tuple[int, int]:
        """Return how many rows a target has, as its patches count them, and how many values in each."""
        for patch in self.patches:
            if target.key in patch.view.keys:
                width = patch.view.width
                return prod(target.shape) // max(width, 1), width
        return matrix(target.shape)

    def pieces(self) -> Iterator[tuple[str, int, int, tuple[Piece, ...]]]:
        """Cut the targets' rows where any patch begins or ends: (tensor, first row, last row, who is there)."""
        for target in self.targets:
            summed = [patch for patch in self.patches if not patch.kind.replaces]
            spans = [(patch, span) for patch in summed for span in patch.view.spans(target.key)]
            cuts = sorted({at for _, span in spans for at in (span.stored.start, span.stored.stop)})
            for start, stop in itertools.pairwise(cuts):
                there = tuple(
                    Piece(patch, piece.own) for patch, span in spans if (piece := span.cut(start, stop)) is not None
                )
                if there:
                    yield target.key, start, stop, there


def needs_whole(patch: Patch) -> bool:
    """Tell whether a patch's effect on one row depends on other rows of the base tensor."""
    if patch.view.transpose:
        return patch.has_dora or not patch.kind.low_rank
    axis = dora.axis(patch.shapes, patch.view.shape, patch.kind.length_axis) if patch.has_dora else None
    column = patch.has_dora and dora.reads_columns(patch.semantics, axis)
    return column or not patch.kind.by_rows


def touched_by(patches: Iterable[Patch]) -> dict[str, list[Patch]]:
    """Map each base tensor that is changed to the patches that change it."""
    touched: dict[str, list[Patch]] = {}
    for patch in patches:
        for key in patch.view.keys:
            touched.setdefault(key, []).append(patch)
    return touched


def steps_of(targets: Mapping[str, Target], patches: Sequence[Patch], *, summed: bool) -> tuple[Step, ...]:
    """Make the steps that compute targets, given by their keys: one for each group that a patch joins, or cast."""
    touched, groups = touched_by(patches), _groups(patches, summed=summed)
    steps = []
    for target in targets.values():
        group = groups.get(target.key, (target.key,))
        if target.key in touched and group[0] == target.key:
            together = {id(patch): patch for key in group for patch in touched[key]}
            chosen = tuple(sorted(together.values(), key=lambda patch: patch.lora))
            joined = [targets[key] for key in group]
            joined += [targets[member.scale_key] for member in joined if member.scale_key]
            steps.append(Step(tuple(joined), chosen, summed))
        elif target.key not in touched and target.dtype != target.source.dtype:
            steps.append(Step((target,), ()))
    return tuple(steps)


def _groups(patches: Iterable[Patch], *, summed: bool) -> dict[str, tuple[str, ...]]:
    """Join base tensors that a patch can only change together; name each group by its first tensor."""
    group: dict[str, list[str]] = {}
    for patch in patches:
        if len(patch.view.keys) > 1 and (needs_whole(patch) or not summed):
            merged = list(dict.fromkeys(key for each in patch.view.keys for key in group.get(each, [each])))
            group |= dict.fromkeys(merged, merged)
    return {key: tuple(keys) for key, keys in group.items()}


def copies_of(targets: Iterable[Target]) -> Iterator[Copy]:
    """Copy tensors as they are; those that follow each other in both files are one range."""
    run: Copy | None = None
    for target in targets:
        source = target.source
        if (
            run
            and (run.source, run.stop, run.file) == (source.file, source.start, target.file)
            and run.offset + run.stop - run.start == target.offset
        ):
            run = Copy(run.source, run.start, source.stop, run.file, run.offset)
            continue
        if run and run.stop > run.start:
            yield run
        run = Copy(source.file, source.start, source.stop, target.file, target.offset)
    if run and run.stop > run.start:
        yield run
