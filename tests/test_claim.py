"""Claims: of many processes one has the right, and a dead one's is taken over; without locks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lorabake.writing import claim as module
from lorabake.writing.claim import Claim, is_claim

SPAWN = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")


def test_one_has_it_until_it_leaves(tmp_path: Path) -> None:
    one, other = Claim(tmp_path), Claim(tmp_path)
    assert one.take()
    assert one.is_held
    assert not other.take()
    assert not other.is_held
    one.leave()
    assert not one.is_held
    assert other.take()
    assert [is_claim(path.name) for path in tmp_path.iterdir()] == [True, True]
    other.leave()


def test_two_that_see_the_same_dead_holder_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seam: both have judged, and neither has made its file yet."""
    first = Claim(tmp_path)
    assert first.take()
    first.leave()
    one, other = Claim(tmp_path), Claim(tmp_path)
    genuine: Callable[[Path], int] = module.open_new
    taken: list[bool] = []

    def between(path: Path) -> int:
        monkeypatch.setattr(module, "open_new", genuine)
        taken.append(other.take())
        return genuine(path)

    monkeypatch.setattr(module, "open_new", between)
    assert (one.take(), taken) == (False, [True])
    assert (one.is_held, other.is_held) == (False, True)
    other.leave()


def test_a_holder_of_another_machine_counts_as_dead_once_it_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with Claim(tmp_path, beat=1000) as holder, Claim(tmp_path) as other:
        assert holder.take()
        monkeypatch.setattr(module, "_is_gone", lambda said: None)
        for second in range(0, 200, 50):
            clock[0] = second
            holder._sign()
            assert not other.take()
        for second in (160, 209):
            clock[0] = second
            assert not other.take()
        clock[0] = 210
        assert other.take()
        assert not holder.is_held  # should it wake up


def test_signs_of_life_come_by_themselves(tmp_path: Path) -> None:
    with Claim(tmp_path, beat=0.01) as holder:
        assert holder.take()
        first = (tmp_path / "claim.0").read_bytes()
        while (tmp_path / "claim.0").read_bytes() == first:
            time.sleep(0.01)


def test_a_torn_claim_is_not_taken_for_a_dead_ones(tmp_path: Path) -> None:
    (tmp_path / "claim.0").write_bytes(b'{"beat": "00')
    assert not Claim(tmp_path).take()
    with Claim(tmp_path, patience=0.0) as patient:
        assert patient.take()


def test_a_folder_that_has_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Claim(tmp_path / "gone").take()


def _race(folder: Path, rounds: int, gate: object, wins: object) -> None:
    for number in range(rounds):
        gate.wait()  # type: ignore[attr-defined]
        claim = Claim(folder / str(number))
        if claim.take():
            wins.put((number, os.getpid()))  # type: ignore[attr-defined]
        gate.wait()  # type: ignore[attr-defined]
        claim.leave()


def test_processes_that_race_for_it_are_told_apart(tmp_path: Path) -> None:
    rounds, count = 100, 4
    for number in range(rounds):
        (tmp_path / str(number)).mkdir()
    gate, wins = SPAWN.Barrier(count), SPAWN.Queue()
    racers = [SPAWN.Process(target=_race, args=(tmp_path, rounds, gate, wins)) for _ in range(count)]
    for racer in racers:
        racer.start()
    won = [wins.get(timeout=60) for _ in range(rounds)]
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * count
    assert sorted(number for number, _ in won) == [*range(rounds)]
    assert wins.empty()
    assert len({process for _, process in won}) > 1  # or it was no race


def _hold(folder: Path, ready: object) -> None:
    Claim(folder).take()
    ready.set()  # type: ignore[attr-defined]
    time.sleep(60)


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="this system does not tell which processes run")
def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(30)
    with Claim(tmp_path) as other:
        assert not other.take()
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        assert other.take()
