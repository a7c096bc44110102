"""Step 5 of the flow: bytes at planned offsets, then fsync and an atomic rename.

Everything is made in a folder beside the target (`writing.partial`). Whatever stops a bake, the target is what it
was. Learned embeddings, files of their own, get their names with it, or not at all.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from lorabake.errors import FileError, LorabakeError, SurroundingsError, TargetError
from lorabake.interrupts import held
from lorabake.machine import unwritable
from lorabake.planning import Plan, provenance
from lorabake.planning.checks import check_is_no_input
from lorabake.planning.files import Embedding, OutputFile
from lorabake.planning.steps import Copy
from lorabake.tensors.checkpoint import read_object
from lorabake.tensors.header import Header
from lorabake.tensors.links import copy_file
from lorabake.tensors.safetensors import read_header
from lorabake.tensors.small import holds
from lorabake.tensors.system import bytes_at, read_at
from lorabake.writing.commit import Identity, Move, identity
from lorabake.writing.commit import commit as make_all
from lorabake.writing.inputs import Inputs
from lorabake.writing.openfiles import OpenFiles
from lorabake.writing.partial import Partial
from lorabake.writing.system import (
    copy_range,
    fsync,
    fsync_folder,
    open_again,
    open_new,
    reserve,
    start_writeback,
    write_all,
)

CHUNK = 4 << 20


class Output:
    """Write a plan's files beside their target; `commit` gives them its name, leaving removes them."""

    def __init__(self, plan: Plan, inputs: Inputs, *, overwrite: bool, fsync: bool) -> None:
        self.plan, self.inputs, self.fsync = plan, inputs, fsync
        self.path = plan.path
        self.partial = Partial(self.path)
        self.headers = [file.header() for file in plan.files]
        self.size = sum(len(header) + file.data_size for header, file in zip(self.headers, plan.files, strict=True))
        self.finished = [Finished() for _ in plan.files]
        self.left: OSError | None = None
        self._turns = [threading.Lock() for _ in plan.files]
        self._overwrite = overwrite
        self._places = [self.partial.new / file.name if plan.is_folder else self.partial.new for file in plan.files]
        self._files = OpenFiles(self._opened, unwritable)
        self._inodes: dict[Path, int] = {}
        self._state = "closed"
        self._moving: list[tuple[Path, Path, Identity]] = []

    @property
    def place(self) -> Path:
        """Name where everything is made."""
        return self.partial.path

    def __enter__(self) -> Self:
        try:
            check_is_no_input(self.plan.sources, self.partial.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with held():
                self.partial.open()
                self._state = "open"
            self._check_target()
            free = shutil.disk_usage(self.path.parent).free
            needed = self.size + sum(embedding.size for embedding in self.plan.embeddings) + self._side_size()
            if free < needed:
                raise SurroundingsError(f"{self.path.parent}: {_size(free)} free, and the bake needs {_size(needed)}")
            self._create()
            for embedding in self.plan.embeddings:
                _write_embedding(embedding, self.partial.beside(embedding.path), fsync=self.fsync)
            self._check_beside()
            return self
        except OSError as error:
            self.clean()
            raise unwritable(self.partial.path, error) from None
        except BaseException:
            self.clean()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            with held():
                self.clean()
        except BaseException:  # a signal before it was held
            self.clean()
            raise

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
        elif self.plan.is_folder and not path.is_symlink():
            self._refuse_others(path)

    def _refuse_others(self, root: Path) -> None:
        """Raise TargetError if a target folder, which is at `root` now, would lose something by being replaced."""
        if other := next(self._others(root), None):
            raise TargetError(
                f"{self.path}: holds {other}, which this bake does not put there, and would lose it",
                "Move it, or name another folder.",
            )

    def _other_content(self, path: Path | None = None) -> TargetError:
        return TargetError(f"{path or self.path}: exists and holds something else", "Give --overwrite to replace it.")

    def _check_beside(self) -> None:
        """Refuse to replace a file where a learned embedding goes, unless it holds the same, or may be replaced."""
        for each in self.plan.embeddings:
            if each.path.is_dir():
                raise TargetError(f"{each.path}: is a folder, and a learned embedding is to be written there")
            if os.path.lexists(each.path) and not self._overwrite and not self._is_there(each.path):
                raise self._other_content(each.path)

    def _is_there(self, path: Path) -> bool:
        """Tell whether a file beside the target has the bytes that it is to have."""
        return path.is_file() and filecmp.cmp(self.partial.beside(path), path, shallow=False)

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
        if set(_found(self.path)) != written | side_files:
            return False
        if any(not holds(self.path / name, text.encode()) for name, text in self.plan.texts.items()):
            return False
        base = self.plan.sources.base
        return all(filecmp.cmp(base.path / name, self.path / name, shallow=False) for name in side_files)

    def _others(self, root: Path) -> Iterator[Path]:
        """Yield what a target folder, which is at `root` now, would lose: what this bake does not put there.

        Weights that a bake wrote, and an index of nothing else, may go: another number of shards has other names.
        """
        planned = set[Path]().union(*self._planned())
        folders = {folder for path in planned for folder in path.parents}
        rest = []
        for path in _found(root):
            place = root / path
            is_folder = place.is_dir() and not place.is_symlink()
            if not (path in folders if is_folder else path in planned and place.is_file()):
                rest.append(path)
        baked = {path for path in rest if path.suffix == ".safetensors" and _is_baked(root / path)}
        for path in rest:
            if path not in baked and not (path.name.endswith(".index.json") and _is_index_of(root, path, baked)):
                yield path

    def _planned(self) -> tuple[set[Path], set[Path]]:
        """List the files that this bake makes in a folder, and those that it copies from the base's."""
        written = {Path(file.name) for file in self.plan.files} | {Path(name) for name in self.plan.texts}
        return written, {*self.plan.side_files} - written

    def _check_data(self, digests: Mapping[str, str], device: str) -> None:
        """Refuse to replace a target whose data differ from the finished ones; hashes in its header tell."""
        for file in self.plan.files:
            roots = (self.path, self.partial.new)
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
                    f"{self.path}: exists, computed on {there}, and {device} computed other last bits",
                    "Give --overwrite to replace it, or name that device.",
                )
            raise self._other_content()

    def _create(self) -> None:
        for folder in dict.fromkeys(place.parent for place in self._places if self.plan.is_folder):
            folder.mkdir(parents=True, exist_ok=True)
        for place, header, file in zip(self._places, self.headers, self.plan.files, strict=True):
            with self._files.open(place) as fd:
                reserve(fd, len(header) + file.data_size)
                write_all(fd, memoryview(header), 0)

    def _opened(self, place: Path) -> int:
        """Make a file of the output, or open the one that was made."""
        is_new = place not in self._inodes
        fd = open_new(place) if is_new else open_again(place)
        inode = os.fstat(fd).st_ino
        if self._inodes.setdefault(place, inode) != inode:
            os.close(fd)
            raise _meddled(place)
        return fd

    def _check_whole(self, file: int, fd: int) -> None:
        """Notice if another program has made a file shorter; what is written later would leave zeros before it."""
        if os.fstat(fd).st_size != self._length(file):
            raise _meddled(self._places[file])

    def _length(self, file: int) -> int:
        return len(self.headers[file]) + self.plan.files[file].data_size

    def write(self, file: int, offset: int, data: memoryview) -> None:
        """Write bytes at an offset of a file's data; until they are finished they may be written again."""
        with self._turns[file], self._files.open(self._places[file]) as fd:
            self._check_whole(file, fd)
            write_all(fd, data, len(self.headers[file]) + offset)

    def finish(self, file: int, start: int, stop: int) -> None:
        """Note that a range of a file's data is as it stays."""
        self.finished[file].add(start, stop)

    def check_finished(self) -> None:
        """Raise an error unless every byte is finished: nothing else will write any."""
        for finished, file in zip(self.finished, self.plan.files, strict=True):
            finished.check(file.data_size)

    def copy(self, copy: Copy, progress: Callable[[int], None], stop: threading.Event) -> None:
        """Copy an untouched range, in the kernel where it can."""
        base = len(self.headers[copy.file]) + copy.offset
        done, size = 0, copy.stop - copy.start
        in_kernel = True
        with self._files.open(self._places[copy.file]) as target:
            while done < size and not stop.is_set():
                length = min(CHUNK, size - done)
                self._check_whole(copy.file, target)
                count = None
                if in_kernel:
                    with self._turns[copy.file], self.inputs.open(copy.source) as source:
                        count = copy_range(source, target, length, copy.start + done, base + done)
                if count is None:
                    in_kernel = False
                    piece = memoryview(bytearray(min(length, 1 << 20)))
                    self.inputs.read(copy.source, copy.start + done, piece)
                    write_all(target, piece, base + done)
                    count = len(piece)
                if count == 0:
                    raise FileError(f"{copy.source}: became shorter while it was read")
                self.finish(copy.file, copy.offset + done, copy.offset + done + count)
                done += count
                progress(count)

    def follow(self, stop: threading.Event) -> list[str]:
        """Follow the finished ranges of every file: hash them in order, and start their way to the disk.

        Return the SHA-256 of each file's data; empty texts where the recipe asks for none.
        """
        digests: list[str] = []
        hashed = self.plan.sources.recipe.output.hash
        if not (hashed or self.fsync):
            return [""] * len(self.plan.files)
        for place, header, file, finished in zip(
            self._places, self.headers, self.plan.files, self.finished, strict=True
        ):
            digest = hashlib.sha256()
            buffer = memoryview(bytearray(1 << 20)) if hashed else memoryview(b"")
            with self._files.open(place) as fd:
                for start, end in finished.follow(file.data_size, stop):
                    position = start
                    while hashed and position < end and not stop.is_set():
                        count = read_at(fd, buffer[: end - position], len(header) + position)
                        if count == 0:
                            raise _meddled(place)
                        digest.update(buffer[:count])
                        position += count
                    if self.fsync:
                        start_writeback(fd, len(header) + start, end - start)
            digests.append(digest.hexdigest() if hashed else "")
        return digests

    def complete(self, data_hashes: Sequence[str], digests: Mapping[str, str], device: str) -> None:
        """Fill in the digests and what computed, and make everything durable; `commit` is what is left to do."""
        try:
            self._fill_in(data_hashes, digests, device)
            if not self._overwrite and os.path.lexists(self.path):
                self._check_data(digests, device)
            self._check_beside()
            if self.plan.is_folder:
                self._write_side_files()
            places = [(self.partial.beside(each.path), each.path) for each in self.plan.embeddings]
            for made, target in [*places, (self.partial.new, self.path)]:
                if (is_now := identity(made)) is None:
                    raise _meddled(made)
                self._moving.append((made, target, is_now))
            self._close_files()
        except OSError as error:
            raise self._worded(error) from None

    def _worded(self, error: OSError) -> LorabakeError:
        """Word a failure in the partial folder, which another program may have moved."""
        try:
            self.partial.check()
        except TargetError as moved:
            return moved
        place = error.filename2 or error.filename  # of a rename, the target
        return unwritable(Path(os.fsdecode(place)) if isinstance(place, str | bytes) else self.partial.path, error)

    def _fill_in(self, data_hashes: Sequence[str], digests: Mapping[str, str], device: str) -> None:
        for place, header, file, data_hash in zip(
            self._places, self.headers, self.plan.files, data_hashes, strict=True
        ):
            with self._files.open(place) as fd:
                hashes = provenance.fill(data_hash) if data_hash else {}
                if provenance.LEGACY_HASH in file.metadata:
                    block = bytes_at(fd, provenance.LEGACY_BYTES, provenance.LEGACY_START)
                    hashes[provenance.LEGACY_HASH] = hashlib.sha256(block).hexdigest()[:8]
                final = file.header(digests, hashes, device)
                if len(final) != len(header):
                    raise AssertionError("the header's length changed")
                write_all(fd, memoryview(final), 0)
                if self.fsync:
                    os.fsync(fd)

    def _close_files(self) -> None:
        """Close the files, and make sure that they are whole."""
        self.partial.check()
        self._files.close()
        self._check_names(self.partial.new)

    def _check_names(self, root: Path) -> None:
        """Make sure that the weights' names mean what this bake has written, whole; `root` is where they are now."""
        for index, (place, file) in enumerate(zip(self._places, self.plan.files, strict=True)):
            path = root / file.name if self.plan.is_folder else root
            if identity(path) != (self._inodes[place], self._length(index)):
                raise _meddled(path)

    def commit(self) -> None:
        """Give what is made its names: all of it, or nothing. After that the bake is done, whatever happens.

        Raise TargetError if another program has changed a target meanwhile, or put something there that would get
        lost.
        """
        moves = [Move(made, target, new, identity(target)) for made, target, new in self._moving]
        try:
            self.partial.check()
            self.partial.note(moves, durable=self.fsync)
            self._state = "committing"  # what was there before is in the partial folder now, until all is taken back
            try:
                make_all(moves, lambda: self._check_moved(moves[-1]))
            except BaseException:
                if not any(move.has_begun for move in moves):
                    self._state = "open"
                raise
            self._state = "committed"
        except OSError as error:
            raise self._worded(error) from None
        if self.fsync:
            with suppress(OSError):
                fsync_folder(self.path.parent)

    def _check_moved(self, move: Move) -> None:
        """Refuse weights that another program changed, and to lose what came into the target folder meanwhile."""
        self._check_names(move.target)
        if self.plan.is_folder and move.old is not None and move.made.is_dir() and not move.made.is_symlink():
            self._refuse_others(move.made)

    def _side_size(self) -> int:
        """Count the bytes of the files that are copied from the base's folder as they are."""
        root = self.plan.sources.base.path
        return sum((root / name).stat().st_size for name in self.plan.side_files)

    def _write_side_files(self) -> None:
        base = self.plan.sources.base
        for relative in self.plan.side_files:
            place = self.partial.new / relative
            place.parent.mkdir(exist_ok=True)
            copy_file(base.path, base.path / relative, place)
            if self.fsync:
                fsync(place)
        for name, text in self.plan.texts.items():
            (self.partial.new / name).write_text(text, encoding="utf-8")
            if self.fsync:
                fsync(self.partial.new / name)
        if self.fsync:
            for folder in {self.partial.new, *(path.parent for path in self.partial.new.rglob("*"))}:
                fsync_folder(folder)

    def clean(self) -> None:
        """Remove what is left beside the target; `left` tells what the system said if it could not."""
        with suppress(OSError):
            self._files.close()
        if self._state in ("open", "committed"):
            try:
                self.partial.remove()
            except OSError as error:
                self.left = error
        self.partial.leave()
        self._state = "closed"


def _meddled(path: Path) -> TargetError:
    return TargetError(f"{path}: another program has changed or removed it; bake again")


def _write_embedding(embedding: Embedding, place: Path, *, fsync: bool) -> None:
    """Write a learned embedding, a chunk at a time."""
    fd = open_new(place)
    try:
        head = embedding.header()
        write_all(fd, memoryview(head), 0)
        position = len(head)
        for info in (vectors.info for vectors in embedding.vectors):
            with open(info.file, "rb") as stream:
                for start in range(info.start, info.stop, CHUNK):
                    stream.seek(start)
                    wanted = min(CHUNK, info.stop - start)
                    chunk = stream.read(wanted)
                    if len(chunk) < wanted:
                        raise FileError(f"{info.file}: became shorter while it was read")
                    write_all(fd, memoryview(chunk), position)
                    position += len(chunk)
        if fsync:
            os.fsync(fd)
    finally:
        os.close(fd)


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


def _found(root: Path) -> Iterator[Path]:
    """Yield the files and links in a folder, and the folders in which is nothing, by their paths below it."""

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, onerror=fail):
        place = Path(folder)
        links = [name for name in folders if (place / name).is_symlink()]
        yield from ((place / name).relative_to(root) for name in sorted([*files, *links]))
        if not folders and not files and place != root:
            yield place.relative_to(root)


def _is_baked(path: Path) -> bool:
    try:
        return not path.is_symlink() and "lorabake.version" in read_header(path).metadata
    except FileError:
        return False


def _is_index_of(root: Path, path: Path, weights: set[Path]) -> bool:
    """Tell whether an index names no weights but these, or such as are not there."""
    try:
        named = read_object(root / path).get("weight_map")
    except FileError:
        return False
    if not isinstance(named, dict) or not named:
        return False
    files = {path.parent / str(name) for name in named.values()}
    return all(file in weights or not os.path.lexists(root / file) for file in files)


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


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
