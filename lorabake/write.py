"""Step 5 of the flow: bytes at planned offsets, then fsync and an atomic rename.

Everything is written to `NAME.partial` beside the target. Whatever stops a bake, the target is what it was. Learned
embeddings, files of their own, get their names just before it does.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import filecmp
import hashlib
import os
import shutil
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from lorabake import provenance
from lorabake.errors import FileError, SurroundingsError, TargetError
from lorabake.inputs import Inputs
from lorabake.machine import unwritable
from lorabake.openfiles import OpenFiles
from lorabake.planning import Copy, Embedding, OutputFile, Plan
from lorabake.tensors.checkpoint import WEIGHT_SUFFIXES
from lorabake.tensors.safetensors import Header, read_header

CHUNK = 4 << 20
NO_RANGE_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
EITHER_SIDE = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM}
"""What a copy in the kernel may say of what it reads and of what it writes: a copy by hand tells which."""


class Output:
    """Write a plan's files beside their target; `commit` gives them its name, leaving removes them."""

    def __init__(self, plan: Plan, *, overwrite: bool, fsync: bool) -> None:
        self.plan, self.fsync = plan, fsync
        self.path = plan.path
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.headers = [file.header() for file in plan.files]
        self.size = sum(len(header) + file.data_size for header, file in zip(self.headers, plan.files, strict=True))
        self.finished = [Finished() for _ in plan.files]
        self._turns = [threading.Lock() for _ in plan.files]
        self._overwrite = overwrite
        self._places = [self.partial / file.name if plan.is_folder else self.partial for file in plan.files]
        self._made: dict[Path, tuple[int, int]] = {}
        self._files = OpenFiles(self._opened, unwritable)
        self._lock: int | None = None
        self._committed = False
        self._beside = [_Beside(embedding) for embedding in plan.embeddings]

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._check_target()
            free = shutil.disk_usage(self.path.parent).free
            needed = self.size + sum(embedding.size for embedding in self.plan.embeddings)
            if free < needed:
                raise SurroundingsError(f"{self.path.parent}: {_size(free)} free, and the bake needs {_size(needed)}")
            self._lock = _lock(self.partial, is_folder=self.plan.is_folder)
            self._create()
            for each in self._beside:
                each.create()
            self._check_beside()
        except OSError as error:
            self._clean()
            raise unwritable(self.partial, error) from None
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clean()

    def _check_target(self) -> None:
        path = self.path
        if not os.path.lexists(path):
            return
        if path.is_dir() != self.plan.is_folder:
            is_now, wanted = ("a folder", "file") if path.is_dir() else ("a file", "folder")
            raise TargetError(f"{path}: is {is_now}, and the output is to be a {wanted}")
        if not self._overwrite:
            if not self._holds_this_bake():
                raise self._other_content()
        elif self.plan.is_folder and not path.is_symlink() and (other := next(self._others(), None)):
            raise TargetError(
                f"{path}: holds {other}, which no bake wrote, and would lose it\nMove it, or name another folder."
            )

    def _other_content(self, path: Path | None = None) -> TargetError:
        return TargetError(f"{path or self.path}: exists and holds something else\nGive --overwrite to replace it.")

    def _check_beside(self) -> None:
        """Refuse to replace a file where a learned embedding goes, unless it holds the same, or may be replaced."""
        for each in self._beside:
            if each.path.is_dir():
                raise TargetError(f"{each.path}: is a folder, and a learned embedding is to be written there")
            if os.path.lexists(each.path) and not self._overwrite and not each.is_there:
                raise self._other_content(each.path)

    def _holds_this_bake(self) -> bool:
        """Tell whether the target's headers are those of this very bake, hashes of the data aside."""
        digests = {place: _file_sha256(file) for place, file in self.plan.digests.items()}
        for file in self.plan.files:
            try:
                header = read_header(self.path / file.name if self.plan.is_folder else self.path)
            except FileError:
                return False
            hashes = {key: header.metadata.get(key, "") for key in _hash_keys(file.metadata)}
            if not _is_header_of(header, file, digests, hashes):
                return False
        return not self.plan.is_folder or self._holds_no_others()

    def _holds_no_others(self) -> bool:
        """Tell whether the target folder holds all that this bake puts there beside weights, and nothing else."""
        written, side_files = self._planned()
        if set(self._found()) != written | side_files:
            return False
        if any((self.path / name).read_bytes() != text.encode() for name, text in self.plan.texts.items()):
            return False
        base = self.plan.sources.base
        return all(filecmp.cmp(base.path / name, self.path / name, shallow=False) for name in side_files)

    def _others(self) -> Iterator[Path]:
        """Yield what the target folder would lose: files that no bake wrote, or, in a folder of a bake's, weights.

        A bake of another base may have put configurations there that this one does not know.
        """
        found, (written, side_files) = [*self._found()], self._planned()
        baked = {path for path in found if path.suffix == ".safetensors" and self._is_baked(path)}
        for path in found:
            is_weights = path.suffix in WEIGHT_SUFFIXES
            if path not in baked | written | side_files and (is_weights or not baked):
                yield path

    def _is_baked(self, path: Path) -> bool:
        try:
            return "lorabake.version" in read_header(self.path / path).metadata
        except FileError:
            return False

    def _found(self) -> Iterator[Path]:
        found = (path for path in sorted(self.path.rglob("*")) if path.is_symlink() or not path.is_dir())
        return (path.relative_to(self.path) for path in found)

    def _planned(self) -> tuple[set[Path], set[Path]]:
        """List the files that this bake makes in a folder, and those that it copies from the base's."""
        written = {Path(file.name) for file in self.plan.files} | {Path(name) for name in self.plan.texts}
        return written, {*self.plan.side_files} - written

    def _check_data(self, digests: Mapping[str, str], device: str) -> None:
        """Refuse to replace a target whose data differ from the finished ones; hashes in its header tell."""
        for file in self.plan.files:
            roots = (self.path, self.partial)
            try:
                old, new = (read_header(root / file.name if self.plan.is_folder else root) for root in roots)
            except FileError:
                raise self._other_content() from None
            hashes = {key: new.metadata[key] for key in _hash_keys(file.metadata)}
            if _is_header_of(old, file, digests, hashes) and (hashes or _same_data(old, new)):
                continue
            there = old.metadata.get(provenance.DEVICE)
            if there not in (None, device):
                raise TargetError(
                    f"{self.path}: exists, computed on {there}, and {device} computed other last bits\n"
                    "Give --overwrite to replace it, or name that device."
                )
            raise self._other_content()

    def _create(self) -> None:
        if not self.plan.is_folder:
            assert self._lock is not None
            if os.fstat(self._lock).st_size:  # ext4 flushes a file on close once it was truncated to nothing
                os.ftruncate(self._lock, 0)
        else:
            for stale in self.partial.iterdir():
                _remove(stale)
            for folder in dict.fromkeys(place.parent for place in self._places):
                folder.mkdir(parents=True, exist_ok=True)
        for place, header, file in zip(self._places, self.headers, self.plan.files, strict=True):
            with self._files.open(place) as fd:
                _reserve(fd, len(header) + file.data_size)
                _write_all(fd, memoryview(header), 0)

    def _opened(self, place: Path) -> int:
        """Make a file of the output, or open the one that was made; the only one is locked, and stays open."""
        if not self.plan.is_folder:
            assert self._lock is not None
            return os.dup(self._lock)
        is_new = place not in self._made
        fd = os.open(place, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if is_new else 0), 0o666)
        status = os.fstat(fd)
        if self._made.setdefault(place, (status.st_dev, status.st_ino)) != (status.st_dev, status.st_ino):
            os.close(fd)
            raise TargetError(f"{place}: another file took its place while it was written")
        return fd

    def write(self, file: int, offset: int, data: memoryview) -> None:
        """Write bytes at an offset of a file's data; until they are finished they may be written again."""
        with self._turns[file], self._files.open(self._places[file]) as fd:
            _write_all(fd, data, len(self.headers[file]) + offset)

    def finish(self, file: int, start: int, stop: int) -> None:
        """Note that a range of a file's data is as it stays."""
        self.finished[file].add(start, stop)

    def check_finished(self) -> None:
        """Raise an error unless every byte is finished: nothing else will write any."""
        for finished, file in zip(self.finished, self.plan.files, strict=True):
            finished.check(file.data_size)

    def copy(self, inputs: Inputs, copy: Copy, progress: Callable[[int], None], stop: threading.Event) -> None:
        """Copy an untouched range, in the kernel where it can."""
        base = len(self.headers[copy.file]) + copy.offset
        done, size = 0, copy.stop - copy.start
        in_kernel = hasattr(os, "copy_file_range")
        with self._files.open(self._places[copy.file]) as target:
            while done < size and not stop.is_set():
                length = min(CHUNK, size - done)
                count = 0
                if in_kernel:
                    try:
                        with self._turns[copy.file], inputs.open(copy.source) as source:
                            count = os.copy_file_range(source, target, length, copy.start + done, base + done)
                    except OSError as error:
                        if error.errno not in NO_RANGE_COPY | EITHER_SIDE:
                            raise
                        in_kernel = False
                if not in_kernel:
                    piece = memoryview(bytearray(min(length, 1 << 20)))
                    inputs.read(copy.source, copy.start + done, piece)
                    count = os.pwrite(target, piece, base + done)
                if count == 0:
                    raise FileError(f"{copy.source}: became shorter while it was read")
                self.finish(copy.file, copy.offset + done, copy.offset + done + count)
                done += count
                progress(count)

    def follow(self, *, hashed: bool, stop: threading.Event) -> list[str]:
        """Follow the finished ranges of every file: hash them in order, and start their way to the disk.

        Return the SHA-256 of each file's data; empty texts without `hashed`.
        """
        digests = []
        for place, header, file, finished in zip(
            self._places, self.headers, self.plan.files, self.finished, strict=True
        ):
            digest = hashlib.sha256()
            buffer = memoryview(bytearray(1 << 20)) if hashed else memoryview(b"")
            with self._files.open(place) as fd:
                for start, end in finished.follow(file.data_size, stop):
                    position = start
                    while hashed and position < end and not stop.is_set():
                        count = os.preadv(fd, [buffer[: end - position]], len(header) + position)
                        digest.update(buffer[:count])
                        position += count
                    if self.fsync:
                        _start_writeback(fd, len(header) + start, end - start)
            digests.append(digest.hexdigest() if hashed else "")
        return digests

    def commit(self, data_hashes: list[str], digests: Mapping[str, str], device: str) -> None:
        """Fill in the digests and what computed, make everything durable, and give it the target's name."""
        try:
            for place, header, file, data_hash in zip(
                self._places, self.headers, self.plan.files, data_hashes, strict=True
            ):
                with self._files.open(place) as fd:
                    hashes = provenance.fill(data_hash) if data_hash else {}
                    if provenance.LEGACY_HASH in file.metadata:
                        block = os.pread(fd, provenance.LEGACY_BYTES, provenance.LEGACY_START)
                        hashes[provenance.LEGACY_HASH] = hashlib.sha256(block).hexdigest()[:8]
                    final = file.header(digests, hashes, device)
                    if len(final) != len(header):
                        raise AssertionError("the header's length changed")
                    _write_all(fd, memoryview(final), 0)
                    if self.fsync:
                        os.fsync(fd)
            if not self._overwrite and os.path.lexists(self.path):
                self._check_data(digests, device)
            self._check_beside()
            if self.plan.is_folder:
                self._write_side_files()
            with ExitStack() as undo:
                for each in self._beside:
                    each.put(undo, fsync=self.fsync)
                if self.plan.is_folder:
                    _rename_folder(self.partial, self.path)
                else:
                    os.replace(self.partial, self.path)
                undo.pop_all()
            self._committed = True
            if self.fsync:
                _fsync_folder(self.path.parent)
        except OSError as error:
            raise unwritable(self.partial, error) from None

    def _write_side_files(self) -> None:
        base = self.plan.sources.base
        for relative in self.plan.side_files:
            place = self.partial / relative
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base.path / relative, place)
            if self.fsync:
                _fsync(place)
        for name, text in self.plan.texts.items():
            (self.partial / name).write_text(text, encoding="utf-8")
            if self.fsync:
                _fsync(self.partial / name)
        if self.fsync:
            for folder in {self.partial, *(path.parent for path in self.partial.rglob("*"))}:
                _fsync_folder(folder)

    def _clean(self) -> None:
        self._files.close()
        for each in self._beside:
            each.clean()
        if self._lock is not None:
            if not self._committed:
                if self.plan.is_folder:
                    shutil.rmtree(self.partial, ignore_errors=True)
                else:
                    with suppress(OSError):
                        self.partial.unlink()
            os.close(self._lock)
            self._lock = None


class _Beside:
    """Write a learned embedding beside the output."""

    def __init__(self, embedding: Embedding) -> None:
        self.embedding, self.path = embedding, embedding.path
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.old = self.path.with_name(self.path.name + ".old.partial")
        self._lock: int | None = None
        self._is_put = False

    def create(self) -> None:
        """Write the whole file under its partial name, a chunk at a time."""
        self._lock = _lock(self.partial, is_folder=False)
        self.old.unlink(missing_ok=True)
        os.ftruncate(self._lock, 0)
        head = self.embedding.header()
        _write_all(self._lock, memoryview(head), 0)
        position = len(head)
        for info in (vectors.info for vectors in self.embedding.vectors):
            with open(info.file, "rb") as stream:
                for start in range(info.start, info.stop, CHUNK):
                    stream.seek(start)
                    chunk = stream.read(min(CHUNK, info.stop - start))
                    _write_all(self._lock, memoryview(chunk), position)
                    position += len(chunk)

    @property
    def is_there(self) -> bool:
        """Tell whether the target holds the same bytes already."""
        return self.path.is_file() and filecmp.cmp(self.partial, self.path, shallow=False)

    def put(self, undo: ExitStack, *, fsync: bool) -> None:
        """Give the file its name; `undo` brings back what had it before."""
        if fsync:
            _fsync(self.partial)
        undo.callback(self._take_back)
        if os.path.lexists(self.path):
            os.replace(self.path, self.old)
        os.replace(self.partial, self.path)
        self._is_put = True

    def _take_back(self) -> None:
        if os.path.lexists(self.old):
            os.replace(self.old, self.path)
        elif self._is_put:
            self.path.unlink()

    def clean(self) -> None:
        """Remove what is left beside the target."""
        if self._lock is None:
            return
        for path in (self.old,) if self._is_put else (self.partial,):
            with suppress(OSError):
                path.unlink()
        os.close(self._lock)
        self._lock = None


class Finished:
    """Keep track of the finished ranges of one file, and of how far they reach without a gap."""

    def __init__(self) -> None:
        self._starts: list[int] = []  # of ranges without a gap, in order
        self._stops: list[int] = []
        self._news = threading.Condition()

    @property
    def _reach(self) -> int:
        return self._stops[0] if self._starts[:1] == [0] else 0

    def add(self, start: int, stop: int) -> None:
        """Note a range; raise RuntimeError if any of it is noted already: what follows the file may have read it."""
        if start == stop:
            return
        with self._news:
            place = bisect_right(self._starts, start)
            before = self._stops[place - 1] if place else 0
            after = self._starts[place] if place < len(self._starts) else stop
            if start < before or after < stop:
                raise RuntimeError(f"bytes {start} to {stop} of an output are finished twice")
            reach = self._reach
            joins_before, joins_after = place > 0 and before == start, place < len(self._starts) and after == stop
            if joins_before and joins_after:
                self._stops[place - 1] = self._stops.pop(place)
                del self._starts[place]
            elif joins_before:
                self._stops[place - 1] = stop
            elif joins_after:
                self._starts[place] = start
            else:
                self._starts.insert(place, start)
                self._stops.insert(place, stop)
            if self._reach > reach:
                self._news.notify_all()

    def check(self, size: int) -> None:
        """Raise RuntimeError unless all bytes below `size` are finished, and no others."""
        with self._news:
            ranges = list(zip(self._starts, self._stops, strict=True))
        if ranges != ([(0, size)] if size else []):
            raise RuntimeError(f"an output of {size} bytes was written in these ranges alone: {ranges[:9]}")

    def follow(self, size: int, stop: threading.Event, step: int = CHUNK) -> Iterator[tuple[int, int]]:
        """Yield consecutive ranges, about `step` bytes each, as they are finished, up to `size`."""
        position = 0
        while position < size:
            with self._news:
                while self._reach < min(position + step, size) and not stop.is_set():
                    self._news.wait(0.1)
                reach = self._reach
            if stop.is_set():
                return
            yield position, reach
            position = reach


def _is_header_of(header: Header, file: OutputFile, digests: Mapping[str, str], hashes: Mapping[str, str]) -> bool:
    """Tell whether a file has the header that is planned, whatever device it names."""
    with open(header.path, "rb") as stream:
        return stream.read(header.data_start) == file.header(digests, hashes, header.metadata.get(provenance.DEVICE))


def _same_data(one: Header, other: Header) -> bool:
    with open(one.path, "rb") as left, open(other.path, "rb") as right:
        left.seek(one.data_start)
        right.seek(other.data_start)
        while chunk := left.read(CHUNK):
            if chunk != right.read(CHUNK):
                return False
        return not right.read(1)


def _hash_keys(metadata: Mapping[str, str]) -> list[str]:
    return [key for key in (*provenance.DATA_HASHES, provenance.LEGACY_HASH) if key in metadata]


def _lock(path: Path, *, is_folder: bool) -> int:
    """Create the partial file or folder and lock it; one left by a killed bake is taken over."""
    while True:
        if is_folder:
            path.mkdir(exist_ok=True)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            with suppress(FileNotFoundError):
                now = os.stat(path)
                if (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino):
                    return fd
        except BlockingIOError:
            os.close(fd)
            raise TargetError(
                f"{path}: another bake is writing this target; wait for it, or choose another"
            ) from None
        except OSError as error:
            with suppress(OSError):
                if is_folder:
                    path.rmdir()
                elif not os.fstat(fd).st_size:
                    path.unlink()
            os.close(fd)
            raise SurroundingsError(
                f"{path}: the file system takes no lock ({error.strerror}), which keeps two bakes apart\n"
                "Bake into a folder on another disk, and move the result."
            ) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the other bake finished between open and lock: the name means another file by now


def _rename_folder(partial: Path, target: Path) -> None:
    """Put a folder in another's place in one step where the system can."""
    if not os.path.lexists(target):
        os.rename(partial, target)
        return
    if not _exchange(partial, target):
        old = target.with_name(target.name + ".old.partial")
        _remove(old)
        os.rename(target, old)
        try:
            os.rename(partial, target)
        except BaseException:
            os.rename(old, target)
            raise
        partial = old
    _remove(partial)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> bool:
    libc = _libc()
    if libc is None or not hasattr(libc, "renameat2"):
        return False
    at_cwd, exchange = -100, 2
    return bool(libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0)


def _reserve(fd: int, size: int) -> None:
    """Give a file its length, and its blocks on the disk where the file system can promise them."""
    libc = _libc()
    if libc is not None and size and libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(code, os.strerror(code))
    os.ftruncate(fd, size)


def _write_all(fd: int, data: memoryview, position: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], position + done)


def _start_writeback(fd: int, start: int, length: int) -> None:
    """Ask Linux to begin writing a range to the disk, so that the fsync at the end finds little to do."""
    libc = _libc()
    if libc is not None and hasattr(libc, "sync_file_range"):
        write = 2
        libc.sync_file_range(fd, ctypes.c_int64(start), ctypes.c_int64(length), write)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fsync_folder(path: Path) -> None:
    with suppress(PermissionError):
        _fsync(path)


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
