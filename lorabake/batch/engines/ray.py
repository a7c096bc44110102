"""Run pieces of work as tasks of a Ray cluster. Paths travel, tensors never do: its object store stays empty."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import ModuleType, TracebackType
from typing import Any, Final, Self

from lorabake.batch.engines import Ended, Telling, Work, tasks
from lorabake.batch.engines.cluster import STORAGE, Demand, Node, nodes
from lorabake.batch.engines.sight import Places
from lorabake.errors import LorabakeError, SurroundingsError, first_line
from lorabake.settings import are_options
from lorabake.visible import size_of

GRACE: Final = 5.0
"""Seconds that tasks have to put down their work when they are asked to stop."""

PERIOD: Final = 2.0
"""Seconds between two looks at the nodes."""

LOOKING: Final = 60.0
"""Seconds that a node has to look at the files: it starts a process for that."""


class RayTasks:
    """Run pieces of work on the nodes of a Ray cluster that this process has joined.

    `places` are checked on every node when the context is entered, and on a node that comes later. `most` bounds how
    many pieces are under way. Raise SurroundingsError where a node does not share the storage, and where none has
    what a piece of work takes.
    """

    def __init__(
        self, ray: ModuleType, demand: Demand, places: Places, telling: Telling, most: int | None = None
    ) -> None:
        self._ray: Any = ray
        self._demand, self._places, self._most = demand, places, most
        self._telling = telling
        self._running: dict[Any, Work] = {}
        self._known: set[str] = set()
        self._slots, self._looked = 0, 0.0

    @property
    def slots(self) -> int:
        """Say how many pieces the nodes run at once, and at least one: a cluster may grow."""
        return max(self._slots, 1) if self._most is None else max(min(self._slots, self._most), 1)

    def __enter__(self) -> Self:
        if any(STORAGE in node.resources for node in nodes(self._ray)):
            self._demand = replace(self._demand, storage=True)
        self._look()
        if not self._slots:
            raise SurroundingsError(
                f"no node of the cluster has what a piece of work takes: {_words(self._demand)}",
                "Ask for less, or add such a node.",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Cancel what is under way, and wait for that; tasks may put down their work first."""
        for force in (False, True):
            for task in self._running:
                with suppress(Exception):
                    self._ray.cancel(task, force=force)
            if self._running:
                _, left = self._ray.wait([*self._running], num_returns=len(self._running), timeout=GRACE)
                self._running = {task: self._running[task] for task in left}
        self._running = {}

    def begin(self, work: Work) -> None:
        """Begin a piece of work on a node that has room."""
        task = self._remote(tasks.run, self._demand.options())
        self._running[task.remote(*tasks.pack(tasks.Order(work, are_options(), tasks.own_settings())))] = work

    def wait(self, seconds: float | None) -> Sequence[Ended]:
        """Wait until a piece has ended, or the time is over; return those that have."""
        until = None if seconds is None else time.monotonic() + seconds
        while self._running:
            self._look()
            left = PERIOD if until is None else min(max(until - time.monotonic(), 0.0), PERIOD)
            ready, _ = self._ray.wait([*self._running], num_returns=1, timeout=left)
            if ready:
                return [self._ended(task, self._running.pop(task)) for task in ready]
            if until is not None and time.monotonic() >= until:
                return ()
        if seconds:
            time.sleep(seconds)
        return ()

    def _ended(self, task: Any, work: Work) -> Ended:
        """Fetch what came of a task. What Ray itself reports means that the process or its node is gone."""
        from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

        try:
            report = tasks.unpack([self._ray.get(task)])
        except (RayTaskError, RuntimeEnvSetupError) as error:
            return Ended(work, error=SurroundingsError(f"{work.name}: a node cannot run it: {_last_line(error)}"))
        except RayError as error:
            return Ended(work, lost=f"Ray said: {type(error).__name__}: {first_line(error)}")
        assert isinstance(report, tasks.Report)
        self._telling.progress(report.count)
        for warning in report.warnings:
            self._telling.warn(warning)
        done = report.done
        return Ended(work, done.result, done.error.error() if done.error else None)

    def _remote(self, function: Any, options: dict[str, Any]) -> Any:
        return self._ray.remote(function).options(**options)

    def _look(self) -> None:
        """Count the slots of the nodes, and check those that are new."""
        if time.monotonic() - self._looked < PERIOD:
            return
        fitting = [node for node in nodes(self._ray) if self._demand.fits(node.resources) > 0]
        fresh = [node for node in fitting if node.number not in self._known]
        if fresh:
            is_first = not self._known
            try:
                gone = self._check(fresh)
            except LorabakeError as error:
                if is_first:
                    raise
                self._telling.warn(f"a node has come that cannot do its share: {error.lines[0]}")
                gone = set()
            self._known |= {node.number for node in fresh} - gone
        self._slots = sum(self._demand.fits(node.resources) for node in fitting if node.number in self._known)
        self._looked = time.monotonic()

    def _check(self, fresh: Sequence[Node]) -> set[str]:
        """Let nodes look at the outputs' folders and the inputs; return the numbers of those that are gone.

        Raise SurroundingsError where a node sees other files, or has other versions.
        """
        from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        gone: set[str] = set()
        with self._places.marked() as markers:
            asked = {}
            for node in fresh:
                there = NodeAffinitySchedulingStrategy(node.number, soft=False)
                options = {"num_cpus": 0, "max_retries": 1, "scheduling_strategy": there}
                asked[self._remote(tasks.look, options).remote(*tasks.pack(markers))] = node
            _, silent = self._ray.wait([*asked], num_returns=len(asked), timeout=LOOKING)
            for task, node in asked.items():
                if task in silent:
                    raise SurroundingsError(f"node {node.address}: has not answered for {LOOKING:.0f} s")
                try:
                    sight = tasks.unpack([self._ray.get(task)])
                except (RayTaskError, RuntimeEnvSetupError) as error:
                    raise SurroundingsError(
                        f"node {node.address}: cannot run lorabake: {_last_line(error)}",
                        "Install the same version of lorabake on every node.",
                    ) from None
                except RayError:
                    gone.add(node.number)
                else:
                    markers.check(node.address, sight)  # type: ignore[arg-type]
        return gone


def has_gpus(ray: ModuleType) -> bool:
    """Tell whether any node has a GPU."""
    return any(node.resources.get("GPU", 0) >= 1 for node in nodes(ray))


def _last_line(error: Exception) -> str:
    """Return the line of Ray's report that says what happened: the last one."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _words(demand: Demand) -> str:
    words = [f"{demand.cpus} CPUs"]
    words += [f"{demand.gpus} GPU"] if demand.gpus else []
    words += [f"{size_of(demand.memory)} of memory"] if demand.memory else []
    return ", ".join([*words, *([f"1 {STORAGE}"] if demand.storage else [])])
