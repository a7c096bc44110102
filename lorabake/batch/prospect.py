"""What baking many outputs would take: which are there already, what is read and written for the others."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabake.artifacts.current import Current, find_current
from lorabake.artifacts.watch import Watch
from lorabake.batch.groups import Limits, memory_of, passes
from lorabake.planning import Plan
from lorabake.writing.linking import room_of
from lorabake.writing.room import Room, rooms_for
from lorabake.writing.together import check_apart


@dataclass(frozen=True, slots=True)
class Prospect:
    """Hold the plans of outputs, those that are due, and the passes that would bake these with so many workers."""

    plans: tuple[Plan, ...]
    due: tuple[Plan, ...]
    passes: tuple[tuple[Plan, ...], ...]
    workers: int

    @classmethod
    def of(cls, plans: Sequence[Plan], workers: int) -> Prospect:
        """Look which outputs are there already, as a batch does; part the others into passes.

        LoRAs of an output that is there are digested, unless the cache knows them. Raise TargetError for two plans
        with one output, and for an output that is an input of another plan.
        """
        check_apart([*plans])
        states = ((plan, find_current(Watch.of(plan, locked=False), None)) for plan in plans)
        due = tuple(plan for plan, state in states if not isinstance(state, Current))
        return cls(tuple(plans), due, tuple(passes(due, Limits(None, workers))) if due else (), workers)

    def is_current(self, plan: Plan) -> bool:
        """Tell whether the output of one of the plans is there already."""
        return all(plan is not each for each in self.due)

    @property
    def base_bytes(self) -> int:
        """Count the bytes of the bases that are read, once in each pass."""
        return sum(together[0].sources.base.size for together in self.passes)

    @property
    def lora_bytes(self) -> int:
        """Count the bytes of the other inputs that are read: each LoRA, VAE and part once in each pass."""
        return sum(sum(_others(together).values()) for together in self.passes)

    @property
    def written_bytes(self) -> int:
        """Count the bytes that are written."""
        return sum(map(room_of, self.due))

    @property
    def memory(self) -> int:
        """Estimate the bytes of anonymous memory that the largest pass needs."""
        return max((memory_of(together, self.workers) for together in self.passes), default=0)

    @property
    def rooms(self) -> tuple[Room, ...]:
        """Say for each disk what the outputs that are due need."""
        return rooms_for(self.due)

    @property
    def shared(self) -> dict[str, int]:
        """Map each input of more than one output, as the recipe writes it, to how many have it; bases come first."""
        every = [[entry.path for _, entry in plan.sources.inputs] for plan in self.plans]
        counts = Counter(path for paths in every for path in dict.fromkeys(paths))
        bases = dict.fromkeys(paths[0] for paths in every)
        return {path: counts[path] for path in (bases | dict.fromkeys(counts)) if counts[path] > 1}


def _others(together: Sequence[Plan]) -> dict[Path, int]:
    """Map the inputs of a pass, but for its base, to their sizes."""
    inputs = (checkpoint for plan in together for checkpoint, _ in plan.sources.inputs[1:])
    return {Path(os.path.realpath(checkpoint.path)): checkpoint.size for checkpoint in inputs}
