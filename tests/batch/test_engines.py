"""Engines: pieces of work run in other processes, and neither a lost worker nor an error loses another piece."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from lorabake.batch.engines import Ended, Retries, Telling
from lorabake.batch.engines.dealing import deal
from lorabake.batch.engines.processes import Processes
from lorabake.errors import FileError, InternalError, SurroundingsError
from lorabake.settings import as_options
from tests.batch.pieces import Piece

SOON = Retries((0.0, 0.0))


def run(count: int, pieces: Sequence[Piece], telling: Telling | None = None) -> dict[str, Ended]:
    """Run pieces in so many processes."""
    waiting = [*pieces]
    with Processes(count, telling or Telling()) as engine:
        return {each.work.name: each for each in deal(engine, lambda: waiting.pop(0) if waiting else None, SOON)}


def is_running(process: int) -> bool:
    """Tell whether a process is there, and no zombie."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_workers_take_pieces_until_none_is_left(tmp_path: Path) -> None:
    counts: list[int] = []
    ended = run(2, [Piece(tmp_path, f"p{number}") for number in range(8)], Telling(counts.append))
    workers = {each.result for each in ended.values()}
    assert len(ended) == 8
    assert 1 <= len(workers) <= 2
    assert os.getpid() not in workers
    assert sum(counts) == 8 * 7
    assert not any(is_running(worker) for worker in workers if isinstance(worker, int))


def test_a_lost_worker_gives_its_piece_back(tmp_path: Path) -> None:
    counts: list[int] = []
    pieces = [Piece(tmp_path, "a"), Piece(tmp_path, "b", "die"), Piece(tmp_path, "c"), Piece(tmp_path, "d", "die", 9)]
    ended = run(2, pieces, Telling(counts.append))
    assert {name for name, each in ended.items() if each.error is None} == {"a", "b", "c"}
    assert [len([*tmp_path.glob(f"{name}.*")]) for name in "abcd"] == [1, 2, 1, 3]
    assert isinstance(ended["d"].error, SurroundingsError)
    assert str(ended["d"].error).startswith("d: its worker was lost 3 times; the last time, signal 9 ended it\n")
    assert sum(counts) == 3 * 7  # of what was lost, nothing


def test_errors_and_warnings_come_as_they_were(tmp_path: Path) -> None:
    warnings: list[str] = []
    pieces = [Piece(tmp_path, "a", "fail"), Piece(tmp_path, "b", "break"), Piece(tmp_path, "c", "warn")]
    with as_options():
        ended = run(1, pieces, Telling(warn=warnings.append))
    assert (type(ended["a"].error), str(ended["a"].error)) == (FileError, "a: no such file")
    assert isinstance(ended["b"].error, InternalError)
    assert ended["b"].error.lines[0].startswith("lorabake failed: ZeroDivisionError: a fault of its own")
    assert warnings == ["--overwrite is an option"]
    assert [len([*tmp_path.glob(f"{name}.*")]) for name in "abc"] == [1, 1, 1]  # errors are not tried again


def test_what_cannot_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabake.batch.engines.processes.START", "raise SystemExit(5)")
    with pytest.raises(SurroundingsError, match="worker processes end before they are ready: it ended with code 5"):
        run(1, [Piece(tmp_path, "a")])


# -- the end of the parent -----------------------------------------------------------------------------------

PARENT = """
    import signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs tests in the background ignores it
    sys.path[:0] = [sys.argv[1]]
    from pathlib import Path
    from tests.batch.test_engines import Piece, run
    run(2, [Piece(Path(sys.argv[2]), name, "sleep") for name in "ab"])
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """Start a parent with two workers that sleep; wait until they do, and give their numbers."""
    root = str(Path(__file__).parent.parent.parent)
    command = [sys.executable, "-c", textwrap.dedent(PARENT), root, str(tmp_path)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(files := [*tmp_path.glob("*.0")]) < 2 or not all(file.read_text() for file in files):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    yield process, [int(file.read_text()) for file in files]
    process.kill()
    process.wait()


def gone(workers: Sequence[int], seconds: float) -> bool:
    """Wait until workers are gone."""
    until = time.monotonic() + seconds
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(is_running, workers))


def test_workers_end_with_a_killed_parent(parent: tuple[subprocess.Popen[bytes], list[int]]) -> None:
    process, workers = parent
    process.kill()
    assert gone(workers, 10)


def test_ctrl_c_ends_all(parent: tuple[subprocess.Popen[bytes], list[int]]) -> None:
    process, workers = parent
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.wait(timeout=20)
    assert gone(workers, 10)
