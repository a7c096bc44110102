"""Find the storages of a pickled checkpoint: in a zip archive's records, or one after the other in the file."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, cast

from lorabake.errors import FileError, SurroundingsError
from lorabake.tensors.archives import Archive, open_archive
from lorabake.tensors.header import Record
from lorabake.tensors.pickles.machine import MAX_PICKLE, Bounded, PickleError, load
from lorabake.tensors.pickles.names import NAMES, Storages, width_of
from lorabake.tensors.system import path_of

CONVERT = (
    "Use the model's SafeTensors release. If there is none and you trust the file, load it where it can do",
    "no harm with torch.load(path, weights_only=False), and save it with safetensors.torch.save_file.",
)
AGAIN = "Download it again."

_GROWTH, LEAST = 16, 64 << 20
"""Tensors may share storages. All together they may claim at most so many times the file's size, or so many bytes."""

_MAX_PACKED: Final = 2 << 20
"""Most bytes of a compressed pickle that unpacks to more than its file's size."""

_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION: Final = 1001
_COUNT_BYTES: Final = 8
"""Bytes of the number before each storage in the older form; it counts the values."""


class _Scratch(type(Path())):  # type: ignore[misc]
    """Be the path of an open file without a name; the file exists as long as this path object does."""


class _Aside:
    """Hold those values of a pickle that are not in one piece, in a temporary file without a name."""

    def __init__(self, origin: Path) -> None:
        self._origin = origin
        self._open: tuple[BinaryIO, Path] | None = None

    def add(self, pieces: Iterable[bytes]) -> tuple[Path, int]:
        """Append bytes; return the file's path and where the bytes begin. Raise SurroundingsError if that fails."""
        try:
            stream, path = self._open = self._open or _scratch()
            start = stream.seek(0, 2)
            stream.writelines(pieces)
            stream.flush()
        except OSError as error:
            raise SurroundingsError(
                f"{self._origin}: its tensors cannot be stored in a temporary file: {error.strerror or error}",
                "Set TMPDIR to a folder with enough space, or convert the file to SafeTensors.",
            ) from None
        return path, start


@dataclass(slots=True)
class Places:
    """Say where storages lie: name -> (file, first byte, bytes). `records` are the checksums to check."""

    aside: _Aside
    stored: dict[str, tuple[Path, int, int]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)


def read_zip(path: Path, size: int) -> tuple[object, Places]:
    """Read the archive that torch.save writes: NAME/data.pkl, NAME/data/0, NAME/data/1 …"""
    with open_archive(path) as archive:
        roots = [name.removesuffix("data.pkl") for name in archive.members if name.rpartition("/")[2] == "data.pkl"]
        if len(roots) != 1:
            raise PickleError(f"{len(roots)} records called data.pkl")
        root = roots[0]
        if f"{root}constants.pkl" in archive.members:
            raise PickleError("a TorchScript program, not tensors by name")
        order = archive.members.get(f"{root}byteorder")
        if order is not None and archive.read(order, limit=64).strip() != b"little":
            raise FileError(f"{path}: was saved by a machine that has the highest byte first", *CONVERT)
        pickled = archive.read(archive.members[f"{root}data.pkl"], limit=min(MAX_PICKLE, max(size, _MAX_PACKED)))
        loaded = load(BytesIO(pickled), NAMES, Storages().find)
        return loaded, _records(path, size, archive, f"{root}data/")


def _records(path: Path, size: int, archive: Archive, folder: str) -> Places:
    """Find the records of storages; unpack compressed ones into a temporary file."""
    places = Places(_Aside(path))
    members = {
        name.removeprefix(folder): record for name, record in archive.members.items() if name.startswith(folder)
    }
    packed = {name: member for name, member in members.items() if member.is_packed}
    check_growth(path, size, sum(member.size for member in packed.values()))
    for name, member in members.items():
        if member.is_packed:
            file, start = places.aside.add(archive.pieces(member))
            places.stored[name] = file, start, member.size
        else:
            places.stored[name] = path, member.start, member.size
            places.records.append(member.record)
    return places


def read_legacy(path: Path, stream: BinaryIO, size: int) -> tuple[object, Places]:
    """Read what torch.save wrote before version 1.6: a mark, the tensors, the storages' names, the storages."""

    def plain() -> object:
        return load(Bounded(stream), {}, _no_storage)

    if plain() != _LEGACY_MAGIC or plain() != _LEGACY_VERSION:
        raise PickleError("no file of torch.save")
    told = plain()
    if not isinstance(told, dict) or told.get("little_endian") is not True:
        raise FileError(f"{path}: was saved by a machine that has the highest byte first", *CONVERT)
    storages = Storages()
    loaded, names = load(Bounded(stream), NAMES, storages.find), plain()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PickleError("the list of storages is missing")
    places, start = Places(_Aside(path)), stream.tell()
    for name in names:
        if name in places.stored or name not in storages.dtypes:
            raise PickleError(f"the storage {name!r:.50}, of which no tensor is, or two are")
        stream.seek(start)
        count = int.from_bytes(stream.read(_COUNT_BYTES), "little")
        start, length = start + _COUNT_BYTES, count * width_of(storages.dtypes[name])
        if start + length > size:
            raise PickleError(f"the storage {name!r:.50} reaches over the end of the file")
        places.stored[name] = path, start, length
        start += length
    return loaded, places


def _no_storage(_: object) -> object:
    raise PickleError("a storage where none is due")


def check_growth(path: Path, size: int, claimed: int) -> None:
    """Raise FileError for tensors that take far more bytes than their file has."""
    if claimed > max(_GROWTH * size, LEAST):
        raise FileError(f"{path}: its tensors claim {claimed} bytes, and the file has {size}", AGAIN)


def _scratch() -> tuple[BinaryIO, Path]:
    """Make a temporary file without a name; it closes when its path object goes away."""
    stream = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
    path = _Scratch(path_of(stream.fileno()))
    weakref.finalize(path, stream.close)
    return stream, path
