"""Make an output together with other processes, of this machine or of others, that know nothing of one another.

The first to come begins the folder, one of them makes the files in it, all write their parts and land receipts, and
one that sees all receipts completes the output. Who makes or completes has laid a claim to the folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from lorabake.artifacts.current import find_shared, keep_receipt
from lorabake.artifacts.watch import Watch
from lorabake.baking import bake_pass
from lorabake.batch import digests, notes
from lorabake.batch.landed import Landed
from lorabake.batch.parts import Part
from lorabake.batch.receipts import ground_of
from lorabake.batch.restart import Restart
from lorabake.batch.work import do_left
from lorabake.errors import LorabakeError, TargetError
from lorabake.execution.running import Ways
from lorabake.machine import unwritable, worded
from lorabake.options import RunOptions
from lorabake.planning import Plan
from lorabake.results import BakeResult
from lorabake.writing import sharing
from lorabake.writing.claim import Claim
from lorabake.writing.inputs import Inputs
from lorabake.writing.journal import RECEIPTS
from lorabake.writing.output import Output
from lorabake.writing.partial import Partial, partial_of

MADE: Final = "made"
"""A file among the receipts: the output's files are there, and take parts."""

POLL: Final = 0.1
"""Seconds from one look at what another process does to the next."""

PATIENCE: Final = 180.0
"""Seconds to wait for others to make an output's files; a dead one's claim is free before."""


class Member:
    """Make one output together with others: `join`, do parts (`do_parts`), `leave`, and then `finish`."""

    def __init__(self, plan: Plan, options: RunOptions, restart: Callable[[Landed], Restart]) -> None:
        self.plan, self.landed = plan, Landed(plan, ground_of(plan, options.device))
        self._options, self._restart = options, restart
        self._hands = digests.Hands()
        made_of = notes.sha256_of(self.landed.ground)
        self._said = json.dumps({"output": plan.path.name, "made of": made_of})
        self._partial = Partial(plan.path, shared=True)
        self._receipts = partial_of(plan.path) / RECEIPTS

    @property
    def is_complete(self) -> bool:
        """Tell whether the output has its name, and is what this plan makes."""
        return find_shared(self._watch, self._options.device) is not None

    @property
    def _watch(self) -> Watch:
        return Watch.of(self.plan, locked=self._options.locked)

    def join(self) -> bool:
        """Make the folder and the files in it, or find them made, and hold them; return False for a complete output.

        Raise TargetError if a bake of its own, or a batch of another recipe, is writing the output.
        """
        end = time.monotonic() + PATIENCE
        while True:
            try:
                if self._is_ready():
                    return True
            except FileNotFoundError:
                pass  # another process has completed the output, or given it up
            except OSError as error:
                raise unwritable(self._partial.path, error) from None
            except TargetError:
                if time.monotonic() > end or not self._is_ours:
                    raise
            self.leave()
            if not os.path.lexists(self._partial.path) and self.is_complete:
                return False
            if time.monotonic() > end:
                raise TargetError(f"{self._partial.path}: no process makes the output's files; remove the folder")
            time.sleep(POLL)

    @property
    def _is_ours(self) -> bool:
        return sharing.is_shared(self.plan.path, self._said)

    def _is_ready(self) -> bool:
        """Go on with what is to be done before parts can be written; tell whether nothing is left of that."""
        if not os.path.lexists(self._partial.path):
            if self.is_complete:
                return False
            self.plan.path.parent.mkdir(parents=True, exist_ok=True)
            if not sharing.begin(self.plan.path, self._said):
                return False
            if self.is_complete:  # it was completed between the first look and the new folder
                self._partial.hold()
                self._partial.remove()
                return False
        if not self._is_ours:
            sharing.take_over(self.plan.path, self._said)
            return False
        self._partial.hold()
        is_moving = self._partial.is_moving
        if not is_moving and (self._receipts / MADE).exists():
            return True
        with Claim(self._receipts) as claim:
            if not claim.take():
                return False
            self._restart(self.landed).complete(self.plan, lambda: keep_receipt(self._watch))
            if not is_moving:
                self._make()
            return not is_moving

    def _make(self) -> None:
        restart = self._restart(self.landed)
        with Inputs(self.plan) as inputs:
            overwrite, fsync = self._options.overwrite, self._options.fsync
            output = Output(self.plan, inputs, overwrite=overwrite, fsync=fsync, keep=restart.keep, shared=True)
            output.__enter__()
            output.weights.close()
            output.partial.leave()
        (self._receipts / MADE).touch()

    def leave(self) -> None:
        """Let go of the folder."""
        self._partial.leave()

    def finish(self, *, wait: bool = True) -> BakeResult | None:
        """Complete the output if all receipts are there; return None where parts are missing, or another one did.

        While other processes hash its files or complete it, wait, if asked to: should one die, this one goes on.
        """
        try:
            with Claim(self._receipts) as claim:
                while self._is_covered():
                    if (
                        hash_files([self], self._options, self._hands)
                        and (found := self._completed(claim)) is not None
                    ):
                        return None if found.is_up_to_date else found
                    if not wait:
                        break
                    time.sleep(POLL)
        except OSError as error:
            raise unwritable(self._partial.path, error) from None
        return None

    def _completed(self, claim: Claim) -> BakeResult | None:
        """Complete the output if the claim is free; return None where another process does, or did."""
        try:
            return bake_pass([self.plan], self._options, self._restart(self.landed))[0] if claim.take() else None
        except FileNotFoundError:  # the folder has gone
            return None
        except LorabakeError:
            if self._is_ours or not self.is_complete:
                raise
            return None

    def _is_covered(self) -> bool:
        if not self._is_ours:
            return False
        size = sum(file.data_size for file in self.plan.files)
        with _opened([self], self._options.fsync) as (_, (output,)):
            return self.landed.look(output)[0].size == size


@contextmanager
def _opened(members: Sequence[Member], fsync: bool) -> Iterator[tuple[Inputs, list[Output]]]:
    """Open the inputs of outputs, and their files."""
    with worded(), Inputs(*(member.plan for member in members)) as inputs:
        outputs = [Output(member.plan, inputs, overwrite=True, fsync=fsync) for member in members]
        try:
            yield inputs, outputs
        finally:
            for output in outputs:
                output.weights.close()


def do_parts(members: Sequence[Member], parts: Sequence[Part], options: RunOptions) -> None:
    """Do parts of outputs that have been joined, but for what has receipts, and land receipts of each part.

    Each part holds a share for each member. Raise a LorabakeError for what stops it; receipts that landed stay.
    """
    with _opened(members, options.fsync) as (inputs, outputs):
        for output in outputs:
            output.weights.join()
        ways = Ways(options.device, options.workers, options.progress, options.warn)
        do_left(parts, inputs, outputs, [member.landed for member in members], ways)


def hash_files(members: Sequence[Member], options: RunOptions, hands: digests.Hands) -> bool:
    """Hash the files of outputs of which all is finished; tell whether no other process still hashes one."""
    with _opened(members, options.fsync) as (_, outputs):
        grounds = [member.landed.ground for member in members]
        covered = [member.landed.look(output)[0] for member, output in zip(members, outputs, strict=True)]
        return hands.take_free(zip(outputs, grounds, covered, strict=True), options.workers)
