"""What a bake does to each tensor of the output: compute it in a step, or copy it in a range of bytes."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from lorabake.adapters.shapes import matrix
from lorabake.codecs.codec import WEIGHT, Codec, Stored
from lorabake.codecs.plain import PLAIN
from lorabake.errors import InternalError
from lorabake.keymap.view import Region, View
from lorabake.matching.patches import Patch
from lorabake.sources import Sources
from lorabake.tensors.dtypes import nbytes
from lorabake.tensors.header import TensorInfo
from lorabake.visible import short_repr

WATCHED = 64
"""Steps of each LoRA, about, at which a bake looks to see what becomes of its change."""

Touched = Mapping[str, Sequence[Patch]]
"""The patches that change each base tensor, by its key."""


@dataclass(frozen=True, slots=True)
class Target:
    """Say where one tensor comes from and where it goes: `file` of the plan, `offset` from that file's data.

    `key` is its own in the plan, `name` what its file calls it. `source` shows it in tensors of the base, whose
    weights are `weights`, in the view's order. So its name, its parts and their order may differ from the base's.
    With a `rounding_seed`, its values are rounded stochastically. With `data`, it is of no tensor of the base, and
    holds these bytes.
    """

    __repr__ = short_repr

    key: str
    name: str
    source: View
    weights: tuple[Stored, ...]
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    rounding_seed: int | None = None
    data: bytes | None = None

    @property
    def is_direct(self) -> bool:
        """Tell whether it is one tensor of the base, whole, in the same place and under the same key."""
        return self.source.keys == (self.key,) and self.source == whole(self.key, self.shape)

    @property
    def weight(self) -> Stored:
        """Return the one weight that it shows; raise ValueError where there are several."""
        (weight,) = self.weights
        return weight

    @property
    def is_drawn(self) -> bool:
        """Tell whether chance rounds what is computed."""
        return self.rounding_seed is not None

    @property
    def nbytes(self) -> int:
        """Count the bytes written."""
        return nbytes(self.dtype, self.shape)


def whole(key: str, shape: tuple[int, ...]) -> View:
    """Show a tensor of the base as it is."""
    return View((Region(key, 0, matrix(shape)[0]),), shape)


@dataclass(frozen=True, slots=True)
class Piece:
    """Say which rows of its module a patch has in a piece of a tensor."""

    patch: Patch
    rows: slice


@dataclass(frozen=True, slots=True)
class Result:
    """Say what becomes of one weight: what it is before, and the keys of the tensors that hold it then, by role.

    `codec` is the format in which they hold it: the plain one, or the weight's own if it keeps its format.
    """

    __repr__ = short_repr

    source: Stored
    codec: Codec
    keys: Mapping[str, str]

    @property
    def key(self) -> str:
        """Return the weight's key, which the first of its tensors has, too."""
        return self.source.key

    @classmethod
    def plain(cls, weight: Stored) -> Result:
        """Say that a weight becomes a plain one."""
        return cls(weight, PLAIN, {WEIGHT: weight.key})


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
    """Compute weights that patches or targets join; without patches, cast them. All that this takes is here.

    `results` are the weights, and `targets` what is written of them. `number` is the step's own in a plan. `order`
    says whether each delta is taken against the base's weight, or against what the patches before it made of it.
    `loras` names every LoRA of the plan by its number, for messages. At the tensors of a step that `is_watched` a
    bake looks to see what becomes of each change.
    """

    __repr__ = short_repr

    number: int
    results: tuple[Result, ...]
    targets: tuple[Target, ...]
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
        """Make the step that computes a target from its weights alone."""
        return cls(number, tuple(map(Result.plain, target.weights)), (target,), (), precision=precision)

    def target_of(self, key: str) -> Target:
        """Return the target that is a tensor of the base as it is; raise ValueError where it is shown otherwise."""
        for target in self.targets:
            if target.key == key and target.is_direct:
                return target
        raise ValueError(f"{key} is no tensor of its own in this output")

    def targets_of(self, result: Result) -> dict[str, Target]:
        """Return the targets that are the tensors of a weight, by role; raise ValueError as `target_of` does."""
        return {role: self.target_of(key) for role, key in result.keys.items()}

    @property
    def stored(self) -> Iterator[TensorInfo]:
        """Yield the tensors of the inputs that the targets are computed from, as they are stored."""
        return (part for result in self.results for part in result.source.parts.values())

    @property
    def by_rows(self) -> bool:
        """Tell whether any rows of the weights can be computed without the others."""
        if any(result.source.tensor is None for result in self.results) or not self.summed:
            return False
        return not any(map(needs_whole, self.patches))

    def is_in_rows(self, target: Target) -> bool:
        """Tell whether each row of a target is a whole row of a weight: then it is written without the others."""
        view = target.source
        if target.is_direct:
            return True
        if view.transpose or view.picked is not None:
            return False
        return all(self.matrix(key)[1] == view.width for key in view.keys)

    def matrix(self, key: str) -> tuple[int, int]:
        """Return how many rows a tensor of the base has, as its patches count them, and how many values in each."""
        shape = self._shape(key)
        for patch in self.patches:
            if key in patch.view.keys:
                width = patch.view.width
                return prod(shape) // max(width, 1), width
        return matrix(shape)

    def _shape(self, key: str) -> tuple[int, ...]:
        for target in self.targets:
            if target.key == key and target.is_direct:
                return target.shape
        for result in self.results:
            for role, held in result.keys.items():
                if held == key:
                    return result.source.shape if key == result.key else result.source.parts[role].shape
        raise KeyError(key)

    def pieces(self) -> Iterator[tuple[str, int, int, tuple[Piece, ...]]]:
        """Cut the weights' rows where any patch begins or ends: (tensor, first row, last row, who is there)."""
        for key in (result.key for result in self.results):
            summed = [patch for patch in self.patches if patch.kind.adds]
            spans = [(patch, span) for patch in summed for span in patch.view.spans(key)]
            cuts = sorted({at for _, span in spans for at in (span.stored.start, span.stored.stop)})
            for start, stop in itertools.pairwise(cuts):
                there = tuple(
                    Piece(patch, piece.own) for patch, span in spans if (piece := span.cut(start, stop)) is not None
                )
                if there:
                    yield key, start, stop, there


@dataclass(frozen=True, slots=True)
class Joined:
    """Hold what one step is to compute, what it writes of that, and what changes it."""

    results: tuple[Result, ...]
    targets: tuple[Target, ...]
    patches: tuple[Patch, ...] = ()


def precision_of(steps: Iterable[Step]) -> Precision:
    """Return the precision that steps of one plan are computed in."""
    return "float64" if any(step.precision == "float64" for step in steps) else "float32"


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
    sources: Sources, targets: Iterable[Target], patches: Sequence[Patch], kept: Mapping[str, Stored]
) -> tuple[Step, ...]:
    """Make the steps that compute targets: one for each group that a patch or a target joins, or cast.

    `kept` are the weights that stay stored otherwise than as plain ones, and can be changed nevertheless.
    """
    recipe = sources.recipe
    targets = tuple(targets)
    steps = list(_joined(targets, patches, kept, summed=recipe.method.name == "sum"))
    has_doubles = any(result.source.dtype == "F64" for joined in steps for result in joined.results)
    watched = _watched([joined.patches for joined in steps])
    _check_computed(targets, patches, steps)
    return tuple(
        Step(
            number,
            joined.results,
            joined.targets,
            joined.patches,
            Method(**recipe.method.model_dump()) if joined.patches else SUM,
            "sequential" if recipe.is_sequential else "sum",
            "float64" if recipe.in_float64 or has_doubles else "float32",
            tuple(lora.name for lora in sources.loras),
            number in watched,
        )
        for number, joined in enumerate(steps)
    )


def _joined(
    targets: Sequence[Target], patches: Sequence[Patch], kept: Mapping[str, Stored], *, summed: bool
) -> Iterator[Joined]:
    """Yield weights that are computed together, their targets and the patches that change them; and what is cast."""
    touched = touched_by(patches)
    weights = {weight.key: weight for target in targets for weight in target.weights}
    groups = _groups(targets, patches, touched, summed=summed)
    shown: defaultdict[str, list[Target]] = defaultdict(list)
    for target in targets:
        for key in target.source.keys:
            shown[key].append(target)
    for target in targets:
        key = target.source.keys[0]
        group = groups.get(key, (key,))
        if not touched.keys().isdisjoint(group):
            if group[0] == key and shown[key][0].key == target.key:
                own = {patch.number: patch for member in group for patch in touched.get(member, ())}
                results = tuple(_result(weights, kept, member) for member in group)
                held = [member for result in results for member in result.keys.values()]
                firsts = [member for member in held if member in group]
                written = {each.key: each for member in (*firsts, *held) for each in shown[member]}
                yield Joined(
                    results, tuple(written.values()), tuple(sorted(own.values(), key=lambda patch: patch.lora))
                )
        elif key not in touched and not can_be_copied(target):
            yield Joined(tuple(map(Result.plain, target.weights)), (target,))


def _check_computed(targets: Iterable[Target], patches: Iterable[Patch], steps: Iterable[Joined]) -> None:
    """Raise InternalError for a target that patches change and no step computes: it would be the base's."""
    touched = touched_by(patches).keys()
    computed = {target.key for joined in steps for target in joined.targets}
    for target in targets:
        if target.key not in computed and not touched.isdisjoint(target.source.keys):
            raise InternalError(f"{target.key} is changed, and no step computes it")


def can_be_copied(target: Target) -> bool:
    """Tell whether ranges of the base's bytes are a target's, where nothing changes its weights."""
    if any(weight.dtype != target.dtype for weight in target.weights):
        return False
    view = target.source
    return target.is_direct or (not view.transpose and view.picked is None and all(w.tensor for w in target.weights))


def _watched(patches: Sequence[Sequence[Patch]]) -> frozenset[int]:
    """Choose steps by their numbers, given their patches, at even distances among those of each LoRA."""
    own: defaultdict[int, dict[int, None]] = defaultdict(dict)
    for number, of_step in enumerate(patches):
        for patch in of_step:
            own[patch.lora][number] = None
    return frozenset(number for steps in own.values() for number in [*steps][:: -(-len(steps) // WATCHED)])


def _result(weights: Mapping[str, Stored], kept: Mapping[str, Stored], key: str) -> Result:
    weight = kept.get(key)
    if weight is None:
        return Result.plain(weights[key])
    return Result(weight, weight.codec, {role: weight.parts[role].key for role in weight.codec.written(weight)})


def _groups(
    targets: Iterable[Target], patches: Iterable[Patch], touched: Touched, *, summed: bool
) -> dict[str, tuple[str, ...]]:
    """Join base tensors that a patch can only change together, or that one target shows; the first names a group."""
    joined = [patch.view.keys for patch in patches if needs_whole(patch) or not summed]
    joined += [target.source.keys for target in targets if not touched.keys().isdisjoint(target.source.keys)]
    group: dict[str, list[str]] = {}
    for keys in (keys for keys in joined if len(keys) > 1):
        merged = list(dict.fromkeys(member for key in keys for member in group.get(key, [key])))
        group |= dict.fromkeys(merged, merged)
    return {key: tuple(keys) for key, keys in group.items()}
