"""The whole flow: plan, copy, compute, hash and commit, side by side.

Copying untouched ranges starts before torch is imported; hashing follows the finished ranges.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Generic, TypeVar

from lorabake.errors import FileError
from lorabake.interrupts import held
from lorabake.machine import check_room_for, exhausted, unwritable, worded
from lorabake.planning import Plan, default_workers
from lorabake.planning import plan as make_plan
from lorabake.planning.cautions import Caution, cautions_of, cautions_of_recipe, check_survival
from lorabake.planning.tally import Tally
from lorabake.recipe import Recipe
from lorabake.tensors.dtypes import DTYPES
from lorabake.writing.inputs import Inputs
from lorabake.writing.output import Output

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Say how to bake. Of all this only the device changes bytes: each class of devices has last bits of its own.

    `device` is torch's name for one, or "auto": the accelerator that torch has, or else the CPU. Without it counts
    LORABAKE_DEVICE in the environment, and without that "auto". `progress` receives counts of finished bytes, `warn`
    messages about fallbacks; both from any thread. `done` is called once the target is the new one: nothing that
    happens later can undo that.
    """

    device: str | None = None
    workers: int = field(default_factory=default_workers)
    overwrite: bool = False
    fsync: bool = True
    progress: Callable[[int], None] = lambda count: None
    warn: Callable[[str], None] = lambda message: None
    done: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class BakeResult:
    """Tell what was written and how long it took.

    `data_sha256` maps each file to the SHA-256 of its tensor data (empty without `output.hash`); `input_sha256`
    each digested input to its own. `stages` are the workers' seconds by stage, `peak_memory` bytes of anonymous
    memory, or None where the system does not tell. `survival` estimates the share of each LoRA's change that the
    output's resolution keeps, by the LoRA's number; `cautions` tell whose change is none, gets lost, or is absurd, as
    `warn` was told. `computed` maps each device class that
    computed to the keys of its tensors, in the plan's order; `left_to_cpu` are those that an accelerator could not
    hold or compute.
    """

    plan: Plan
    path: Path
    size: int
    data_sha256: dict[str, str]
    input_sha256: dict[str, str]
    seconds: float
    sync_seconds: float
    stages: dict[str, float]
    peak_memory: int | None
    survival: dict[int, float]
    computed: dict[str, tuple[str, ...]]
    left_to_cpu: tuple[str, ...]
    cautions: tuple[Caution, ...] = ()

    @property
    def device(self) -> str:
        """Name the device classes that computed, as the header does."""
        return _named(self.computed)

    @property
    def bottleneck(self) -> str:
        """Name the stage that took the workers longest."""
        return max(self.stages, key=lambda stage: self.stages[stage], default="copy")

    def report(self) -> dict[str, object]:
        """Put the result in figures, for machines."""
        return {
            "path": str(self.path),
            "bytes": self.size,
            "data_sha256": self.data_sha256,
            "inputs": self.input_sha256,
            "device": self.device,
            "left_to_cpu": list(self.left_to_cpu),
            "seconds": round(self.seconds, 3),
            "sync_seconds": round(self.sync_seconds, 3),
            "stages": {stage: round(seconds, 3) for stage, seconds in sorted(self.stages.items())},
            "bottleneck": self.bottleneck,
            "peak_memory_bytes": self.peak_memory,
            "survival": {str(lora): round(share, 4) for lora, share in self.survival.items()},
            "warnings": [str(caution) for caution in self.cautions],
            "plan": self.plan.report(),
        }


def bake(recipe: Recipe | Plan, options: RunOptions | None = None) -> BakeResult:
    """Bake a recipe, or a plan made of one, and return what was written.

    Raise a LorabakeError for whatever stops it; then the target is what it was before. A KeyboardInterrupt may also
    come just after the target has become the new one: `RunOptions.done` tells.
    """
    options = options or RunOptions()
    began = time.perf_counter()
    with worded():
        plan = recipe if isinstance(recipe, Plan) else make_plan(recipe)
        if plan.bakes:
            check_room_for("torch", options.workers)
        shares = _survival(plan, options.warn)
        output = Output(plan, overwrite=options.overwrite, fsync=options.fsync)
        with closing(Inputs(plan)) as inputs, output:
            result = _bake(plan, output, inputs, options, began, shares)
        if output.left is not None:
            options.warn(
                f"{plan.path} is complete, but {output.partial.path} cannot be removed: {output.left.strerror}; "
                "the next bake of this target removes it"
            )
        return result


def _bake(
    plan: Plan, output: Output, inputs: Inputs, options: RunOptions, began: float, shares: dict[int, float]
) -> BakeResult:
    crew = _Crew(output.partial.path)
    memory = _PeakMemory()
    recipe = plan.sources.recipe
    digests: dict[str, str] = {}
    hashes: list[str] = []

    def copy() -> None:
        for each in plan.copies:
            if crew.stop.is_set():
                return
            output.copy(inputs, each, options.progress, crew.stop)

    def digest() -> None:
        for placeholder, path in plan.digests.items():
            digests[placeholder] = inputs.sha256(path, crew.stop)
        inputs.check_records(crew.stop)

    def follow() -> None:
        hashes.extend(output.follow(hashed=recipe.output.hash, stop=crew.stop))

    stages: defaultdict[str, float] = defaultdict(float)
    places: defaultdict[str, set[str]] = defaultdict(set)
    seen: dict[str, dict[int, Tally]] = {}
    workers = max(1, min(options.workers, len(plan.bakes)))
    ready = Barrier(workers)
    try:
        with held():
            writing = [crew.start(copy)]
            following = [crew.start(digest)]
            if recipe.output.hash or options.fsync:
                following.append(crew.start(follow))
            if plan.bakes:
                from lorabake.execution.device import Turns, choose_device
                from lorabake.execution.worker import Executor, dtypes, precision, work
        if plan.bakes:
            memory.sample()
            device = choose_device(options.device, precision=precision(plan), dtypes=dtypes(plan), warn=options.warn)
            steps, turns = _Shared(iter(plan.bakes)), Turns(workers)
            executors = [Executor(plan, inputs, output, device, turns) for _ in range(workers)]
            with held():
                for executor in executors:
                    writing.append(crew.start(partial(work, executor, steps, options.progress, crew.stop, ready)))
        crew.join(writing, memory.sample)
        output.check_finished()
        crew.join(following, memory.sample)
        for executor in executors if plan.bakes else ():
            for stage, seconds in executor.seconds.items():
                stages[stage] += seconds
            for kind, keys in executor.computed.items():
                places[kind].update(keys)
            seen |= executor.tallies
    except BaseException:
        crew.stop.set()
        ready.abort()
        crew.join_quietly()
        raise
    in_order = [target.key for step in plan.bakes for target in step.targets]
    computed = {kind: tuple(key for key in in_order if key in keys) for kind, keys in places.items()}
    left = computed.get("cpu", ()) if plan.bakes and not device.is_cpu else ()
    if left:
        options.warn(_left_to_the_cpu(str(device.place), left, len(in_order)))
    _check_stated(plan, digests)
    inputs.check_unchanged()
    tallies = _summed(plan, seen)
    told = list(cautions_of_recipe(plan, {str(path): digests[place] for place, path in plan.digests.items()}))
    told += [each for each in cautions_of(plan, tallies) if each.check != "resolution" or not shares]
    for caution in told:
        options.warn(str(caution))
    syncing = time.perf_counter()
    output.complete(hashes or [""] * len(plan.files), digests, _named(computed))
    with held():
        output.commit()
        options.done()
        output.clean()
    ended = time.perf_counter()
    return BakeResult(
        plan=plan,
        path=plan.path,
        size=output.size,
        data_sha256={file.name: each for file, each in zip(plan.files, hashes, strict=False) if each},
        input_sha256={str(path): digests[place] for place, path in plan.digests.items()},
        seconds=ended - began,
        sync_seconds=ended - syncing,
        stages=dict(stages),
        peak_memory=memory.peak,
        survival=shares or {lora: share for lora, each in tallies.items() if (share := each.survival) is not None},
        computed=computed,
        left_to_cpu=left,
        cautions=tuple(told),
    )


def _named(kinds: Iterable[str]) -> str:
    """Name device classes; what computes nothing needs none but the CPU."""
    return "+".join(sorted(kinds)) or "cpu"


def _left_to_the_cpu(device: str, keys: tuple[str, ...], count: int) -> str:
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return (
        f"the CPU computed {len(keys)} of {count} tensors, whose last bits are the CPU's: "
        f"{device} cannot hold or compute {shown}, even for one worker alone"
    )


def _survival(plan: Plan, warn: Callable[[str], None]) -> dict[int, float]:
    """Estimate what a coarse output keeps of each LoRA; warn where that is little, and stop where it is less."""
    targets = (target for step in plan.bakes if step.patches for target in step.targets)
    if not any(DTYPES[target.dtype].is_coarse for target in targets):
        return {}
    from lorabake.reference.survival import survival

    shares = survival(plan)
    for warning in check_survival(plan, shares):
        warn(warning)
    return shares


def _summed(plan: Plan, seen: Mapping[str, Mapping[int, Tally]]) -> dict[int, Tally]:
    """Sum up by LoRA what was seen of each step, in the plan's order."""
    tallies: dict[int, Tally] = {}
    for step in plan.bakes:
        for lora, tally in seen[step.targets[0].key].items():
            tallies.setdefault(lora, Tally()).add(tally)
    return tallies


def _check_stated(plan: Plan, digests: dict[str, str]) -> None:
    """Compare the digests taken with those that the recipe states."""
    taken = {path: digests[place] for place, path in plan.digests.items()}
    for checkpoint, said in plan.sources.inputs:
        for path in (header.path for header in checkpoint.headers):
            if said.sha256 and taken[path] != said.sha256:
                raise FileError(
                    f"{path}: its SHA-256 is {taken[path]}, and the recipe states {said.sha256}",
                    "Nothing was written.",
                )


class _Crew:
    """Run functions in threads; the first failure stops all, and is raised to whoever waits."""

    def __init__(self, path: Path) -> None:
        self.stop = threading.Event()
        self._path = path
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []

    def start(self, task: Callable[[], object]) -> threading.Thread:
        """Run a function in a thread; signals must be held meanwhile, lest a started thread be forgotten."""

        def run() -> None:
            try:
                task()
            except BaseException as error:
                self._failures.append(error)
                self.stop.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def join(self, threads: Iterable[threading.Thread], meanwhile: Callable[[], None]) -> None:
        """Wait for threads; raise the first failure of any."""
        for thread in threads:
            while thread.is_alive():
                thread.join(0.05)
                meanwhile()
        if self._failures:
            causes = [error for error in self._failures if not isinstance(error, threading.BrokenBarrierError)]
            raise _worded([*causes, *self._failures][0], self._path)

    def join_quietly(self) -> None:
        for thread in self._threads:
            thread.join()


class _Shared(Generic[Item], Iterator[Item]):
    """Let several threads take items from one iterator."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._lock = threading.Lock()

    def __next__(self) -> Item:
        with self._lock:
            return next(self._items)


def _worded(error: BaseException, path: Path) -> BaseException:
    """Word what the machine refuses to a thread; reading words its own failures, so that others are of writing."""
    return exhausted(error) or (unwritable(path, error) if isinstance(error, OSError) else error)


class _PeakMemory:
    """Sample the anonymous memory of this process, on Linux; file pages in the system's cache don't count."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self.sample()

    def sample(self) -> None:
        if sys.platform != "linux":
            return
        with suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak or 0, int(line.split()[1]) * 1024)
