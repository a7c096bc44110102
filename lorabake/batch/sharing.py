"""Do one shard of a batch: its parts of all passes, and then the outputs that are complete by that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, Literal

from lorabake.batch.digests import Hands
from lorabake.batch.groups import Limits, agreed_passes
from lorabake.batch.joining import Member, do_parts, hash_files
from lorabake.batch.landed import Landed
from lorabake.batch.parts import Part, parts_of
from lorabake.batch.restart import Restart
from lorabake.batch.shards import Shard
from lorabake.errors import LorabakeError
from lorabake.options import RunOptions
from lorabake.planning import Plan
from lorabake.progress import unseen
from lorabake.results import BakeResult

ALL: Final = -1
"""Stands for the numbers of all parts."""

MOST_WORKERS: Final = 8
"""Workers that count for the memory of a pass where nobody names them: as many as any machine takes by itself."""


@dataclass(frozen=True, slots=True)
class Share:
    """Say what of one pass is a shard's: numbers of parts, or ALL; they write `size` bytes."""

    plans: tuple[Plan, ...]
    numbers: frozenset[int]
    size: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Tell what became of an output here; it is waiting where parts of other shards are missing."""

    plan: Plan
    status: Literal["baked", "current", "waiting", "failed"]
    result: BakeResult | None = None
    error: LorabakeError | None = None


@dataclass(frozen=True, slots=True)
class _Item:
    place: int
    number: int
    size: int


def shares_of(plans: Sequence[Plan], shard: Shard, limits: Limits, part_bytes: int) -> list[Share]:
    """List what is a shard's, pass by pass; each shard that is given the same gets the same list of passes."""

    def count(group: Sequence[Plan]) -> int:
        return len(parts_of(group[:1], part_bytes))

    steady = replace(limits, workers=max(limits.workers, MOST_WORKERS))  # machines have more cores and fewer
    passes = [*agreed_passes(plans, steady, shard.count, count)]
    items: list[_Item] = []
    for place, (together, is_whole) in enumerate(passes):
        size = sum(plan.size for plan in together)
        if is_whole or count(together) == 1:
            items.append(_Item(place, ALL, size))
        else:  # each part is read once, and written for each output
            items += (_Item(place, part.number, part.size) for part in parts_of(together, part_bytes))
    mine = shard.share([item.size for item in items])
    stretch = groupby(items[mine.start : mine.stop], key=lambda item: item.place)
    own = [(passes[place][0], [*together]) for place, together in stretch]
    return [
        Share(plans, frozenset(item.number for item in items), sum(item.size for item in items))
        for plans, items in own
    ]


def bake_share(share: Share, options: RunOptions, part_bytes: int, *, recheck: bool) -> Iterator[Ended]:
    """Do a share of a pass; tell what became of each output. A failure of one stops none of the others.

    What has receipts already counts as progress once the share is done.
    """
    counted: list[int] = []

    def progress(count: int) -> None:
        counted.append(count)
        options.progress(count)

    quiet = replace(options, progress=unseen, bar=False)

    def restart(known: Landed) -> Restart:
        return Restart(quiet, part_bytes, recheck=recheck, engine=None, kept=unseen, is_shared=True, known=[known])

    parts = parts_of(share.plans, part_bytes)
    parts = tuple(part for part in parts if {ALL, part.number} & share.numbers)
    joined: dict[int, Member] = {}
    for number, plan in enumerate(share.plans):
        member = Member(plan, quiet, restart)
        try:
            if member.join():
                joined[number] = member
            else:
                yield Ended(plan, "current")
        except LorabakeError as error:
            yield Ended(plan, "failed", error=error)
    try:
        failed = _do(joined, parts, replace(options, progress=progress)) if joined else {}
        with suppress(LorabakeError):  # whoever completes an output will say it
            hash_files([member for number, member in joined.items() if number not in failed], quiet, Hands())
    finally:
        for member in joined.values():
            member.leave()
    options.progress(max(0, share.size - sum(counted)))
    last: list[Member] = []
    for number, member in joined.items():
        ended = _finished(member, failed.get(number), wait=False)
        if ended.status == "waiting":  # for parts, or for another process that completes it
            last.append(member)
        else:
            yield ended
    for member in last:
        yield _finished(member, None, wait=True)


def _do(joined: dict[int, Member], parts: Sequence[Part], options: RunOptions) -> dict[int, LorabakeError]:
    """Do parts of all outputs at once; where that fails, one by one. Return the errors by the outputs' numbers."""
    own = [Part(part.number, tuple(part.portion[number] for number in joined)) for part in parts]
    try:
        do_parts([*joined.values()], own, options)
    except LorabakeError as error:
        if len(joined) == 1:
            return dict.fromkeys(joined, error)
        return {
            number: failure
            for number, member in joined.items()
            for failure in _do({number: member}, parts, options).values()
        }
    return {}


def _finished(member: Member, error: LorabakeError | None, *, wait: bool) -> Ended:
    plan = member.plan
    try:
        if error is not None and not member.is_complete:  # another process may have done what this one could not
            return Ended(plan, "failed", error=error)
        if (result := member.finish(wait=wait)) is not None:
            return Ended(plan, "baked", result)
        return Ended(plan, "current" if member.is_complete else "waiting")
    except LorabakeError as failure:
        return Ended(plan, "failed", error=failure)
