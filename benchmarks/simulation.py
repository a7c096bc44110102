"""Simulate a batch on many machines: units of work drawn by workers that share storage, network cards and cores.

A discrete-event simulation: between two events every worker goes on at a rate that nobody else can raise without
taking from a slower one. Nothing is measured here; `benchmarks.scale` measures the rates of one machine and puts
them in. The same arguments give the same result.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
NEVER = math.inf
TINY = 1e-9
"""Seconds, and shares of a unit, that count as nothing."""

Dealing = Literal["queue", "shards"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Describe machines: bytes and seconds; `storage_read` and `storage_write` are what all nodes share.

    Each node runs `workers` processes. A process keeps each core but its first busy for the share `beyond` of the
    time. `opening` are the core seconds in which one starts, `dispatch` what the driver takes to hand out a unit, one
    after the other. With `dealing` in shards nobody hands out anything: each node has its own units, and does nobody
    else's. A node's memory takes `behind` bytes that the storage does not have yet; then its writers wait for the
    storage. A node is slow with the chance `slow`, by `slowness`. `lost` are the times at which a node fails; it is
    noticed after `notice`, and the node is back after `repair`.
    """

    nodes: int = 1
    workers: int = 1
    cores: int = 1
    beyond: float = 1.0
    nic: float = NEVER
    storage_read: float = NEVER
    storage_write: float = NEVER
    behind: float = 0.0
    opening: float = 0.0
    dispatch: float = 0.0
    dealing: Dealing = "queue"
    slow: float = 0.0
    slowness: float = 1.0
    lost: tuple[float, ...] = ()
    notice: float = 30.0
    repair: float = NEVER
    seed: int = 1

    def factors(self) -> list[float]:
        """Draw how fast each node is, as a share of full speed."""
        draw = random.Random(self.seed)
        return [1 / self.slowness if draw.random() < self.slow else 1.0 for _ in range(self.nodes)]


@dataclass(frozen=True, slots=True)
class Unit:
    """Name a piece of work: bytes read and written, core seconds, and what comes at its end.

    `width` is how many cores its threads keep busy, at most. `last` are core seconds on one core after that, and
    `landing` seconds in which nothing else happens. `group` is the pass that it is of: a process that did nothing of
    that pass before takes `joining` core seconds, on one core, to open it. A unit with `after` waits until all units
    of that group are done. The driver does its own units one by one; it is on one more node.
    """

    read: float = 0.0
    write: float = 0.0
    cpu: float = 0.0
    width: float = NEVER
    last: float = 0.0
    landing: float = 0.0
    group: int = 0
    joining: float = 0.0
    after: int | None = None
    driver: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """Hold a stretch of a unit in which all goes on in step: its bytes and core seconds, on so many cores at most."""

    read: float = 0.0
    write: float = 0.0
    cpu: float = 0.0
    width: float = 1.0


@dataclass(slots=True)
class Outcome:
    """Tell how a simulation went: seconds, how often each unit was done, and the share in which each part was busy.

    `begun` counts beginnings of units, `wasted` the bytes that lost nodes had moved for nothing. `cpu` are all core
    seconds, `done_at` when each group was done, in seconds.
    """

    seconds: float = 0.0
    done: Counter[int] = field(default_factory=Counter)
    begun: Counter[int] = field(default_factory=Counter)
    wasted: float = 0.0
    cpu: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    done_at: dict[int, float] = field(default_factory=dict)

    @property
    def bottleneck(self) -> str:
        """Name the part that was busy for the largest share of the time."""
        return max(self.busy, key=lambda name: self.busy[name])


def simulate(cluster: Cluster, units: Sequence[Unit]) -> Outcome:
    """Run all units to their end; raise ValueError where nobody is left to do one."""
    return _Simulation(cluster, units).run()


IDLE, BEGINS, WORKS, LANDS = range(4)
NOBODY = -1


class _Simulation:
    """Hold what every worker does; the last one is the driver."""

    def __init__(self, cluster: Cluster, units: Sequence[Unit]) -> None:
        self.cluster, self.units = cluster, units
        self.driver = cluster.nodes * cluster.workers
        count = self.driver + any(unit.driver for unit in units)
        self.node = np.minimum(np.arange(count) // cluster.workers, cluster.nodes)
        self.node[self.driver :] = cluster.nodes
        self.factor = np.append(np.array(cluster.factors()), 1.0)[self.node]
        self.state = np.full(count, IDLE)
        self.unit = np.full(count, NOBODY)
        self.stages: list[list[Stage]] = [[] for _ in range(count)]
        self.read, self.write, self.cpu, self.width, self.weight = np.ones((5, count))  # of each worker's stage
        self.left, self.rate, self.moved = np.zeros((3, count))
        self.until, self.ready = np.full(count, NEVER), np.zeros(count)
        self.group: list[int | None] = [None] * count
        self.idle = set(range(count))
        self.time = self.driver_free = self.handing_out = self.unwritten = 0.0
        self.most_unwritten, self.is_full = cluster.behind * cluster.nodes, not cluster.behind
        self.flow = np.zeros(4)  # bytes read and written, core seconds, the driver's core seconds, a second
        self.used = np.zeros(4)
        self.open = Counter(unit.group for unit in units)
        self.waiting: defaultdict[int, list[int]] = defaultdict(list)
        self.queues: defaultdict[int, deque[int]] = defaultdict(deque)
        self.returns: list[tuple[float, int]] = []
        self.down = [(time, number % cluster.nodes) for number, time in enumerate(cluster.lost)]
        self.outcome = Outcome()
        self.own = self._dealt()
        for number, unit in enumerate(units):
            if unit.after is not None and self.open[unit.after]:
                self.waiting[unit.after].append(number)
            else:
                self.queues[self.own[number]].append(number)

    def _dealt(self) -> list[int]:
        """Give each unit its queue: the driver's, that of all nodes, or of the node whose shard it is.

        The units that wait for others are for whoever ends the last of these; so they do not count for the shares.
        """
        in_shards = self.cluster.dealing == "shards"
        free = [number for number, unit in enumerate(self.units) if not unit.driver and unit.after is None]
        dealt = {number: place * self.cluster.nodes // len(free) for place, number in enumerate(free)}
        return [
            NOBODY if unit.driver else dealt.get(number, 0) if in_shards else 0
            for number, unit in enumerate(self.units)
        ]

    def run(self) -> Outcome:
        """Go from event to event until every unit is done."""
        while len(self.outcome.done) < len(self.units):
            self._hand_out()
            step = self._until_next()
            if step == NEVER:
                raise ValueError(f"{len(self.units) - len(self.outcome.done)} units have nobody left to do them")
            self.time += step
            done = np.where(self.state == WORKS, self.rate * step, 0.0)
            self.left -= done
            self.moved += done * (self.read + self.write)
            self.used += self.flow * step
            self.unwritten = max(0.0, self.unwritten + self._filling * step)
            self._end_events()
        outcome, cluster, total = self.outcome, self.cluster, max(self.time, TINY)
        read, write, cpu, driver = map(float, self.used)
        outcome.seconds, outcome.cpu = self.time, cpu + driver
        outcome.busy = {
            "storage, reading": read / cluster.storage_read / total,
            "storage, writing": write / cluster.storage_write / total,
            "network cards": (read + write) / (cluster.nic * cluster.nodes) / total,
            "cores": cpu / (cluster.cores * cluster.nodes) / total,
            "the driver": (driver + self.handing_out) / total,
        }
        return outcome

    # -- who does what -----------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        for worker in sorted(self.idle):
            if self.ready[worker] > self.time:
                continue
            is_driver = worker >= self.driver
            in_shards = self.cluster.dealing == "shards"
            queue = self.queues[NOBODY if is_driver else int(self.node[worker]) if in_shards else 0]
            if queue:
                self._begin(worker, queue.popleft(), handed_out=not (is_driver or in_shards))

    def _begin(self, worker: int, number: int, *, handed_out: bool) -> None:
        unit, begins = self.units[number], self.time
        if handed_out:
            self.driver_free = begins = max(self.time, self.driver_free) + self.cluster.dispatch
            self.handing_out += self.cluster.dispatch
        opening = 0.0
        if self.group[worker] != unit.group and worker < self.driver:
            opening = unit.joining + (self.cluster.opening if self.group[worker] is None else 0.0)
        stages = [Stage(cpu=opening), Stage(unit.read, unit.write, unit.cpu, unit.width), Stage(cpu=unit.last)]
        self.stages[worker] = [stage for stage in stages if stage.read or stage.write or stage.cpu] or [Stage()]
        self.group[worker], self.unit[worker], self.moved[worker] = unit.group, number, 0.0
        self.state[worker], self.until[worker] = BEGINS, begins
        self.idle.discard(worker)
        self.outcome.begun[number] += 1

    def _go_on(self, worker: int) -> None:
        """Begin the next stage of a worker's unit, or let it land."""
        if not self.stages[worker]:
            self.state[worker] = LANDS
            self.until[worker] = self.time + self.units[self.unit[worker]].landing
            return
        stage = self.stages[worker].pop(0)
        self.read[worker], self.write[worker], self.cpu[worker] = stage.read, stage.write, stage.cpu
        self.weight[worker] = stage.read + stage.write or stage.cpu or TINY
        self.width[worker], self.left[worker] = stage.width, 1.0
        self.state[worker], self.until[worker] = WORKS, NEVER

    # -- how fast ----------------------------------------------------------------------------------------------

    def _set_rates(self) -> None:
        """Share out cores, network cards and storage among those who work."""
        working = np.flatnonzero(self.state == WORKS)
        self.flow[:] = 0.0
        if not len(working):
            return
        cluster = self.cluster
        weight, read, write, cpu = (each[working] for each in (self.weight, self.read, self.write, self.cpu))
        beside = np.bincount(self.node[working], minlength=cluster.nodes + 1)[self.node[working]]
        with np.errstate(divide="ignore", invalid="ignore"):
            limits = np.where(cpu > 0, self._cores_of(working) * weight / cpu, weight / TINY)
            by_card = np.where(read + write > 0, cluster.nic / beside * weight / (read + write), NEVER)
        limits = np.minimum(limits, by_card)
        for _ in range(2):
            limits = shared(limits, read / weight, cluster.storage_read)
            limits = shared(limits, write / weight, cluster.storage_write) if self.is_full else limits
        self.rate[working] = rates = limits / weight
        by_driver = working >= self.driver
        self.flow[:] = (
            rates @ read,
            rates @ write,
            rates @ np.where(by_driver, 0.0, cpu),
            rates @ np.where(by_driver, cpu, 0.0),
        )

    def _cores_of(self, working: NDArray[np.intp]) -> Numbers:
        """Give each worker the cores that it can use, or where a node has too few, as many as any other there."""
        nodes, cores = self.node[working], self.cluster.cores * self.factor[working]
        widths = np.minimum(self.width[working] * self.factor[working], cores)
        wanted, beside = np.bincount(nodes, widths)[nodes], np.bincount(nodes)[nodes]
        found = np.where(wanted <= cores, widths, cores / beside)
        for node in np.unique(nodes[(wanted > cores) & (widths < cores / beside)]):
            own = nodes == node
            found[own] = shared(widths[own], np.ones(own.sum()), cores[own][0])
        first = self.factor[working]
        return np.where(found > first, first + (found - first) * self.cluster.beyond, found)

    @property
    def _filling(self) -> float:
        """Return how many bytes more than the storage takes come into the nodes' memory in a second."""
        has_limit = self.cluster.behind and self.cluster.storage_write < NEVER
        return float(self.flow[1]) - self.cluster.storage_write if has_limit else 0.0

    # -- what happens ------------------------------------------------------------------------------------------

    def _until_next(self) -> float:
        working = self.state == WORKS
        times = [float(self.until.min()) - self.time]
        if working.any():
            times.append(float((self.left[working] / self.rate[working]).min()))
        if self._filling > 0 and not self.is_full:
            times.append((self.most_unwritten - self.unwritten) / self._filling)
        later = self.ready[(self.ready > self.time) & (self.ready < NEVER)]
        times += [float(time) - self.time for time in later]
        times += [time - self.time for time, _ in (*self.returns, *self.down)]
        return max(0.0, min(times))

    def _end_events(self) -> None:
        now = self.time + TINY
        is_full = self.unwritten >= self.most_unwritten * (1 - TINY)
        changed, self.is_full = is_full is not self.is_full, is_full
        for worker in np.flatnonzero((self.state == WORKS) & (self.left <= TINY)):
            self._go_on(int(worker))
            changed = True
        for worker in np.flatnonzero((self.state == LANDS) & (self.until <= now)):
            self._finish(int(worker))
        for worker in np.flatnonzero((self.state == BEGINS) & (self.until <= now)):
            self._go_on(int(worker))
            changed = True
        for event in [event for event in self.down if event[0] <= now]:
            self.down.remove(event)
            self._fail(event[1])
            changed = True
        for back in [back for back in self.returns if back[0] <= now]:
            self.returns.remove(back)
            self.queues[self.own[back[1]]].appendleft(back[1])
        if changed:
            self._set_rates()

    def _finish(self, worker: int) -> None:
        number = int(self.unit[worker])
        self.outcome.done[number] += 1
        group = self.units[number].group
        self.open[group] -= 1
        if not self.open[group]:
            self.outcome.done_at[group] = self.time
            for later in self.waiting.pop(group, ()):
                if self.cluster.dealing == "shards" and not self.units[later].driver:
                    self.own[later] = int(self.node[worker])
                    self.queues[self.own[later]].appendleft(later)
                else:
                    self.queues[self.own[later]].append(later)
        self.state[worker], self.unit[worker], self.until[worker] = IDLE, NOBODY, NEVER
        self.idle.add(worker)

    def _fail(self, node: int) -> None:
        """Lose what a node has in flight: it is begun again, from nothing, once the loss is noticed."""
        for worker in map(int, np.flatnonzero(self.node == node)):
            number = int(self.unit[worker])
            if number != NOBODY:
                self.outcome.wasted += float(self.moved[worker])
                self.returns.append((self.time + self.cluster.notice, number))
            self.state[worker], self.unit[worker], self.until[worker] = IDLE, NOBODY, NEVER
            self.group[worker], self.ready[worker] = None, self.time + self.cluster.repair
            self.idle.add(worker)


def shared(limits: Numbers, shares: Numbers, most: float) -> Numbers:
    """Lower rates to one level at which their shares of a resource add up to at most `most`.

    Whoever needs less than the level keeps its rate; `shares` say how much of a rate goes through the resource.
    """
    if most == NEVER or float(limits @ shares) <= most:
        return limits
    order = np.argsort(limits, kind="stable")
    own, part = limits[order], shares[order]
    before = np.concatenate([[0.0], np.cumsum(own * part)[:-1]])
    weight = np.cumsum(part[::-1])[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.where(weight > 0, (most - before) / weight, NEVER)
    level = levels[np.argmax(own >= levels)]
    return np.where(shares > 0, np.minimum(limits, level), limits)
