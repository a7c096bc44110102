"""Identify files by every digest that programs and sites use, in one pass over their bytes.

Each piece of a file is read once, and hashed by several threads side by side while the next one is read. What a
network's weights need beyond that (rows that another layout keeps elsewhere) is read again, from the system's cache.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorabake.artifacts.digests import FileDigest, file_digest, folder_sha256, remember
from lorabake.artifacts.networks import Digested, Network, Weight, fingerprint_of, networks_of
from lorabake.errors import FileError
from lorabake.machine import default_workers, unreadable
from lorabake.paths import check_there
from lorabake.progress import unseen
from lorabake.tensors.checkpoint import Checkpoint, open_lora
from lorabake.tensors.dtypes import nbytes
from lorabake.tensors.header import Header, TensorInfo
from lorabake.tensors.reader import fingerprint
from lorabake.tensors.small import open_regular
from lorabake.tensors.system import bytes_at, read_at
from lorabake.visible import short_repr

PIECE = 8 << 20
"""Bytes that are read at a time; two such pieces are in memory."""

OLD_START, OLD_BYTES = 0x100000, 0x10000
"""Where A1111's first hash looked."""


@dataclass(frozen=True, slots=True)
class FileHashes:
    """Identify a file by its bytes, and, if it is SafeTensors, by those of its tensors without the header.

    `autov1` is A1111's first hash, of a small piece of the file; `autov2` begins the SHA-256; `autov3` begins the
    SHA-256 of the data. `crc32` and the others are written as Civitai writes them.
    """

    __repr__ = short_repr

    name: str
    size: int
    sha256: str
    autov1: str
    crc32: str
    data_sha256: str | None = None

    @property
    def autov2(self) -> str:
        """Return the first ten digits of the SHA-256."""
        return self.sha256[:10].upper()

    @property
    def autov3(self) -> str | None:
        """Return the first twelve digits of the SHA-256 of the data."""
        return None if self.data_sha256 is None else self.data_sha256[:12].upper()


@dataclass(frozen=True, slots=True)
class NetworkHash:
    """Identify a network by its weights, in whatever layout they are stored."""

    __repr__ = short_repr

    component: str
    layout: str
    weights: int
    sha256: str
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hashes:
    """Identify a file or folder.

    `sha256` is that of the file, or the digest over a folder's files. `content` is the fingerprint of all tensors by
    their own names, None where not every file is SafeTensors; `networks` are those whose names a table knows.
    """

    __repr__ = short_repr

    path: Path
    is_folder: bool
    sha256: str
    files: tuple[FileHashes, ...]
    others: tuple[FileDigest, ...]
    tensors: int
    content: str | None
    family: str
    networks: tuple[NetworkHash, ...]

    @property
    def size(self) -> int:
        """Count the bytes of the files with weights."""
        return sum(file.size for file in self.files)


def hash_path(path: Path, *, progress: Callable[[int], None] = unseen) -> Hashes:
    """Hash a file, or a folder's files; raise FileError for what is no model or LoRA, or changes meanwhile.

    `progress` receives counts of bytes.
    """
    check_there(path)
    checkpoint, _ = open_lora(path)
    root = checkpoint.path if checkpoint.is_folder else checkpoint.path.parent
    headers = list(checkpoint.headers)
    are_plain = all(header.data_start and header.path.suffix.lower() == ".safetensors" for header in headers)
    family, networks = networks_of(checkpoint.tensors) if are_plain else ("", ())
    files: list[FileHashes] = []
    found: dict[str, str] = {}
    with ThreadPoolExecutor(default_workers()) as pool:
        for header in headers:
            name = header.path.relative_to(root).as_posix() if checkpoint.is_folder else header.path.name
            hashes, digests = _file(header, name, pool, progress, tensors=are_plain)
            files.append(hashes)
            found |= digests
    others = tuple(file_digest(root / name, name) for name in _names_beside(checkpoint))
    listed = [*others, *(FileDigest(file.name, file.size, file.sha256) for file in files)]
    tensors = checkpoint.tensors
    content = (
        [Digested(key, info.dtype, info.shape, found[key]) for key, info in tensors.items()] if are_plain else []
    )
    return Hashes(
        path=path,
        is_folder=checkpoint.is_folder,
        sha256=folder_sha256(listed) if checkpoint.is_folder else files[0].sha256,
        files=tuple(files),
        others=others,
        tensors=len(tensors),
        content=fingerprint_of(content) if are_plain else None,
        family=family,
        networks=tuple(_network(network, tensors, found) for network in networks),
    )


def _names_beside(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the files of a folder beside those with weights."""
    if checkpoint.is_folder:
        yield from (f"{part.folder}/{part.index}".lstrip("/") for part in checkpoint.parts if part.index is not None)
        yield from (name.as_posix() for name in checkpoint.side_files)


# -- One pass --------------------------------------------------------------------------------------------


class _Crc32:
    """Take a CRC-32 like a hash of hashlib."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: memoryview) -> None:
        self.value = zlib.crc32(data, self.value)


class _Range:
    """Hash the bytes of a file from `start` to `stop`, whatever pieces they come in."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop, self.taken = start, stop, hashlib.sha256()

    def update(self, piece: memoryview, position: int) -> None:
        self.taken.update(piece[max(self.start - position, 0) : max(self.stop - position, 0)])


class _Tensors:
    """Hash every tensor of a file; they lie one after the other."""

    def __init__(self, infos: Sequence[TensorInfo]) -> None:
        self.digests = {info.key: hashlib.sha256(b"").hexdigest() for info in infos}
        self._waiting = [(info.key, _Range(info.start, info.stop)) for info in infos if info.nbytes]
        self._next = 0

    def update(self, piece: memoryview, position: int) -> None:
        stop = position + len(piece)
        while self._next < len(self._waiting):
            key, taken = self._waiting[self._next]
            if taken.start >= stop:
                return
            taken.update(piece, position)
            if taken.stop > stop:
                return
            self.digests[key] = taken.taken.hexdigest()
            self._next += 1


def _file(
    header: Header, name: str, pool: ThreadPoolExecutor, progress: Callable[[int], None], *, tensors: bool
) -> tuple[FileHashes, Mapping[str, str]]:
    """Hash a file; return its hashes, and those of its tensors by their keys."""
    path = header.path
    whole, crc, data = hashlib.sha256(), _Crc32(), _Range(header.data_start, header.size)
    each = _Tensors(header.in_order() if tensors else [])
    began = time.time_ns()
    try:
        with open_regular(path) as stream:
            fd = stream.fileno()
            seen = fingerprint(fd)
            if header.identity and seen != header.identity:
                raise _changed(path)
            for position, piece in _pieces(fd, pool):
                tasks = [pool.submit(whole.update, piece), pool.submit(crc.update, piece)]
                if tensors:
                    tasks += [pool.submit(data.update, piece, position), pool.submit(each.update, piece, position)]
                _finish(tasks)
                progress(len(piece))
            old = hashlib.sha256(bytes_at(fd, OLD_BYTES, OLD_START)).hexdigest()[:8]
            if not fingerprint(fd) == fingerprint(path) == seen:
                raise _changed(path)
    except OSError as error:
        raise unreadable(path, error) from None
    remember(seen, whole.hexdigest(), began)
    taken = data.taken.hexdigest() if tensors else None
    hashes = FileHashes(name, header.size, whole.hexdigest(), old.upper(), f"{crc.value:08X}", taken)
    return hashes, each.digests


def _pieces(fd: int, pool: ThreadPoolExecutor) -> Iterator[tuple[int, memoryview]]:
    """Yield a file's bytes with their positions; the next piece is read while one is used."""
    buffers = [memoryview(bytearray(PIECE)) for _ in range(2)]
    position, turn = 0, 0
    waiting = pool.submit(_filled, fd, buffers[0], 0)
    while count := waiting.result():
        piece = buffers[turn][:count]
        turn = 1 - turn
        waiting = pool.submit(_filled, fd, buffers[turn], position + count)
        yield position, piece
        position += count


def _filled(fd: int, buffer: memoryview, position: int) -> int:
    """Fill a buffer as far as the file goes; return how many bytes that is."""
    done = 0
    while done < len(buffer) and (count := read_at(fd, buffer[done:], position + done)):
        done += count
    return done


def _finish(tasks: Iterable[Future[None]]) -> None:
    for task in tasks:
        task.result()


def _changed(path: Path) -> FileError:
    return FileError(f"{path}: changed while it was read", "Run it again once nothing writes to it.")


# -- Networks --------------------------------------------------------------------------------------------


def _network(network: Network, tensors: Mapping[str, TensorInfo], found: Mapping[str, str]) -> NetworkHash:
    """Take the fingerprint of a network; `found` has the digests of whole tensors."""
    digests = []
    for weight in network.weights:
        is_whole = weight.is_whole(tensors)
        sha256 = found[weight.view.regions[0].key] if is_whole else _of_rows(weight, tensors)
        digests.append(Digested(weight.name, weight.dtype, weight.view.shape, sha256))
    return NetworkHash(network.component, network.layout, len(digests), fingerprint_of(digests), network.left_out)


def _of_rows(weight: Weight, tensors: Mapping[str, TensorInfo]) -> str:
    """Hash a weight that is rows of a tensor, or of several, or a turned one: in the order that its view has."""
    view, taken = weight.view, hashlib.sha256()
    for region in view.regions:
        info = tensors[region.key]
        row = nbytes(info.dtype, (view.width,))
        with open_regular(info.file) as stream:
            data = bytes_at(stream.fileno(), (region.stop - region.start) * row, info.start + region.start * row)
        if view.transpose:
            size = row // view.width
            data = np.frombuffer(data, np.uint8).reshape(-1, view.width, size).transpose(1, 0, 2).tobytes()
        taken.update(data)
    return taken.hexdigest()
