"""What a bake does to each tensor of the output: compute it in a step, or copy it in a range of bytes."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from lorabake.adapters.shapes import matrix
from lorabake.codecs.codec import WEIGHT, Codec, Stored
from lorabake.codecs.plain import PLAIN
from lorabake.matching.patches import Patch
from lorabake.sources import Sources
from lorabake.tensors.dtypes import nbytes
from lorabake.tensors.header import TensorInfo

WATCHED = 64
"""Steps of each LoRA, about, at which a bake looks to see what becomes of its change."""

Touched = Mapping[str, Sequence[Patch]]
"""The patches that change each base tensor, by its key."""


@dataclass(frozen=True, slots=True)
class Target:
    """Say where one tensor comes from and where it goes: `file` of the plan, `offset` from that file's data.

    What is computed for it is rounded by chance, by `rounding_seed`, where that is not None.
    """

    key: str
    source: Stored
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    rounding_seed: int | None = None

    @property
    def is_drawn(self) -> bool:
        """Tell whether chance rounds what is computed."""
        return self.rounding_seed is not None

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
class Result:
    """Say what becomes of one weight: what it is worth before, and which targets hold it then, by role.

    `codec` is by which they do: the plain one, or the weight's own where it stays stored as it is.
    """

    source: Stored
    codec: Codec
    targets: Mapping[str, Target]

    @property
    def key(self) -> str:
        """Return the weight's key, which its first target has, too."""
        return self.target.key

    @property
    def target(self) -> Target:
        """Return the target under the weight's own key."""
        return next(iter(self.targets.values()))

    @classmethod
    def plain(cls, target: Target) -> Result:
        """Say that a weight becomes a plain one."""
        return cls(target.source, PLAIN, {WEIGHT: target})


@dataclass(frozen=True, slots=True)
class Method:
    """Say how the deltas of several LoRAs on the same rows become one: by which method, with which numbers."""

    name: str = "sum"
    density: float = 1.0
    seed: int = 0
    rank: int | None = None


SUM = Method()
Precision = Literal["float32", "float64"]
Order = Literal["sum", "sequential"]


@dataclass(frozen=True, slots=True)
class Step:
    """Compute tensors that patches touch together; without patches, cast one. All that this takes is here.

    `number` is its own in a plan. `order` says whether each delta is taken against the base's weight, or against what
    the patches before it made of it. `loras` names every LoRA of the plan by its number, for messages. At the tensors
    of a step that `is_watched` a bake looks to see what becomes of each change.
    """

    number: int
    results: tuple[Result, ...]
    patches: tuple[Patch, ...]
    method: Method = SUM
    order: Order = "sum"
    precision: Precision = "float32"
    loras: tuple[str, ...] = ()
    is_watched: bool = False

    @property
    def summed(self) -> bool:
        """Tell whether the change is the sum of all deltas."""
        return self.method.name == "sum"

    @property
    def is_sequential(self) -> bool:
        """Tell whether each patch sees the weight as the patches before it left it."""
        return self.order == "sequential"

    @classmethod
    def cast(cls, number: int, target: Target, precision: Precision = "float32") -> Step:
        """Make the step that computes a target from its source alone."""
        return cls(number, (Result.plain(target),), (), precision=precision)

    @property
    def targets(self) -> tuple[Target, ...]:
        """List the targets: those under the weights' own keys, and then those that go with them."""
        others = (target for result in self.results for target in [*result.targets.values()][1:])
        return (*(result.target for result in self.results), *others)

    @property
    def stored(self) -> Iterator[TensorInfo]:
        """Yield the tensors of the inputs that the targets are computed from, as they are stored."""
        return (info for result in self.results for info in result.source.parts.values())

    @property
    def by_rows(self) -> bool:
        """Tell whether any rows of the tensor can be computed without the others."""
        if len(self.results) > 1 or self.results[0].source.tensor is None:
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
            summed = [patch for patch in self.patches if patch.kind.adds]
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
    return patch.kind.needs_all_rows(patch.lengths, turned=patch.view.transpose)


def touched_by(patches: Iterable[Patch]) -> dict[str, list[Patch]]:
    """Map each base tensor that is changed to the patches that change it."""
    touched: dict[str, list[Patch]] = {}
    for patch in patches:
        for key in patch.view.keys:
            touched.setdefault(key, []).append(patch)
    return touched


def steps_of(
    sources: Sources, targets: Mapping[str, Target], patches: Sequence[Patch], kept: Mapping[str, Stored]
) -> tuple[Step, ...]:
    """Make the steps that compute targets, given by their keys: one for each group that a patch joins, or cast.

    `kept` are the weights that stay stored otherwise than as plain ones, and can be changed nevertheless.
    """
    recipe = sources.recipe
    steps = list(_joined(targets, patches, kept, summed=recipe.method.name == "sum"))
    has_doubles = any(result.source.dtype == "F64" for results, _ in steps for result in results)
    watched = _watched([own for _, own in steps])
    return tuple(
        Step(
            number,
            results,
            own,
            Method(**recipe.method.model_dump()) if own else SUM,
            "sequential" if recipe.is_sequential else "sum",
            "float64" if recipe.in_float64 or has_doubles else "float32",
            tuple(lora.name for lora in sources.loras),
            number in watched,
        )
        for number, (results, own) in enumerate(steps)
    )


def _joined(
    targets: Mapping[str, Target], patches: Sequence[Patch], kept: Mapping[str, Stored], *, summed: bool
) -> Iterator[tuple[tuple[Result, ...], tuple[Patch, ...]]]:
    """Yield weights that are computed together with the patches that change them, and those that are cast alone."""
    touched, groups = touched_by(patches), _groups(patches, summed=summed)
    for target in targets.values():
        group = groups.get(target.key, (target.key,))
        if target.key in touched and group[0] == target.key:
            together = {patch.number: patch for key in group for patch in touched[key]}
            results = tuple(_result(targets, kept, key) for key in group)
            yield results, tuple(sorted(together.values(), key=lambda patch: patch.lora))
        elif target.key not in touched and target.dtype != target.source.dtype:
            yield (Result.plain(target),), ()


def _watched(patches: Sequence[Sequence[Patch]]) -> frozenset[int]:
    """Choose steps by their numbers, given their patches, at even distances among those of each LoRA."""
    own: defaultdict[int, dict[int, None]] = defaultdict(dict)
    for number, of_step in enumerate(patches):
        for patch in of_step:
            own[patch.lora][number] = None
    return frozenset(number for steps in own.values() for number in [*steps][:: -(-len(steps) // WATCHED)])


def _result(targets: Mapping[str, Target], kept: Mapping[str, Stored], key: str) -> Result:
    weight = kept.get(key)
    if weight is None:
        return Result.plain(targets[key])
    own = {role: targets[weight.parts[role].key] for role in weight.codec.written(weight)}
    return Result(weight, weight.codec, own)


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
        source = target.source.first
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
