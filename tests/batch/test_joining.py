"""Two processes that both see all receipts of an output: one completes it, the other is content with that."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorabake.baking import plan
from lorabake.batch import joining
from lorabake.batch.digests import Hands
from lorabake.batch.joining import Member, do_parts, hash_files
from lorabake.batch.landed import Landed
from lorabake.batch.parts import parts_of
from lorabake.batch.restart import Restart
from lorabake.errors import LorabakeError
from lorabake.options import RunOptions
from lorabake.progress import unseen
from lorabake.recipe import load_recipes
from lorabake.results import BakeResult
from lorabake.writing import claim as claims
from lorabake.writing import output as outputs
from lorabake.writing.claim import Claim
from lorabake.writing.weights import Weights
from tests.batch.sweep import make_sweep

NAME = "two-0.5.safetensors"
PART_BYTES = 12_000
OPTIONS = RunOptions(device="cpu", workers=1, fsync=False)


class Stage:
    """A folder where all receipts of one output are there, and the output is not."""

    def __init__(self, folder: Path) -> None:
        self.alone = make_sweep(folder)[NAME]
        self.folder = folder
        member = self.member()
        assert member.join()
        parts = parts_of([member.plan], PART_BYTES)
        assert len(parts) > 2
        do_parts([member], parts, OPTIONS)
        member.leave()
        shutil.copytree(folder / "out", folder / "kept")

    def member(self) -> Member:
        (recipe,) = (each for each in load_recipes(self.folder / "sweep.yaml") if f"{each.name}.safetensors" == NAME)

        def restart(known: Landed) -> Restart:
            return Restart(
                OPTIONS, PART_BYTES, recheck=False, engine=None, kept=unseen, is_shared=True, known=[known]
            )

        return Member(plan(recipe), OPTIONS, restart)

    def reset(self) -> None:
        shutil.rmtree(self.folder / "out")
        shutil.copytree(self.folder / "kept", self.folder / "out")

    def check(self) -> None:
        """The output is there, and nothing else."""
        assert [path.name for path in (self.folder / "out").iterdir()] == [NAME]
        assert (self.folder / "out" / NAME).read_bytes() == self.alone


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("joining") / "sweep")


@pytest.fixture
def stage(staged: Stage) -> Stage:
    staged.reset()
    return staged


def once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, then: Callable[[], None]) -> None:
    """Do something right before a function is called for the first time from now on."""
    genuine = getattr(owner, name)

    def first(*words: Any, **named: Any) -> Any:
        monkeypatch.setattr(owner, name, genuine)
        then()
        return genuine(*words, **named)

    monkeypatch.setattr(owner, name, first)


def test_one_completes_alone(stage: Stage) -> None:
    assert isinstance(stage.member().finish(), BakeResult)
    stage.check()
    assert stage.member().finish() is None
    assert not stage.member().join()
    stage.check()


def test_both_have_seen_all_receipts_and_neither_has_a_claim(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, results = stage.member(), stage.member(), list[BakeResult | None]()
    once(monkeypatch, joining.Claim, "take", lambda: results.append(other.finish()))
    assert one.finish() is None
    assert isinstance(results[0], BakeResult)
    assert one.is_complete
    stage.check()


def test_the_other_waits_while_one_completes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise InterruptedError("it waits")

    def meanwhile() -> None:
        other = stage.member()
        with monkeypatch.context() as patch:
            patch.setattr(joining.time, "sleep", sleep)
            with pytest.raises(LorabakeError, match="it waits"):
                other.finish()

    once(monkeypatch, joining, "bake_pass", meanwhile)
    assert isinstance(stage.member().finish(), BakeResult)
    stage.check()


def hands(stage: Stage) -> Path:
    """Make the folder in which processes lay claims to hashing the output's file."""
    folder = stage.folder / "out" / f"{NAME}.partial" / "receipts" / "file.0"
    folder.mkdir()
    return folder


def test_a_file_that_another_process_hashes_is_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            other.leave()

    monkeypatch.setattr(joining.time, "sleep", sleep)
    other = Claim(hands(stage))
    assert other.take()
    member = stage.member()
    assert member.finish(wait=False) is None
    assert not member.is_complete
    assert isinstance(member.finish(), BakeResult)
    assert len(waits) == 3
    stage.check()


def test_a_file_whose_hashing_process_is_dead_is_hashed(stage: Stage) -> None:
    other = multiprocessing.get_context("fork").Process(target=Claim(hands(stage)).take)
    other.start()
    other.join()
    assert isinstance(stage.member().finish(), BakeResult)
    stage.check()


def test_files_are_hashed_once_by_whoever_comes_first(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    one = stage.member()
    assert hash_files([one], OPTIONS, Hands())
    monkeypatch.setattr(Weights, "_read", None)
    monkeypatch.setattr(Weights, "_follow", None)
    assert hash_files([one], OPTIONS, Hands())
    assert isinstance(stage.member().finish(), BakeResult)
    stage.check()


def test_a_file_that_cannot_be_read_is_left_to_who_completes_the_output(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("lorabake.batch.notes.os.replace", failing)
        assert isinstance(stage.member().finish(), BakeResult)
    stage.check()


def failing(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (joining, "bake_pass"),
        (outputs.Output, "complete"),
        (outputs.Complete, "commit"),
        (outputs, "commit"),
        (outputs.Partial, "clean"),
    ],
)
def test_one_that_was_taken_for_dead_wakes_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    """Another one has completed the output meanwhile: nothing is lost, and the one is content, too."""
    one, other, results = stage.member(), stage.member(), list[BakeResult | None]()

    def meanwhile() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(claims, "_is_gone", lambda said: True)
            results.append(other.finish())

    once(monkeypatch, owner, name, meanwhile)
    one.finish()
    assert results
    assert one.is_complete
    stage.check()


def _race(stage: Stage, rounds: int, gate: Any, told: Any) -> None:
    for _ in range(rounds):
        member = stage.member()
        gate.wait()
        told.put((os.getpid(), member.finish() is not None, member.is_complete))
        gate.wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_processes_that_race_for_the_last_step(stage: Stage) -> None:
    rounds, context = 20, multiprocessing.get_context("fork")
    gate, told = context.Barrier(3), context.Queue()
    racers = [context.Process(target=_race, args=(stage, rounds, gate, told)) for _ in range(2)]
    for racer in racers:
        racer.start()
    winners = []
    for _ in range(rounds):
        stage.reset()
        gate.wait(60)
        one, other = told.get(timeout=60), told.get(timeout=60)
        assert {one[1], other[1]} == {True, False}, "one of them completes the output"
        assert one[2], "and the other one sees it complete"
        assert other[2]
        winners.append(one[0] if one[1] else other[0])
        stage.check()
        gate.wait(60)
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert len({*winners}) == 2, "or it was no race"
