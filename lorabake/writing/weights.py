"""Write an output's files with weights: each has its final length at once, and takes ranges from any thread."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from lorabake.errors import InternalError, TargetError
from lorabake.machine import unwritable
from lorabake.planning import provenance
from lorabake.planning.copies import Copy
from lorabake.planning.files import OutputFile
from lorabake.storage.fields import LEGACY_HASH
from lorabake.tensors.header import Header
from lorabake.tensors.system import bytes_at
from lorabake.writing.commit import identity
from lorabake.writing.copying import Range, copied
from lorabake.writing.finished import Finished
from lorabake.writing.inputs import Inputs
from lorabake.writing.linking import link_or_copy
from lorabake.writing.openfiles import OpenFiles
from lorabake.writing.system import open_again, open_new, reserve, start_writeback, write_all
from lorabake.writing.trail import Trail


def meddled(path: Path) -> TargetError:
    """Return the error that another program changed a file of this bake."""
    return TargetError(f"{path}: another program has changed or removed it; bake again")


class _File:
    """Hold one file: its plan, where it is made, and which ranges are finished."""

    def __init__(self, planned: OutputFile, path: Path) -> None:
        self.planned, self.path = planned, path
        self.begin = planned.header_size
        self.finished = Finished()
        self.turn = threading.Lock()
        self.inode: int | None = None
        self.trail = Trail()
        self.sha256: str | None = None

    @property
    def link(self) -> Header | None:
        return self.planned.link

    @property
    def size(self) -> int:
        return self.link.size if self.link is not None else self.begin + self.planned.data_size


class Weights:
    """Write the files with weights of an output, which are made at `paths`, in the order of `planned`.

    `place` is the folder around them, for messages. With `hashed` they are hashed as they grow; with `fsync` the
    system begins early to write them to the disk. Files that are to be links are not there before `link` makes them.
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
    def _written(self) -> list[tuple[int, _File]]:
        """List the files that are no links, with their numbers."""
        return [(number, file) for number, file in enumerate(self._files) if file.link is None]

    def create(self, kept: Collection[int] = ()) -> None:
        """Make the files with their full length, in existing folders; headers still lack digests and hashes.

        Files with the numbers in `kept` are there, and stay.
        """
        self._descriptors.close()
        for number, file in self._written:
            file.inode = file.inode if number in kept else None
            with self._descriptors.open(file.path) as fd:
                reserve(fd, file.size)
                write_all(fd, memoryview(file.planned.header()), 0)

    def whole(self) -> frozenset[int]:
        """Return the numbers of the files that are there already in their full length."""
        found = ((number, file, identity(file.path)) for number, file in self._written)
        return frozenset(number for number, file, seen in found if seen is not None and seen[1] == file.size)

    def join(self, numbers: Iterable[int] | None = None) -> None:
        """Write into files that are there, all or some; raise TargetError for one that is not as it was made."""
        whole = self.whole()
        for number in [number for number, _ in self._written] if numbers is None else numbers:
            file = self._files[number]
            if number not in whole or (seen := identity(file.path)) is None:
                raise meddled(file.path)
            file.inode = seen[0]

    def _opened(self, path: Path) -> int:
        """Make a file, or open it if it was made already."""
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
        """Write bytes at an offset of a file's data; until `finish` they may be overwritten."""
        into = self._files[file]
        with into.turn, self._descriptors.open(into.path) as fd:
            _check_whole(into, fd)
            write_all(fd, data, into.begin + offset)

    def finish(self, file: int, start: int, stop: int) -> None:
        """Note that a range of a file's data is final."""
        self._files[file].finished.add(start, stop)

    def check_finished(self) -> None:
        """Raise an error unless every byte is finished, since nobody else will write the rest."""
        for _, file in self._written:
            file.finished.check(file.planned.data_size)

    def copy(self, copy: Copy, progress: Callable[[int], None], stop: threading.Event) -> None:
        """Copy an untouched range: share blocks with the input if possible, or else in the kernel."""
        into, offset = self._files[copy.file], copy.offset
        place = Range(copy.source, copy.start, copy.stop, into.begin + offset)
        with self._descriptors.open(into.path) as target:
            _check_whole(into, target)
            for count in copied(place, self._inputs, target, into.turn) if not stop.is_set() else ():
                self.finish(copy.file, offset, offset + count)
                offset += count
                progress(count)
                if stop.is_set():
                    return
                _check_whole(into, target)

    def follow(self, file: int, stop: threading.Event) -> str:
        """Hash the finished ranges of a file in order, and start to write them to the disk; return the SHA-256.

        It is an empty text if none is wanted. What is known is not read again.
        """
        known = self._files[file].sha256 if self._hashed or self._fsync else ""
        return known if known is not None else self._follow(self._files[file], stop)

    def know(self, file: int, sha256: str) -> None:
        """Take the SHA-256 of a file's data, of which all is finished."""
        self._files[file].sha256 = sha256

    @property
    def is_hashed(self) -> bool:
        """Tell whether the files are hashed as they grow."""
        return self._hashed

    def mark(self, file: int, stops: Iterable[int]) -> None:
        """Ask whoever follows a file to keep the SHA-256 of its data before each of these places."""
        self._files[file].trail.mark(stops)

    def sha256_before(self, file: int, stop: int, given_up: threading.Event) -> str:
        """Wait until a file was followed to a mark; return the SHA-256 of all data before it, "" if given up."""
        return self._files[file].trail.before(stop, given_up)

    def sha256(self, file: int, start: int, stop: int, given_up: threading.Event) -> str:
        """Digest a range of a file's data, unless that is given up meanwhile."""
        return self._read(self._files[file], Trail(), start, stop, given_up)

    def sha256_at(self, file: int, stops: Iterable[int]) -> dict[int, str]:
        """Map places to the SHA-256 of all data of a file before each; the file is read once."""
        trail, places, stop = Trail(), sorted(stops), threading.Event()
        trail.mark(places)
        self._read(self._files[file], trail, 0, places[-1] if places else 0, stop)
        return {place: trail.before(place, stop) for place in places}

    def _read(self, file: _File, trail: Trail, start: int, stop: int, given_up: threading.Event) -> str:
        with self._descriptors.open(file.path) as fd:
            if not trail.follow(fd, file.begin, start, stop, given_up):
                raise meddled(file.path)
        return trail.sha256

    def settle(self, file: int) -> None:
        """Wait until the disk has what was written into a file."""
        with self._descriptors.open(self._files[file].path) as fd:
            os.fsync(fd)

    def _follow(self, file: _File, stop: threading.Event) -> str:
        if file.link is not None:
            return self._inputs.sha256(file.link.path, stop, file.link.data_start) if self._hashed else ""
        begin = file.begin
        with self._descriptors.open(file.path) as fd:
            for start, end in file.finished.follow(file.planned.data_size, stop):
                if self._hashed and not file.trail.follow(fd, begin, start, end, stop):
                    raise meddled(file.path)
                if self._fsync:
                    start_writeback(fd, begin + start, end - start)
        return file.trail.sha256 if self._hashed else ""

    def fill_in(self, hashes: Sequence[str], digests: Mapping[str, str], device: str) -> None:
        """Complete the headers: hashes of the data, digests of the inputs, and the devices."""
        for file, data_hash in zip(self._files, hashes, strict=True):
            if file.link is not None:
                continue
            with self._descriptors.open(file.path) as fd:
                known = provenance.fill(data_hash) if data_hash else {}
                if LEGACY_HASH in file.planned.metadata:
                    block = bytes_at(fd, provenance.LEGACY_BYTES, provenance.LEGACY_START)
                    known[LEGACY_HASH] = hashlib.sha256(block).hexdigest()[:8]
                header = file.planned.header(digests, known, device)
                if len(header) != file.begin:
                    raise InternalError("the header's length changed")
                write_all(fd, memoryview(header), 0)
                if self._fsync:
                    os.fsync(fd)

    def link(self) -> list[OSError]:
        """Make the links; return why some are copies. Nothing is written into a linked file after that."""
        found: list[OSError] = []
        for file in self._files:
            if file.link is not None:
                why = link_or_copy(file.link, file.path, self._inputs, durable=self._fsync)
                found += [why] if why is not None else []
                file.inode = os.lstat(file.path).st_ino
        return found

    def close(self) -> None:
        """Close the files; raise OSError if the system reports that one was not written."""
        self._descriptors.close()

    def check_at(self, paths: Iterable[Path]) -> None:
        """Raise TargetError unless these paths are the complete files that were written."""
        for file, path in zip(self._files, paths, strict=True):
            if identity(path) != (file.inode, file.size):
                raise meddled(path)


def _check_whole(file: _File, fd: int) -> None:
    """Raise an error if another program has shortened a file; later writes would leave zeros in the gap."""
    if os.fstat(fd).st_size != file.size:
        raise meddled(file.path)
