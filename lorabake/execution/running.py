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

from lorabake.execution.agenda import Agenda, Computed, Ended, Portion
from lorabake.execution.crew import Crew, Shared, refused
from lorabake.execution.ends import Inputs, Output
from lorabake.execution.memory import PeakMemory
from lorabake.execution.units import Unit, units_of
from lorabake.interrupts import held
from lorabake.planning import Plan
from lorabake.planning.copies import Copy, Given

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
        for number in (number for number, left in enumerate(self._left) if not left):
            self._ended.put(number)

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
    items = [_copies(portion) for portion in agenda.portions]
    ends = Ends(len(own) + len(each) for own, each in zip(parted, items, strict=True))
    queued = Shared((place, item) for place, each in enumerate(items) for item in each)

    def copy() -> None:
        for place, (number, each) in queued:
            output = outputs[number]
            try:
                if isinstance(each, Given):
                    output.write(each.file, each.offset, memoryview(each.data))
                    output.finish(each.file, each.offset, each.offset + len(each.data))
                else:
                    output.copy(each, ways.progress, crew.stop)
            except OSError as error:
                raise refused(error, output.place) from error
            if crew.stop.is_set():  # then it may be copied in part
                return
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
            writing = [crew.start(copy, outputs[0].place) for _ in range(min(len(plans), max(1, ways.workers)))]
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


def _copies(portion: Portion) -> list[tuple[int, Given | Copy]]:
    """List what is written as it is, with the numbers of the outputs: each range for all of them before the next one.

    So the system reads the base from the disk once, however large it is.
    """
    rows: list[list[Given | Copy]] = [[*share.given, *share.copies] for share in portion]
    turns = range(max(map(len, rows), default=0))
    return [(number, row[turn]) for turn in turns for number, row in enumerate(rows) if turn < len(row)]


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
