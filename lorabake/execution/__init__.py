"""Execute plans: compute the tensors of plans on one base, on one device, by several workers.

Copying untouched ranges starts before torch is imported; hashing follows the finished ranges.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorabake.execution.agenda import Agenda, Computed
from lorabake.execution.crew import Shared
from lorabake.execution.ends import Inputs, Output
from lorabake.execution.running import Beside, Ways, run
from lorabake.planning import Plan
from lorabake.planning.tally import Tally
from lorabake.progress import unseen


@dataclass(frozen=True, slots=True)
class Executed:
    """Tell what a plan's execution found out.

    `hashes` are the SHA-256 of each file's data, or empty; `digests` those of the inputs, by their placeholders;
    `taken` those of all files that were digested.
    `tallies` sum up what was observed of each LoRA's change. `computed` maps each device class that computed to the
    keys of its tensors, in the plan's order; `left_to_cpu` are those that an accelerator could not hold or compute.
    `stages` are the workers' seconds by stage.
    """

    plan: Plan
    hashes: tuple[str, ...]
    digests: Mapping[str, str]
    taken: Mapping[Path, str]
    tallies: Mapping[int, Tally]
    computed: Mapping[str, tuple[str, ...]]
    left_to_cpu: tuple[str, ...]
    stages: Mapping[str, float]
    peak_memory: int | None

    @property
    def device(self) -> str:
        """Name the device classes that computed; a plan without steps counts as the CPU's."""
        return "+".join(sorted(self.computed)) or "cpu"

    @property
    def input_sha256(self) -> dict[str, str]:
        """Map the path of each digested input to its SHA-256."""
        return {str(path): self.digests[placeholder] for placeholder, path in self.plan.digests.items()}

    @property
    def survival(self) -> dict[int, float]:
        """Estimate the share of each LoRA's change that arrived, by the LoRA's number, where any was due."""
        return {lora: share for lora, tally in self.tallies.items() if (share := tally.survival) is not None}


def execute(
    plans: Sequence[Plan],
    inputs: Inputs,
    outputs: Sequence[Output],
    *,
    device: str | None,
    workers: int,
    progress: Callable[[int], None],
    warn: Callable[[str], None],
    watched: Sequence[Path] = (),
    digested: Callable[[Path, str], None] = unseen,
    agenda: Agenda | None = None,
) -> tuple[Executed, ...]:
    """Copy, compute, digest and hash side by side; return once every byte of the outputs is finished.

    The files in `watched` are digested, too. `digested` is told each digest once it is taken, and may raise an error,
    which stops all. If steps of several plans need the same tensors, each byte is read once. Unchanged ranges are
    copied for each plan, by the kernel if possible. With an `agenda`, what is not on it is finished already.
    """
    agenda = agenda or Agenda.of(plans)
    taken: dict[Path, str] = {}
    hashes = [[""] * len(plan.files) for plan in plans]

    def digest(stop: threading.Event) -> None:
        for path in dict.fromkeys([*(path for plan in plans for path in plan.digests.values()), *watched]):
            taken[path] = inputs.sha256(path, stop)
            if stop.is_set():  # then it may be the digest of a part
                return
            digested(path, taken[path])
        inputs.check_records(stop)

    def follow(number: int, files: Iterator[int], stop: threading.Event) -> None:
        for file in files:
            hashes[number][file] = outputs[number].follow(file, stop)

    def check() -> None:
        for output in outputs:
            output.check_finished()

    beside: list[Beside] = [(digest, outputs[0].place)]
    for number, plan in enumerate(plans):
        files = Shared(iter(range(len(plan.files))))
        side_by_side = max(1, min(workers // len(plans), len(plan.files)))
        beside += [(partial(follow, number, files), outputs[number].place)] * side_by_side
    ran = run(agenda, plans, inputs, outputs, Ways(device, workers, progress, warn), beside=beside, finished=check)
    found = []
    for number, plan in enumerate(plans):
        computed = {**agenda.before[number], **ran.computed[number]}
        kinds = _kinds(plan, computed)
        left = tuple(target.key for step in plan.steps if computed[step.number].is_left for target in step.targets)
        if left:
            asked = next(each.asked for each in computed.values() if each.is_left)
            warn(_left_to_the_cpu(asked, left, sum(len(step.targets) for step in plan.steps)))
        found.append(
            Executed(
                plan=plan,
                hashes=tuple(hashes[number]),
                digests={placeholder: taken[path] for placeholder, path in plan.digests.items()},
                taken=taken,
                tallies=_summed(plan, computed),
                computed=kinds,
                left_to_cpu=left,
                stages=ran.stages[number],
                peak_memory=ran.peak_memory,
            )
        )
    return tuple(found)


def _kinds(plan: Plan, computed: Mapping[int, Computed]) -> dict[str, tuple[str, ...]]:
    """List by device class the tensors that it computed, in the plan's order."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for step in plan.steps:
        kinds[computed[step.number].kind] += [target.key for target in step.targets]
    return {kind: tuple(keys) for kind, keys in kinds.items()}


def _summed(plan: Plan, computed: Mapping[int, Computed]) -> dict[int, Tally]:
    """Sum the tallies of all steps by LoRA, in the plan's order."""
    tallies: dict[int, Tally] = {}
    for step in plan.steps:
        for lora, tally in computed[step.number].tallies.items():
            tallies.setdefault(lora, Tally()).add(tally)
    return tallies


def _left_to_the_cpu(device: str, keys: tuple[str, ...], count: int) -> str:
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return (
        f"the CPU computed {len(keys)} of {count} tensors, whose last bits are the CPU's: "
        f"{device} cannot hold or compute {shown}, even for one worker alone"
    )
