"""Bake many recipes: plan all, part them into passes that read a base once, and go on where one fails.

The bytes of each output are those of a bake of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import compress
from operator import not_
from pathlib import Path
from typing import Literal, Self

from lorabake.baking import bake_pass
from lorabake.batch.groups import Limits, passes
from lorabake.batch.parts import PART_BYTES
from lorabake.batch.restart import Restart
from lorabake.batch.shards import Shard
from lorabake.batch.sharing import bake_share, shares_of
from lorabake.batch.work import Engine
from lorabake.errors import ArgumentError, LorabakeError
from lorabake.options import RunOptions
from lorabake.planning import Plan, plan
from lorabake.planning.links import linked
from lorabake.progress import unseen
from lorabake.recipe import Recipe
from lorabake.results import BakeResult
from lorabake.settings import ENGINE, LINK, SHARD
from lorabake.sources import resolve
from lorabake.tensors.once import shared
from lorabake.visible import short_repr
from lorabake.writing.together import check_apart

Status = Literal["baked", "current", "waiting", "failed", "left"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Tell what became of one recipe: baked, current (it was there already), waiting (other shards do the rest
    of it), failed, or left (after a failure).

    `name` is the output's, or the file's of a recipe that cannot be read.
    """

    __repr__ = short_repr

    name: str
    status: Status
    recipe: Recipe | None = None
    result: BakeResult | None = None
    error: LorabakeError | None = None

    @classmethod
    def of(
        cls, recipe: Recipe, status: Status, result: BakeResult | None = None, error: LorabakeError | None = None
    ) -> Self:
        """Tell what became of a recipe that could be read; what the error's frames held is let go."""
        return cls(recipe.name, status, recipe, result, error.without_frames() if error is not None else None)


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """Say how a batch runs.

    `run` is how each bake does. `memory` is the most bytes that a pass may take. With `fail_fast`, nothing is begun
    after a failure. `begun` is told the plans of all passes and how many bytes are to be written,
    and `ended` each outcome as it comes.

    A pass is done in parts, about `part_bytes` of the base each. With `jobs`, that many processes do parts, or whole
    passes of small bases, side by side; each has the workers of `run` and the memory. With the engine "ray", the
    nodes of a cluster do: the one at `address` (HOST:PORT, or "auto"), that of RAY_ADDRESS in the environment, or one
    that is started on this machine. What is finished of a batch that was stopped is kept: `kept` is told of which
    output, and how many bytes. With `recheck` they are read, and done again where they are not what they were.

    With a `shard`, only its share of the work is done, in this process, and only the outputs of its share have an
    outcome.
    """

    __repr__ = short_repr

    run: RunOptions = field(default_factory=RunOptions)
    memory: int | None = None
    fail_fast: bool = False
    begun: Callable[[Sequence[tuple[Plan, ...]], int], None] = unseen
    ended: Callable[[Outcome], None] = unseen
    part_bytes: int = PART_BYTES
    recheck: bool = False
    engine: Engine | Literal["local", "ray"] | None = None
    jobs: int | None = None
    address: str | None = None
    kept: Callable[[Path, int], None] = unseen
    shard: Shard | None = None


def bake_all(recipes: Iterable[Recipe], options: BatchOptions | None = None) -> tuple[Outcome, ...]:
    """Bake recipes; return what became of each, in their order.

    Recipes on one base are baked in one pass, which reads it once. A recipe that fails stops none of the others.
    Raise TargetError for two recipes with one output, and for an output that is an input of another recipe: then
    nothing is baked.

    Examples:
        >>> outcomes = lorabake.bake_all(lorabake.load_recipes("recipe.yaml"))
        >>> [(outcome.name, outcome.status) for outcome in outcomes]
        [('out', 'baked')]
    """
    options = options or BatchOptions()
    recipes = tuple(recipes)
    _check_links(options)
    outcomes: dict[int, Outcome] = {}
    plans: dict[int, Plan] = {}

    def end(number: int, outcome: Outcome) -> None:
        outcomes[number] = outcome
        options.ended(outcome)

    with shared():
        for number, recipe in enumerate(recipes):
            try:
                planned = plan(resolve(recipe))
                plans[number] = linked(planned) if options.run.link else planned
            except LorabakeError as error:
                end(number, Outcome.of(recipe, "failed", error=error))
    check_apart([*plans.values()])
    numbers = {each.path: number for number, each in plans.items()}
    if options.shard is not None:
        for each, outcome in _shared([*plans.values()], options, options.shard):
            end(numbers[each.path], outcome)
        return tuple(outcomes[number] for number in sorted(outcomes))
    chosen = [*passes([*plans.values()], Limits(options.memory, options.run.workers))]
    options.begun(chosen, sum(each.copied_bytes + each.baked_bytes for each in plans.values()))

    def is_over() -> bool:
        return options.fail_fast and any(outcome.status == "failed" for outcome in outcomes.values())

    with closing(_passes(chosen, options, is_over)) as ends:
        for together, found in ends:
            for each, outcome in zip(together, found, strict=True):
                end(numbers[each.path], outcome)
    for number in sorted({*range(len(recipes))} - {*outcomes}):
        end(number, Outcome.of(recipes[number], "left"))
    return tuple(outcomes[number] for number in range(len(recipes)))


def _check_links(options: BatchOptions) -> None:
    """Raise ArgumentError for links where other machines may read the base: each link changes its time of status."""
    is_here = options.shard is None and options.engine in (None, "local")
    if options.run.link and not is_here:
        others = ", ".join(map(str, (SHARD.of("3/8"), ENGINE.of("ray"))))
        raise ArgumentError(
            f"{LINK}: a link would stop other machines that read the base; leave out {others}, or {LINK}"
        )


def _shared(plans: Sequence[Plan], options: BatchOptions, shard: Shard) -> Iterator[tuple[Plan, Outcome]]:
    """Do a shard's share of plans; tell what became of the outputs in it."""
    shares = shares_of(plans, shard, Limits(options.memory, options.run.workers), options.part_bytes)
    options.begun([share.plans for share in shares], sum(share.size for share in shares))
    has_failed = False
    for share in shares:
        if has_failed and options.fail_fast:
            yield from ((each, Outcome.of(each.sources.recipe, "left")) for each in share.plans)
            continue
        for ended in bake_share(share, options.run, options.part_bytes, recheck=options.recheck):
            has_failed |= ended.status == "failed"
            yield ended.plan, Outcome.of(ended.plan.sources.recipe, ended.status, ended.result, ended.error)


def _passes(
    chosen: Sequence[tuple[Plan, ...]], options: BatchOptions, is_over: Callable[[], bool]
) -> Generator[tuple[Sequence[Plan], Sequence[Outcome]]]:
    """Bake passes until `is_over` says so; yield each with what became of its outputs."""
    from lorabake.batch.engines.opening import are_whole, opened  # not needed for one process's batch
    from lorabake.batch.engines.spread import Spread

    with opened(options, chosen) as (own, engine):
        own = replace(own, engine=engine)
        whole = are_whole(chosen, options) if isinstance(engine, Spread) else [False] * len(chosen)
        if isinstance(engine, Spread):
            yield from engine.bake([*compress(chosen, whole)], own, is_over)
        for together in compress(chosen, map(not_, whole)):
            if not is_over():
                yield together, baked(together, own)


def baked(together: Sequence[Plan], options: BatchOptions) -> Sequence[Outcome]:
    """Bake plans in one pass; where that fails, one by one, so that only the one at fault fails."""
    own = options.engine if not isinstance(options.engine, str) else None
    try:
        restart = Restart(options.run, options.part_bytes, recheck=options.recheck, engine=own, kept=options.kept)
        results = bake_pass(together, options.run, restart)
    except LorabakeError as error:
        if len(together) == 1:
            return [Outcome.of(together[0].sources.recipe, "failed", error=error)]
        return [outcome for each in together for outcome in baked([each], options)]
    return [
        Outcome.of(result.plan.sources.recipe, "current" if result.is_up_to_date else "baked", result)
        for result in results
    ]
