"""Run an agenda: copy and compute side by side, portion by portion, and tell of each portion's end."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from lorabake.execution.agenda import Agenda, Computed, Ended
from lorabake.execution.crew import Crew, Shared
from lorabake.execution.ends import Inputs, Output
from lorabake.execution.memory import PeakMemory
from lorabake.execution.units import Unit, units_of
from lorabake.interrupts import held
from lorabake.planning import Plan

if TYPE_CHECKING:
    from lorabake.execution.device import Device
    from lorabake.execution.executor import Executor
    from lorabake.execution.worker import Worker

Beside = tuple[Callable[[threading.Event], object], Path]
"""What runs in a thread of its own meanwhile until the event is set, and where it writes, for messages."""


@dataclass(frozen=True, slots=True)
class Ways:
    """Say how to run: on which device, by how many workers, and whom to tell of written bytes and fallbacks."""

    device: str | None
    workers: int
    progress: Callable[[int], None]
    warn: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ran:
    """Tell what became of an agenda: of each plan's steps, the workers' seconds by stage, and the most memory."""

    computed: tuple[dict[int, Computed], ...]
    stages: tuple[dict[str, float], ...]
    peak_memory: int | None


class Ends:
    """Count what is left of each portion, and pass on the number of one of which nothing is."""

    def __init__(self, portions: Iterable[int]) -> None:
        self._left = [*portions]
        self._turn = threading.Lock()
        self._ended: SimpleQueue[int] = SimpleQueue()

    def note(self, portion: int) -> None:
        """Note that one thing of a portion is done."""
        with self._turn:
            self._left[portion] -= 1
            if not self._left[portion]:
                self._ended.put(portion)

    def follow(self, stop: threading.Event) -> Iterator[int]:
        """Yield each portion's number once, when it ends, until all have, or `stop` is set."""
        for _ in self._left:
            while not stop.is_set():
                try:
                    yield self._ended.get(timeout=0.1)
                except Empty:
                    continue
                break


def run(
    agenda: Agenda,
    plans: Sequence[Plan],
    inputs: Inputs,
    outputs: Sequence[Output],
    ways: Ways,
    *,
    beside: Sequence[Beside] = (),
    finished: Callable[[], None] | None = None,
) -> Ran:
    """Do what is on an agenda; return once all of that is written and its portions' ends are told.

    `finished` is called once everything is written; then what runs `beside` is waited for.
    """
    memory = PeakMemory()
    crowd: list[Worker] = []
    devices: tuple[Device, ...] = ()
    steps = [plan.steps for plan in plans]
    shares = [[share.steps for share in portion] for portion in agenda.portions]
    parted = [units_of(each, number) for number, each in enumerate(shares)]
    units = [unit for each in parted for unit in each]
    ends = Ends(len(each) + len(plans) for each in parted)

    def copy(number: int) -> None:
        for place, portion in enumerate(agenda.portions):
            for given in portion[number].given:
                outputs[number].write(given.file, given.offset, memoryview(given.data))
                outputs[number].finish(given.file, given.offset, given.offset + len(given.data))
            for each in portion[number].copies:
                if crew.stop.is_set():
                    return
                outputs[number].copy(each, ways.progress, crew.stop)
            if not crew.stop.is_set():  # then it may be copied in part
                ends.note(place)

    def seen(number: int, portion: int) -> dict[int, Computed]:
        own = [worker.executors[number] for worker in crowd]
        return _computed([step.number for step in agenda.portions[portion][number].steps], own)

    def tell(ended: Ended) -> None:
        for portion in ends.follow(crew.stop):
            ended(portion, [seen(number, portion) for number in range(len(plans))], crew.stop)

    def note(unit: Unit) -> None:
        ends.note(unit.portion)

    workers = max(1, min(ways.workers, len(units)))
    with Crew(workers) as crew:
        with held():
            writing = [crew.start(partial(copy, number), each.place) for number, each in enumerate(outputs)]
            following = [crew.start(partial(task, crew.stop), place) for task, place in beside]
            if agenda.ended is not None:
                following.append(crew.start(partial(tell, agenda.ended), outputs[0].place))
            if units:
                from lorabake.execution.device import Turns
                from lorabake.execution.worker import Hands, Worker, devices_for, work
        if units:
            memory.sample()
            devices = devices_for(steps, ways.device, ways.warn)
            queue, hands = Shared(iter(units)), Hands(devices, Turns(workers))
            crowd.extend(Worker(steps, inputs, outputs, hands) for _ in range(workers))
            with held():
                for worker in crowd:
                    task = partial(work, worker, queue, ways.progress, crew.stop, crew.ready, note)
                    writing.append(crew.start(task, outputs[0].place))
        crew.join(writing, memory.sample)
        if finished is not None:
            finished()
        crew.join(following, memory.sample)
    return Ran(
        tuple(
            {step: each for portion in range(len(agenda.portions)) for step, each in seen(number, portion).items()}
            for number in range(len(plans))
        ),
        tuple(_seconds(worker.executors[number] for worker in crowd) for number in range(len(plans))),
        memory.peak,
    )


def _computed(steps: Iterable[int], executors: Sequence[Executor]) -> dict[int, Computed]:
    """Tell of steps that have ended, by their numbers; their executors may be at others."""
    return {
        step: Computed(each.places[step], str(each.device.place), each.tallies[step])
        for step in steps
        for each in executors
        if step in each.places
    }


def _seconds(executors: Iterable[Executor]) -> dict[str, float]:
    """Sum the seconds of all workers by stage."""
    stages: defaultdict[str, float] = defaultdict(float)
    for executor in executors:
        for stage, seconds in executor.seconds.items():
            stages[stage] += seconds
    return dict(stages)
