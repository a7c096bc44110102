"""List what a batch consists of as units for `benchmarks.simulation`: what is planned, baked, hashed, and by whom."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.rates import Rates
from benchmarks.simulation import Unit


@dataclass(frozen=True, slots=True)
class Load:
    """Count the work of one output: bytes of its base, how many are computed, its LoRAs, and the arithmetic.

    `cut` are the bytes that are computed in each part, where the parts are known; otherwise all are alike.
    """

    name: str
    base: float
    touched: float
    loras: float
    flops: float
    tensors: int
    files: int = 1
    cut: tuple[float, ...] = ()

    @property
    def converted(self) -> float:
        """Count the values that change between float16 and float32: to and fro, and those of the LoRAs."""
        return (2 * self.touched + self.loras) / 2


SDXL = Load("SDXL, one LoRA of rank 32", 6.94e9, 5.84e9, 0.228e9, 187e9, 2515)
LARGE = Load("a model of 600 GB, one LoRA of rank 32", 600e9, 500e9, 6e9, 16e12, 2000, files=120)
"""As `benchmarks.floor` counts SDXL; the large one has the same arithmetic for each byte, in larger tensors."""

Way = Literal["command", "pool", "shards"]
"""One process does all; a driver has others do pieces of it; or each process does its share, and knows no other."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Say what is baked, and how: so many outputs of a load, in passes of `together`, cut into parts of the base.

    Each of `processes` has `threads` that compute, and as many that copy. With `whole`, a process does a pass from
    beginning to end, and no part of one. Outputs are hashed if `hashed`.
    """

    load: Load
    outputs: int
    together: int
    part: float
    way: Way
    processes: int = 1
    threads: int = 1
    whole: bool = False
    hashed: bool = True

    @property
    def parts(self) -> int:
        """Count the parts of a pass."""
        return len(self.load.cut) or max(1, round(self.load.base / self.part))

    @property
    def passes(self) -> list[int]:
        """List how many outputs each pass has."""
        whole, rest = divmod(self.outputs, self.together)
        return [self.together] * whole + [rest] * (rest > 0)


@dataclass(frozen=True, slots=True)
class Threads:
    """Add up the core seconds of threads that work side by side, and the seconds of the slowest sort of them.

    Some compute, some copy, one hashes each output on the way, one digests what receipts say.
    """

    cpu: float
    slowest: float

    @classmethod
    def of(cls, *sorts: tuple[float, ...]) -> Threads:
        """Take the core seconds and the number of threads of each sort, once for each stretch of its work."""
        stretches = [[*zip(sort[::2], sort[1::2], strict=True)] for sort in sorts]
        return cls(
            sum(cpu for sort in stretches for cpu, _ in sort),
            max(sum(cpu / count for cpu, count in sort) for sort in stretches),
        )

    @property
    def width(self) -> float:
        """Return how many cores they keep busy, at most."""
        return self.cpu / self.slowest if self.slowest else 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """Count the core seconds of some outputs on one base that are baked together."""

    load: Load
    outputs: int
    rates: Rates

    @property
    def planning(self) -> float:
        """Plan them, in one thread."""
        return self.rates.first + (self.outputs - 1) * self.rates.plan * self.load.tensors / 1000

    @property
    def computing(self) -> float:
        """Read what is computed once, and compute and write it for each output."""
        load, rates = self.load, self.rates
        each = load.loras / rates.read + load.flops / rates.flops + load.converted / rates.convert
        return rates.overhead * (load.touched / rates.read + self.outputs * (each + load.touched / rates.write))

    @property
    def copying(self) -> float:
        """Copy to each output what stays as it is."""
        return self.rates.overhead * self.outputs * (self.load.base - self.load.touched) / self.rates.copy

    @property
    def hashing(self) -> float:
        """Read all that was written, and hash it."""
        rate = 1 / self.rates.read + 1 / self.rates.hash
        return self.rates.overhead * self.outputs * self.load.base * rate

    @property
    def digesting(self) -> float:
        """Hash the LoRAs, one after the other: their digests go into the headers."""
        return self.outputs * self.load.loras * (1 / self.rates.read + 1 / self.rates.hash)

    @property
    def reserving(self) -> float:
        """Give the new files their length."""
        return self.outputs * self.load.base / self.rates.reserve


def units_of(batch: Batch, rates: Rates, *, landing: float) -> Iterator[Unit]:
    """List the units of a batch; `landing` are the seconds in which one receipt gets to where it is safe.

    Those that write are the ones that bake.
    """
    groups = itertools.count()
    before: int | None = None
    if batch.way == "pool":
        before = next(groups)
        yield Unit(cpu=planning_all(batch, rates), width=1.0, group=before, driver=True)
    for outputs in batch.passes:
        work = Work(batch.load, outputs, rates)
        if batch.way == "command" or batch.whole:
            yield _whole_pass(batch, work, landing, next(groups), before)
        elif batch.way == "shards":
            yield from _shards(batch, work, landing, groups)
        else:
            units = [*_pool(batch, work, landing, groups, before)]
            yield from units
            before = units[-1].group


def opening_of(batch: Batch, rates: Rates) -> float:
    """Return the core seconds in which a process starts that bakes; without a driver it plans all outputs first."""
    if batch.way == "pool":
        return rates.start
    return planning_all(batch, rates) + (rates.start - rates.command if batch.way == "shards" else 0.0)


def planning_all(batch: Batch, rates: Rates) -> float:
    """Return the core seconds in which one process starts and plans all outputs."""
    return rates.command + Work(batch.load, batch.outputs, rates).planning


def _whole_pass(batch: Batch, work: Work, landing: float, group: int, before: int | None) -> Unit:
    """Do a pass in one process: outputs are hashed on the way. Who computes waits for torch, who copies does not."""
    load, rates, outputs = batch.load, work.rates, work.outputs
    importing = rates.start - rates.command if batch.way == "command" else 0.0
    threads = Threads.of(
        (importing, 1, work.computing, batch.threads),
        (work.copying, min(outputs, batch.threads)),
        (work.hashing if batch.hashed else 0.0, outputs * min(load.files, max(1, batch.threads // outputs))),
        (work.digesting, 1),
    )
    return Unit(
        read=load.base + outputs * load.loras,
        write=outputs * load.base,
        cpu=threads.cpu,
        width=threads.width,
        landing=outputs * landing,
        group=group,
        joining=work.reserving + (work.planning if batch.way == "pool" else 0.0),
        after=before,
    )


def _parts(batch: Batch, work: Work, landing: float, group: int) -> list[Unit]:
    """Do the parts of a pass, and digest in one thread what the receipts say.

    A process of a pool does nothing else while it digests; one of shards is at its next part meanwhile.
    """
    load, outputs, parts = batch.load, work.outputs, batch.parts
    left = load.base - load.touched
    digesting = work.hashing / parts
    units = []
    for number in range(parts):
        touched = load.cut[number] if load.cut else load.touched / parts
        copied = load.base / parts - touched
        computing, copying = work.computing * touched / load.touched, work.copying * copied / left
        baking = [(computing, batch.threads), (copying, min(outputs, batch.threads))]
        threads = Threads.of(*baking, (digesting, 1)) if batch.way == "shards" else Threads.of(*baking)
        unit = Unit(
            read=(load.base + outputs * load.loras) / parts,
            write=outputs * load.base / parts,
            cpu=threads.cpu,
            width=threads.width,
            last=0.0 if batch.way == "shards" else digesting,
            landing=outputs * landing,
            group=group,
        )
        units.append(unit)
    return units


def _pool(batch: Batch, work: Work, landing: float, groups: Iterator[int], before: int | None) -> Iterator[Unit]:
    """Let a pool do the parts of a pass, and then hash the files, each on one core; the driver completes outputs.

    A process reads each receipt once, before the part that comes next.
    """
    load, outputs, parts = batch.load, work.outputs, batch.parts
    told = outputs * work.rates.told
    making, before = before, next(groups)
    yield Unit(cpu=work.reserving, width=1.0, group=before, after=making, driver=True)
    group, hashing, completing = next(groups), next(groups), next(groups)
    for part in _parts(batch, work, landing, group):
        yield replace(part, last=part.last + told * min(batch.processes, parts), joining=work.planning, after=before)
    for _ in range(outputs * load.files if batch.hashed else 0):
        cpu = work.hashing / outputs / load.files
        yield Unit(read=load.base / load.files, cpu=cpu, width=1.0, group=hashing, after=group)
    after = hashing if batch.hashed else group
    yield Unit(cpu=told * parts + work.digesting, width=1.0, group=completing, after=after, driver=True)


def _shards(batch: Batch, work: Work, landing: float, groups: Iterator[int]) -> Iterator[Unit]:
    """Let shards do the parts of a pass. Who ends the last part of a file hashes it, of each output, side by side."""
    load, outputs, parts = batch.load, work.outputs, batch.parts
    told = outputs * work.rates.told * parts
    all_parts = _parts(batch, work, landing, 0)
    for file in range(load.files):
        group = next(groups)
        begin, end = (number * parts // load.files for number in (file, file + 1))
        yield from (replace(part, group=group) for part in all_parts[begin:end])
        yield Unit(
            read=outputs * load.base / load.files if batch.hashed else 0.0,
            cpu=work.hashing / load.files if batch.hashed else 0.0,
            width=float(min(outputs, batch.threads)),
            last=told,
            group=next(groups),
            after=group,
        )
