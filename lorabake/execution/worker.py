"""Run one thread of a bake: take units of work until none is left, and run each step by its plan's executor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, zip_longest

import torch

from lorabake.execution.crew import refused
from lorabake.execution.device import CPU, Device, Turns, call_first, call_lapack_first, choose_device
from lorabake.execution.ends import Reader, Writer
from lorabake.execution.executor import Executor, dtypes, lane_of, precision
from lorabake.execution.products import Products
from lorabake.execution.units import SharedReader, Task, Unit
from lorabake.matching.patches import Patch
from lorabake.planning.steps import Step

_TURN = threading.Lock()


@dataclass(frozen=True, slots=True)
class Hands:
    """Hold the device of each plan, and the turns that workers take there."""

    devices: tuple[Device, ...]
    turns: Turns


class Worker:
    """Run units of work in one thread: each task by its plan's executor, through one lane for each device."""

    def __init__(
        self, plans: Sequence[Sequence[Step]], reader: Reader, writers: Sequence[Writer], hands: Hands
    ) -> None:
        self.reader, self.writers, self.products = SharedReader(reader), writers, Products()
        self.lanes = {device.place: lane_of(device) for device in hands.devices}
        self.executors = [
            Executor(steps, self.reader, writer, device, hands.turns, self.lanes[device.place], self.products)
            for steps, writer, device in zip(plans, writers, hands.devices, strict=True)
        ]

    def set_up(self) -> None:
        """Make this thread's first calls into libraries."""
        torch.set_num_threads(1)
        for lane in self.lanes.values():
            lane.enter()
        for dtype in {executor.dtype for executor in self.executors}:
            call_first(CPU.place, dtype)
        asking = [executor for executor in self.executors if executor.uses_lapack]
        for dtype, place in {(one.dtype, place) for one in asking for place in (CPU.place, one.device.place)}:
            call_lapack_first(place, dtype)

    def run(self, unit: Unit) -> Generator[int]:
        """Run the tasks of a unit; yield the bytes written after each piece.

        If all tasks compute on the CPU and can be tiled, they go through their tensor together, and a product that
        several of them add is made once. On another device, each task runs by itself, with the memory that it would
        have alone.
        """
        in_tiles = unit.in_tiles and all(self.executors[task.plan].device.is_cpu for task in unit.tasks)
        common = self._patches(unit.tasks) if in_tiles else []
        with self.reader.sharing(unit, in_tiles=in_tiles), self.products.sharing(common), ExitStack() as open_tasks:
            running = [open_tasks.enter_context(closing(self._run(task))) for task in unit.tasks]
            if in_tiles:
                for counts in zip_longest(*running, fillvalue=0):
                    yield sum(counts)
            else:
                yield from chain.from_iterable(running)

    def _patches(self, tasks: Sequence[Task]) -> list[tuple[Patch, torch.dtype]]:
        """List the patches of tasks with the dtypes in which they are computed; none of a task that is alone."""
        several = tasks if len(tasks) > 1 else ()
        return [(patch, self.executors[task.plan].dtype) for task in several for patch in task.step.patches]

    def _run(self, task: Task) -> Generator[int]:
        """Run one task; report the system's refusals to write (failures of reading report themselves)."""
        try:
            yield from self.executors[task.plan].run(task.step)
        except OSError as error:
            raise refused(error, self.writers[task.plan].place) from error


def work(
    worker: Worker,
    units: Iterator[Unit],
    progress: Callable[[int], None],
    stop: threading.Event,
    ready: threading.Barrier,
    ended: Callable[[Unit], None],
) -> None:
    """Take units, one at a time, until none is left or `stop` is set; `units` may be shared by threads.

    `ended` is told each unit that is done.

    A thread's own first calls into libraries must not race either: workers make them one after the other, and none
    begins its work before all are done (`ready` counts them).
    """
    try:
        with _TURN:
            worker.set_up()
        ready.wait()
    except BaseException:
        ready.abort()
        raise
    for unit in units:
        if stop.is_set():
            return
        with closing(worker.run(unit)) as counts:
            for count in counts:
                progress(count)
                if stop.is_set():
                    return
        ended(unit)


def devices_for(plans: Sequence[Sequence[Step]], name: str | None, warn: Callable[[str], None]) -> tuple[Device, ...]:
    """Choose a device for the steps of each plan, as if it were alone; give each warning once.

    A device is tested once for all plans that ask the same of it.
    """
    warnings: list[str] = []
    asked = [(precision(steps), frozenset(dtypes(steps))) for steps in plans]
    chosen = {
        (accuracy, types): choose_device(name, precision=accuracy, dtypes=types, warn=warnings.append)
        for accuracy, types in dict.fromkeys(asked)
    }
    devices = tuple(chosen[each] for each in asked)
    for warning in dict.fromkeys(warnings):
        warn(warning)
    return devices
