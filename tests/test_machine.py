"""What the machine refuses, in words and by the right exit code."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lorabake.errors import MOST_LETTERS, MOST_LINES, FileError, LorabakeError, SurroundingsError, TargetError
from lorabake.machine import exhausted, unreadable, unwritable, worded
from lorabake.writing.whole import write_whole


def os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("code", "reading", "writing"),
    [
        (errno.EIO, SurroundingsError, SurroundingsError),
        (errno.ESTALE, SurroundingsError, SurroundingsError),
        (errno.EMFILE, SurroundingsError, SurroundingsError),
        (errno.ENOLCK, SurroundingsError, SurroundingsError),
        (errno.ENOMEM, SurroundingsError, SurroundingsError),
        (errno.EFBIG, FileError, SurroundingsError),
        (errno.ENOSPC, FileError, SurroundingsError),
        (errno.EDQUOT, FileError, SurroundingsError),
        (errno.EACCES, SurroundingsError, SurroundingsError),
        (errno.EPERM, SurroundingsError, SurroundingsError),
        (errno.EROFS, SurroundingsError, SurroundingsError),
        (errno.ENAMETOOLONG, FileError, TargetError),
        (errno.ENOTDIR, FileError, TargetError),
        (errno.ENOENT, FileError, TargetError),
    ],
)
def test_reading_and_writing_are_told_apart(code: int, reading: type, writing: type) -> None:
    read, written = unreadable(Path("in"), os_error(code)), unwritable(Path("out"), os_error(code))
    assert (type(read), type(written)) == (reading, writing)
    assert str(read).startswith("in: ")
    assert str(written).startswith("out: ")
    assert "write" not in str(read)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        os_error(errno.ENOMEM),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        SystemError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
    ],
    ids=repr,
)
def test_too_little_memory_has_many_names(error: Exception) -> None:
    with pytest.raises(SurroundingsError, match=r"out of memory|no thread"), worded():
        raise error
    with pytest.raises(SurroundingsError), worded():
        raise ImportError("numpy is not there: read this page") from error


@pytest.mark.parametrize("error", [ValueError("out of memory"), ImportError("no module"), KeyError("x")], ids=repr)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)), worded():
        raise error
    assert exhausted(FileError("failed to map segment")) is None


def test_a_message_is_bounded() -> None:
    told = str(LorabakeError(f"base: tensor {'x' * 50_000_000}", *["line"] * 5000))
    assert len(told.splitlines()) == MOST_LINES + 1
    assert len(told.splitlines()[0]) < MOST_LETTERS + 100
    assert told.startswith("base: tensor xxx")
    assert told.endswith("more lines")
    assert str(LorabakeError("short", "and clear")) == "short\nand clear"


def test_a_small_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, link = tmp_path / "report.json", tmp_path / "link.json"
    place.write_text("old")
    link.symlink_to("report.json")
    write_whole(link, b"new")
    assert link.is_symlink()
    assert place.read_text() == "new"
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(os_error(errno.EIO)))
    with pytest.raises(OSError, match="Input/output"):
        write_whole(place, b"newer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "report.json"]
    assert place.read_text() == "new"
    write_whole(Path(os.devnull), b"nothing")
