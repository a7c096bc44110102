"""Share a batch among commands that know nothing of one another: `--shard 3/8`, or `--shard auto`.

Every command makes the same list of the work, from flags and inputs alone, and takes its own stretch of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Self

from lorabake.errors import ArgumentError
from lorabake.settings import SHARD

AUTO: Final = "auto"
"""The word that asks the scheduler's variables which shard this is."""

COUNT: Final = "LORABAKE_SHARDS"
"""The variable that says how many shards there are, where a scheduler doesn't."""


def _by_hand() -> str:
    return f"Or say which shard this is: {SHARD.of('3/8')}."


@dataclass(frozen=True, slots=True)
class Shard:
    """Name one share of a batch: `number` counts from 1 to `count`. It is written 3/8.

    Raise ArgumentError for a shard that is none of `count`.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1 or not 1 <= self.number <= self.count:
            advice = f"Shards count from 1: 1/{self.count} to {self.count}/{self.count}."
            raise ArgumentError(
                f"shard {self}: there is no such shard",
                advice if self.count > 0 else "The second number says how many shards there are: 1 or more.",
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def of(cls, text: str, environment: Mapping[str, str]) -> Self:
        """Read a shard such as 3/8; for "auto" ask the variables of the environment.

        Raise ArgumentError for another text, and where the variables name no shard, or two.
        """
        if text.strip() == AUTO:
            return cls(*_found(environment))
        match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
        if match is None:
            raise ArgumentError(f"shard {text!r}: write the number and the count, as in 3/8, or {AUTO}")
        return cls(int(match[1]), int(match[2]))

    def share(self, sizes: Sequence[int]) -> range:
        """Return which of the items with these sizes are this shard's.

        Neighbours go to one shard, so that it opens few recipes and completes most of their outputs itself. The
        shares are even within an item.
        """
        weights = [max(size, 1) for size in sizes]
        total = sum(weights)
        owners = [
            (2 * end - weight) * self.count // (2 * total) + 1
            for end, weight in zip(accumulate(weights), weights, strict=True)
        ]  # by the middle of each item: they never fall
        mine = [number for number, owner in enumerate(owners) if owner == self.number]
        return range(mine[0], mine[-1] + 1) if mine else range(0)


# -- what schedulers say -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scheduler:
    """Name the variables of one scheduler: an index, how many there are, and perhaps the first, last and step."""

    index: str
    count: str
    first: str | None = None
    last: str | None = None
    step: str | None = None
    advice: str = ""

    @property
    def names(self) -> str:
        return f"{self.index} and {self.count}"

    def found(self, environment: Mapping[str, str]) -> tuple[int, int]:
        """Return number and count; raise ArgumentError where they do not fit together."""
        index, count = _number(environment, self.index), _number(environment, self.count)
        first, step = _number(environment, self.first, 0), _number(environment, self.step, 1)
        last = _number(environment, self.last, first + step * (count - 1))
        place, rest = divmod(index - first, step) if step else (0, 1)
        if rest or not 0 <= place < count or last != first + step * (count - 1):
            given = [name for name in (self.index, self.count, self.first, self.last, self.step) if name]
            said = ", ".join(f"{name}={environment[name]}" for name in given if environment.get(name))
            raise ArgumentError(
                f"shard {AUTO}: {said} name no shard: indexes have to follow one another with one step", _by_hand()
            )
        return place + 1, count


_SCHEDULERS: Final = (
    _Scheduler(
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_COUNT",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_MAX",
        "SLURM_ARRAY_TASK_STEP",
    ),
    _Scheduler("SLURM_PROCID", "SLURM_NTASKS"),
    _Scheduler("RANK", "WORLD_SIZE"),
    _Scheduler(
        "JOB_COMPLETION_INDEX",
        COUNT,
        advice=f"Kubernetes does not tell how many there are: set {COUNT} to the Job's completions.",
    ),
    _Scheduler("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
)


def _found(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the number and the count that the environment gives.

    A scheduler that speaks of one process alone says nothing where another one speaks of several: an array's job
    is a job of one process.
    """
    said = dict(_said(environment))
    several = {names: shard for names, shard in said.items() if shard[1] > 1} or said
    if len({*several.values()}) > 1:
        (one, first), (other, second), *_ = several.items()
        raise ArgumentError(
            f"shard {AUTO}: {one} say {first[0]}/{first[1]}, and {other} say {second[0]}/{second[1]}",
            f"Unset those that do not mean this batch. {_by_hand()}",
        )
    if several:
        found = next(iter(several.values()))
        if environment.get(COUNT) and _number(environment, COUNT) != found[1]:
            names = next(iter(several))
            raise ArgumentError(
                f"shard {AUTO}: {names} say {found[0]}/{found[1]}, and {COUNT} is {environment[COUNT]}",
                f"Unset what does not mean this batch. {_by_hand()}",
            )
        return found
    for each in _SCHEDULERS:
        for set_one, lacking in ((each.index, each.count), (each.count, each.index)):
            if environment.get(set_one):
                raise ArgumentError(
                    f"shard {AUTO}: {set_one} is set, and {lacking} is not", *filter(None, [each.advice, _by_hand()])
                )
    raise ArgumentError(
        f"shard {AUTO}: no scheduler says which shard this is",
        f"These variables were looked for: {'; '.join(each.names for each in _SCHEDULERS)}.",
        _by_hand(),
    )


def _said(environment: Mapping[str, str]) -> Iterator[tuple[str, tuple[int, int]]]:
    for each in _SCHEDULERS:
        if environment.get(each.index) and environment.get(each.count):
            yield each.names, each.found(environment)


def _number(environment: Mapping[str, str], name: str | None, default: int = 0) -> int:
    text = environment.get(name) if name else None
    if not text:
        return default
    if re.fullmatch(r"\d{1,9}", text, re.ASCII) is None:
        raise ArgumentError(f"shard {AUTO}: {name} is {text!r}, and should be a whole number", _by_hand())
    return int(text)
