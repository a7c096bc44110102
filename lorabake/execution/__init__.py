"""Execute plans: compute the tensors of plans on one base, on one device, by several workers.

Copying untouched ranges starts before torch is imported; hashing follows the finished ranges.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorabake.execution.crew import Crew, Shared
from lorabake.execution.ends import Inputs, Output
from lorabake.execution.memory import PeakMemory
from lorabake.execution.units import units_of
from lorabake.interrupts import held
from lorabake.planning import Plan
from lorabake.planning.tally import Tally
from lorabake.progress import unseen

if TYPE_CHECKING:
    from lorabake.execution.device import Device
    from lorabake.execution.executor import Executor
    from lorabake.execution.worker import Worker


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
) -> tuple[Executed, ...]:
    """Copy, compute, digest and hash side by side; return once every byte of the outputs is finished.

    The files in `watched` are digested, too. `digested` is told each digest once it is taken, and may raise an error,
    which stops all. If steps of several plans need the same tensors, each byte is read once. Unchanged ranges are
    copied for each plan, by the kernel if possible.
    """
    taken: dict[Path, str] = {}
    hashes: list[list[str]] = [[] for _ in plans]

    def copy(plan: Plan, output: Output) -> None:
        for given in plan.given:
            output.write(given.file, given.offset, memoryview(given.data))
            output.finish(given.file, given.offset, given.offset + len(given.data))
        for each in plan.copies:
            if crew.stop.is_set():
                return
            output.copy(each, progress, crew.stop)

    def digest() -> None:
        for path in dict.fromkeys([*(path for plan in plans for path in plan.digests.values()), *watched]):
            taken[path] = inputs.sha256(path, crew.stop)
            if crew.stop.is_set():  # then it may be the digest of a part
                return
            digested(path, taken[path])
        inputs.check_records(crew.stop)

    def follow(number: int) -> None:
        hashes[number].extend(outputs[number].follow(crew.stop))

    memory = PeakMemory()
    crowd: list[Worker] = []
    devices: tuple[Device, ...] = ()
    steps = [plan.steps for plan in plans]
    units = units_of(steps)
    workers = max(1, min(workers, len(units)))
    with Crew(workers) as crew:
        with held():
            writing = [crew.start(partial(copy, *pair), pair[1].place) for pair in zip(plans, outputs, strict=True)]
            following = [crew.start(digest, outputs[0].place)]
            following += [crew.start(partial(follow, number), each.place) for number, each in enumerate(outputs)]
            if units:
                from lorabake.execution.device import Turns
                from lorabake.execution.worker import Hands, Worker, devices_for, work
        if units:
            memory.sample()
            devices = devices_for(steps, device, warn)
            queue, hands = Shared(iter(units)), Hands(devices, Turns(workers))
            crowd = [Worker(steps, inputs, outputs, hands) for _ in range(workers)]
            with held():
                for worker in crowd:
                    task = partial(work, worker, queue, progress, crew.stop, crew.ready)
                    writing.append(crew.start(task, outputs[0].place))
        crew.join(writing, memory.sample)
        for output in outputs:
            output.check_finished()
        crew.join(following, memory.sample)
    found = []
    for number, plan in enumerate(plans):
        own = [worker.executors[number] for worker in crowd]
        computed = _computed(plan, own)
        left = computed.get("cpu", ()) if devices and not devices[number].is_cpu else ()
        if left:
            place, count = str(devices[number].place), sum(len(step.targets) for step in plan.steps)
            warn(_left_to_the_cpu(place, left, count))
        found.append(
            Executed(
                plan=plan,
                hashes=tuple(hashes[number]),
                digests={placeholder: taken[path] for placeholder, path in plan.digests.items()},
                taken=taken,
                tallies=_summed(plan, own),
                computed=computed,
                left_to_cpu=left,
                stages=_seconds(own),
                peak_memory=memory.peak,
            )
        )
    return tuple(found)


def _computed(plan: Plan, executors: Iterable[Executor]) -> dict[str, tuple[str, ...]]:
    """List by device class the tensors that it computed, in the plan's order."""
    places: defaultdict[str, set[str]] = defaultdict(set)
    for executor in executors:
        for kind, keys in executor.computed.items():
            places[kind].update(keys)
    in_order = [target.key for step in plan.steps for target in step.targets]
    return {kind: tuple(key for key in in_order if key in keys) for kind, keys in places.items()}


def _seconds(executors: Iterable[Executor]) -> dict[str, float]:
    """Sum the seconds of all workers by stage."""
    stages: defaultdict[str, float] = defaultdict(float)
    for executor in executors:
        for stage, seconds in executor.seconds.items():
            stages[stage] += seconds
    return dict(stages)


def _summed(plan: Plan, executors: Iterable[Executor]) -> dict[int, Tally]:
    """Sum the tallies of all steps by LoRA, in the plan's order."""
    seen: dict[int, dict[int, Tally]] = {}
    for executor in executors:
        seen |= executor.tallies
    tallies: dict[int, Tally] = {}
    for step in plan.steps:
        for lora, tally in seen[step.number].items():
            tallies.setdefault(lora, Tally()).add(tally)
    return tallies


def _left_to_the_cpu(device: str, keys: tuple[str, ...], count: int) -> str:
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return (
        f"the CPU computed {len(keys)} of {count} tensors, whose last bits are the CPU's: "
        f"{device} cannot hold or compute {shown}, even for one worker alone"
    )
