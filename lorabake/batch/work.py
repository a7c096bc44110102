"""What a process does of a batch that others share in: a part of a pass, whose receipts it lands, or a file's digest.

A job is small, and can be pickled: it names recipes and outputs, and never holds a tensor.
"""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from lorabake.batch import digests
from lorabake.batch.engines import Telling
from lorabake.batch.landed import Landed
from lorabake.batch.parts import Part, left_of, parts_of
from lorabake.batch.receipts import Ground, Receipt, ground_of, land
from lorabake.execution.agenda import Agenda, Computed
from lorabake.execution.running import Ways, run
from lorabake.machine import check_room_for, worded
from lorabake.options import RunOptions
from lorabake.planning import Plan, plan
from lorabake.planning.links import linked
from lorabake.recipe import Recipe
from lorabake.sources import resolve
from lorabake.tensors.once import shared
from lorabake.visible import short_repr
from lorabake.writing.inputs import Inputs
from lorabake.writing.output import Output


@dataclass(frozen=True, slots=True)
class Job:
    """Say what a process has to know to do any part of a pass: recipes, outputs, how to run, how to cut."""

    __repr__ = short_repr

    recipes: tuple[Recipe, ...]
    paths: tuple[Path, ...]
    device: str | None
    workers: int
    fsync: bool
    part_bytes: int
    link: bool = False

    @classmethod
    def of(cls, plans: Sequence[Plan], options: RunOptions, part_bytes: int) -> Self:
        """Describe a pass."""
        recipes = tuple(each.sources.recipe for each in plans)
        paths = tuple(each.path.absolute() for each in plans)
        return cls(recipes, paths, options.device, options.workers, options.fsync, part_bytes, options.link)

    @property
    def digest(self) -> str:
        """Return what tells a job from others."""
        return hashlib.sha256(pickle.dumps(self)).hexdigest()


class Engine(Protocol):
    """Do parts of a pass somewhere, each by `do`, and some of them at a time."""

    def run(self, job: Job, numbers: Sequence[int], telling: Telling) -> None:
        """Do the parts with these numbers, and tell what `do` tells; raise a LorabakeError if one fails."""

    def hash(self, job: Job, files: Sequence[tuple[int, int]], telling: Telling) -> None:
        """Hash files, each by `hash_file`: the numbers of an output and of a file of it, of which all is finished."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """Hold what a process keeps of a job from part to part."""

    digest: str
    plans: tuple[Plan, ...]
    parts: Mapping[int, Part]
    landed: tuple[Landed, ...]


_last: list[_Opened] = []


def do(
    job: Job,
    number: int,
    progress: Callable[[int], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> tuple[Receipt, ...]:
    """Do one part of a pass in this process, but for what is finished; return the receipts that landed.

    The outputs' partial folders have to be there already; whoever made them holds their locks. The job's plans are
    made once in a process. Raise a LorabakeError for what stops it: other parts are not touched by that.
    """
    with worded():
        opened = _opened(job)
        with Inputs(*opened.plans) as inputs:
            outputs = [Output(each, inputs, overwrite=True, fsync=job.fsync) for each in opened.plans]
            try:
                for output in outputs:
                    output.weights.join()
                ways = Ways(job.device, job.workers, progress, warn)
                return do_left([opened.parts[number]], inputs, outputs, opened.landed, ways)
            finally:
                for output in outputs:
                    output.weights.close()


def hash_file(job: Job, number: int, file: int) -> None:
    """Hash a file of the output with a number in this process; the digest lies beside the receipts then.

    All of the file has to be finished. Raise a LorabakeError for what stops it.
    """
    with worded():
        opened = _opened(job)
        plan, ground = opened.plans[number], opened.landed[number].ground
        with Inputs(plan) as inputs:
            output = Output(plan, inputs, overwrite=True, fsync=job.fsync)
            try:
                output.weights.join([file])
                digests.take(output, file, ground, threading.Event())
            finally:
                output.weights.close()


def _opened(job: Job) -> _Opened:
    digest = job.digest
    if not _last or _last[0].digest != digest:
        with shared():
            plans = tuple(plan(resolve(recipe), path) for recipe, path in zip(job.recipes, job.paths, strict=True))
        plans = tuple(map(linked, plans)) if job.link else plans
        parts = {part.number: part for part in parts_of(plans, job.part_bytes)}
        landed = tuple(Landed(each, ground_of(each, job.device)) for each in plans)
        _last[:] = [_Opened(digest, plans, parts, landed)]
    return _last[0]


def do_left(
    parts: Sequence[Part], inputs: Inputs, outputs: Sequence[Output], known: Sequence[Landed], ways: Ways
) -> tuple[Receipt, ...]:
    """Do what receipts do not cover of parts of outputs whose files are open; return the receipts that landed."""
    covered = [each.look(output)[0] for each, output in zip(known, outputs, strict=True)]
    left = [part for each in parts if (part := left_of(each, covered)) is not None]
    if not left:
        return ()
    if any(share.steps for part in left for share in part.portion):
        check_room_for("torch", ways.workers)
    landed: list[Receipt] = []
    grounds = [each.ground for each in known]

    def ended(number: int, computed: Sequence[Mapping[int, Computed]], stop: threading.Event) -> None:
        landed.extend(land_all(left[number], inputs, outputs, grounds, computed, stop))

    agenda = Agenda(tuple(part.portion for part in left), tuple({} for _ in outputs), ended)
    run(agenda, [output.plan for output in outputs], inputs, [output.weights for output in outputs], ways)
    return tuple(landed)


def land_all(
    part: Part,
    inputs: Inputs,
    outputs: Sequence[Output],
    grounds: Sequence[Ground],
    computed: Sequence[Mapping[int, Computed]],
    stop: threading.Event,
    *,
    followed: bool = False,
) -> list[Receipt]:
    """Land the receipts of a part that has ended, once the inputs are known to be what they were.

    With `followed`, other threads hash the outputs' files, those that are to be hashed.
    """
    inputs.check_unchanged()
    landed = []
    for output, share, own, ground in zip(outputs, part.portion, computed, grounds, strict=True):
        is_followed = followed and output.weights.is_hashed
        if share and (receipt := land(output, share, own, ground, stop, followed=is_followed)) is not None:
            landed.append(receipt)
    return landed
