"""The files with weights of an output: each has its planned length at once, and takes ranges from any thread."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lorabake.errors import FileError, TargetError
from lorabake.machine import unwritable
from lorabake.planning import provenance
from lorabake.planning.files import OutputFile
from lorabake.planning.steps import Copy
from lorabake.tensors.system import bytes_at, read_at
from lorabake.writing.commit import identity
from lorabake.writing.finished import Finished
from lorabake.writing.inputs import Inputs
from lorabake.writing.openfiles import OpenFiles
from lorabake.writing.system import copy_range, open_again, open_new, reserve, start_writeback, write_all

CHUNK = 4 << 20
"""Bytes that are copied at a time."""

PIECE = 1 << 20
"""Bytes that are copied at a time where the system cannot copy by itself, and that are hashed at a time."""


def meddled(path: Path) -> TargetError:
    """Word that a file of a bake is no longer what the bake has made."""
    return TargetError(f"{path}: another program has changed or removed it; bake again")


class _File:
    """Keep of one file what is planned, where it is made, and what of it is finished."""

    def __init__(self, planned: OutputFile, path: Path) -> None:
        self.planned, self.path = planned, path
        self.header = planned.header()
        self.finished = Finished()
        self.turn = threading.Lock()
        self.inode: int | None = None

    @property
    def size(self) -> int:
        return len(self.header) + self.planned.data_size


class Weights:
    """Write the files with weights of an output, which are made at `paths`, in the order of `planned`.

    `place` is what they all lie in, for messages. They are `hashed` while they grow, and with `fsync` begin their way
    to the disk.
    """

    def __init__(
        self,
        place: Path,
        planned: Sequence[OutputFile],
        paths: Iterable[Path],
        inputs: Inputs,
        *,
        hashed: bool,
        fsync: bool,
    ) -> None:
        self.place = place
        self._files = [_File(file, path) for file, path in zip(planned, paths, strict=True)]
        self._by_path = {file.path: file for file in self._files}
        self._inputs, self._hashed, self._fsync = inputs, hashed, fsync
        self._descriptors = OpenFiles(self._opened, unwritable)

    @property
    def size(self) -> int:
        """Count the bytes of all files."""
        return sum(file.size for file in self._files)

    def create(self) -> None:
        """Make the files at their full length, in folders that are there; headers lack what is not known yet."""
        for file in self._files:
            with self._descriptors.open(file.path) as fd:
                reserve(fd, file.size)
                write_all(fd, memoryview(file.header), 0)

    def _opened(self, path: Path) -> int:
        """Make a file, or open the one that was made."""
        file = self._by_path[path]
        fd = open_new(path) if file.inode is None else open_again(path)
        inode = os.fstat(fd).st_ino
        if file.inode is None:
            file.inode = inode
        elif file.inode != inode:
            os.close(fd)
            raise meddled(path)
        return fd

    def write(self, file: int, offset: int, data: memoryview) -> None:
        """Write bytes at an offset of a file's data; until they are finished they may be written again."""
        into = self._files[file]
        with into.turn, self._descriptors.open(into.path) as fd:
            _check_whole(into, fd)
            write_all(fd, data, len(into.header) + offset)

    def finish(self, file: int, start: int, stop: int) -> None:
        """Note that a range of a file's data is as it stays."""
        self._files[file].finished.add(start, stop)

    def check_finished(self) -> None:
        """Raise an error unless every byte is finished: nothing else will write any."""
        for file in self._files:
            file.finished.check(file.planned.data_size)

    def copy(self, copy: Copy, progress: Callable[[int], None], stop: threading.Event) -> None:
        """Copy an untouched range, in the kernel where it can."""
        into = self._files[copy.file]
        begin = len(into.header) + copy.offset
        done, size = 0, copy.stop - copy.start
        in_kernel = True
        with self._descriptors.open(into.path) as target:
            while done < size and not stop.is_set():
                length = min(CHUNK, size - done)
                _check_whole(into, target)
                count = None
                if in_kernel:
                    with into.turn, self._inputs.open(copy.source) as source:
                        count = copy_range(source, target, length, copy.start + done, begin + done)
                if count is None:
                    in_kernel = False
                    piece = memoryview(bytearray(min(length, PIECE)))
                    self._inputs.read(copy.source, copy.start + done, piece)
                    write_all(target, piece, begin + done)
                    count = len(piece)
                if count == 0:
                    raise FileError(f"{copy.source}: became shorter while it was read")
                self.finish(copy.file, copy.offset + done, copy.offset + done + count)
                done += count
                progress(count)

    def follow(self, stop: threading.Event) -> list[str]:
        """Follow the finished ranges of every file: hash them in order, and start their way to the disk.

        Return the SHA-256 of each file's data; empty texts where none is wanted.
        """
        if not (self._hashed or self._fsync):
            return [""] * len(self._files)
        return [self._follow(file, stop) for file in self._files]

    def _follow(self, file: _File, stop: threading.Event) -> str:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(PIECE)) if self._hashed else memoryview(b"")
        begin = len(file.header)
        with self._descriptors.open(file.path) as fd:
            for start, end in file.finished.follow(file.planned.data_size, stop):
                position = start
                while self._hashed and position < end and not stop.is_set():
                    count = read_at(fd, buffer[: end - position], begin + position)
                    if count == 0:
                        raise meddled(file.path)
                    digest.update(buffer[:count])
                    position += count
                if self._fsync:
                    start_writeback(fd, begin + start, end - start)
        return digest.hexdigest() if self._hashed else ""

    def fill_in(self, hashes: Sequence[str], digests: Mapping[str, str], device: str) -> None:
        """Complete the headers: hashes of the data, digests of the inputs, and what computed."""
        for file, data_hash in zip(self._files, hashes, strict=True):
            with self._descriptors.open(file.path) as fd:
                known = provenance.fill(data_hash) if data_hash else {}
                if provenance.LEGACY_HASH in file.planned.metadata:
                    block = bytes_at(fd, provenance.LEGACY_BYTES, provenance.LEGACY_START)
                    known[provenance.LEGACY_HASH] = hashlib.sha256(block).hexdigest()[:8]
                header = file.planned.header(digests, known, device)
                if len(header) != len(file.header):
                    raise AssertionError("the header's length changed")
                write_all(fd, memoryview(header), 0)
                if self._fsync:
                    os.fsync(fd)

    def close(self) -> None:
        """Close the files; raise OSError where the system says that one was not written."""
        self._descriptors.close()

    def check_at(self, paths: Iterable[Path]) -> None:
        """Raise TargetError unless what is at these paths is what was written, whole."""
        for file, path in zip(self._files, paths, strict=True):
            if identity(path) != (file.inode, file.size):
                raise meddled(path)


def _check_whole(file: _File, fd: int) -> None:
    """Notice if another program has made a file shorter; what is written later would leave zeros before it."""
    if os.fstat(fd).st_size != file.size:
        raise meddled(file.path)
