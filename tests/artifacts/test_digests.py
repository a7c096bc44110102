"""Digests of files and folders, and the cache that remembers them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lorabake.artifacts import digests
from lorabake.artifacts.digests import FileDigest, file_digest, file_digests, file_sha256, folder_sha256
from lorabake.errors import FileError, LorabakeError
from lorabake.tensors.reader import fingerprint

CONTENT = b"weights" * 1000
LIE = "0" * 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and a clock that runs ahead, so that new files count as old."""
    monkeypatch.delenv("LORABAKE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SMALLEST", 0)
    now = time.time_ns
    monkeypatch.setattr(digests.time, "time_ns", lambda: now() + digests.TICK_NS + 10**9)
    return tmp_path / "cache" / "lorabake" / "sha256"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    path.write_bytes(CONTENT)
    return path


def taught(path: Path) -> None:
    """Let the cache say something wrong of a file, which shows when it is asked."""
    digests.remember(fingerprint(path), LIE, time.time_ns() + 10 * digests.TICK_NS)


def test_a_digest_is_that_of_the_bytes(file: Path) -> None:
    counts: list[int] = []
    assert file_sha256(file, progress=counts.append) == hashlib.sha256(CONTENT).hexdigest()
    assert sum(counts) == len(CONTENT)
    assert file_digest(file, "x/y") == FileDigest("x/y", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_a_file_that_nobody_touched_is_not_read_again(file: Path, cache: Path) -> None:
    file_sha256(file)
    (entry,) = cache.iterdir()
    counts: list[int] = []
    taught(file)
    assert file_sha256(file, progress=counts.append) == LIE
    assert counts == [len(CONTENT)]
    assert file_sha256(file, cached=False) == hashlib.sha256(CONTENT).hexdigest()
    assert file_sha256(file) == hashlib.sha256(CONTENT).hexdigest(), "reading mends what the cache says"
    assert entry.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("change", ["content", "times", "other file"])
def test_a_changed_file_is_read_again(file: Path, change: str) -> None:
    before = file.stat()
    taught(file)
    expected = CONTENT
    if change == "content":  # of the same size, with its old time of change
        expected = CONTENT[::-1]
        file.write_bytes(expected)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "times":
        os.utime(file, ns=(1, 1))
    else:
        other = file.with_name("other")
        other.write_bytes(CONTENT)
        os.replace(other, file)
    assert file_sha256(file) == hashlib.sha256(expected).hexdigest()


def test_a_file_that_changed_just_now_is_not_remembered(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = file.stat().st_ctime_ns
    for age, is_kept in ((0, False), (digests.TICK_NS - 1, False), (-(10**12), False), (digests.TICK_NS, True)):
        monkeypatch.setattr(digests.time, "time_ns", lambda age=age: changed + age)
        file_sha256(file)
        assert cache.exists() == is_kept, age


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 200, b"{", b"[]", b'{"sha256": "' + b"0" * 64 + b'"}', b'{"file": 1, "sha256": 2}', b"[" * 900],
    ids=lambda content: repr(content[:9]),
)
def test_a_broken_entry_counts_as_none(file: Path, cache: Path, content: bytes) -> None:
    file_sha256(file)
    (entry,) = cache.iterdir()
    entry.write_bytes(content)
    assert file_sha256(file) == hashlib.sha256(CONTENT).hexdigest()
    assert json.loads(entry.read_bytes())["sha256"] == hashlib.sha256(CONTENT).hexdigest()


def test_small_files_are_not_remembered(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SMALLEST", len(CONTENT) + 1)
    taught(file)
    assert file_sha256(file) == hashlib.sha256(CONTENT).hexdigest()


def test_times_in_the_future_do_not_count(file: Path) -> None:
    now = 10**18
    settled = (1, 2, 3, now - 2 * digests.TICK_NS, now - 2 * digests.TICK_NS)
    assert digests.is_settled(settled, now)
    assert digests.is_settled((*settled[:3], now + 10**12, settled[4]), now), "a program set the time of change"
    assert not digests.is_settled((*settled[:4], now + 10**12), now)
    assert not digests.is_settled((*settled[:3], now - 1, settled[4]), now)


def test_an_entry_of_another_file_counts_as_none(file: Path, cache: Path) -> None:
    file_sha256(file)
    (entry,) = cache.iterdir()
    entry.write_text(json.dumps({"file": [1, 2, 3, 4, 5], "sha256": LIE}))
    assert file_sha256(file) == hashlib.sha256(CONTENT).hexdigest()


def test_a_cache_that_cannot_be_written_is_no_fault(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # a file, not a folder
    assert file_sha256(file) == hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setattr(digests.tempfile, "mkstemp", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))
    assert file_sha256(file) == hashlib.sha256(CONTENT).hexdigest()


def refuse(*_: object, **__: object) -> tuple[int, str]:
    raise OSError(28, "No space left on device")


def test_the_cache_lies_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORABAKE_CACHE", str(tmp_path / "own"))
    assert digests.own_cache() == tmp_path / "own"
    monkeypatch.delenv("LORABAKE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert digests.own_cache() == tmp_path / ".cache" / "lorabake"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert digests.own_cache() is None
    assert digests.remembered((1, 2, 3, 4, 5)) is None


def test_many_threads_and_processes_use_one_cache(file: Path, cache: Path) -> None:
    script = "import sys; from pathlib import Path; from lorabake.artifacts.digests import file_sha256 as f\n"
    script += "from lorabake.artifacts import digests; digests.TICK_NS, digests.SMALLEST = -10**12, 0\n"
    script += "for _ in range(50): print(f(Path(sys.argv[1]), cached=False))"
    others = [
        subprocess.Popen([sys.executable, "-c", script, str(file)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda number: file_sha256(file, cached=number % 2 == 0), range(200)))
    for other in others:
        output, _ = other.communicate()
        assert other.returncode == 0
        found |= set(output.split())
    assert found == {hashlib.sha256(CONTENT).hexdigest()}
    assert len([*cache.iterdir()]) == 1, "nothing half-made is left"


def test_the_cache_forgets_the_oldest(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MOST_ENTRIES", 4)
    for number in range(6):
        path = tmp_path / f"{number}"
        path.write_bytes(b"%d" % number)
        file_sha256(path)
        for age, entry in enumerate(sorted(cache.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)):
            os.utime(entry, ns=(age, age))
    assert len([*cache.iterdir()]) == 4
    assert digests.remembered(fingerprint(tmp_path / "5")) is not None
    assert digests.remembered(fingerprint(tmp_path / "0")) is None


def test_a_file_that_changes_while_it_is_read_is_told(file: Path) -> None:
    with pytest.raises(FileError, match="changed while it was read"):
        file_sha256(file, progress=lambda _: os.utime(file, ns=(1, 1)))


@pytest.mark.parametrize("name", ["folder", "nothing", "pipe"])
def test_what_is_no_file_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LorabakeError, match=name):
        file_sha256(tmp_path / name)


def test_a_folders_digest_depends_on_names_sizes_and_contents_alone(tmp_path: Path) -> None:
    files = {}
    for name in ("b.json", "a.safetensors", "unet/ä.bin", "unet/z"):
        path = tmp_path / name.replace("/", "-")
        path.write_bytes(name.encode())
        files[name] = path
    listed = file_digests(files)
    assert [entry.name for entry in listed] == sorted(files)
    text = json.dumps(
        [[each.name, each.size, each.sha256] for each in listed], separators=(",", ":"), ensure_ascii=False
    )
    assert folder_sha256(reversed(listed)) == hashlib.sha256(text.encode()).hexdigest()
    first, *rest = listed
    for other in (
        FileDigest("c", first.size, first.sha256),
        FileDigest(first.name, first.size + 1, first.sha256),
        FileDigest(first.name, first.size, LIE),
    ):
        assert folder_sha256([other, *rest]) != folder_sha256(listed)
    assert folder_sha256(rest) != folder_sha256(listed)


def test_a_name_that_is_no_text_has_a_digest() -> None:
    name = os.fsdecode(b"\xff.json")
    expected = hashlib.sha256(b'[["\xff.json",1,"' + LIE.encode() + b'"]]').hexdigest()
    assert folder_sha256([FileDigest(name, 1, LIE)]) == expected
