"""Read the records of zip archives in place: what torch.save and NumPy's `savez` write.

The directory at an archive's end may say anything, so it is checked first: each record is where it says, inside the
file, and no two overlap.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from lorabake.machine import unreadable
from lorabake.tensors.header import Record

MAGIC: Final = b"PK\x03\x04"
MAX_DIRECTORY: Final = 16 << 20
"""Most bytes of an archive's directory; that is enough for 200,000 records."""

CHUNK: Final = 1 << 20
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _UTF_8 = 1, 1 << 11


class ArchiveError(ValueError):
    """Report an archive that is damaged or contradicts itself."""


@dataclass(frozen=True, slots=True)
class Member:
    """Describe one record: its stored bytes go from `start` to `stop`, and unpack to `size` bytes."""

    name: str
    start: int
    stop: int
    size: int
    crc: int
    is_packed: bool
    entry: zipfile.ZipInfo

    @property
    def record(self) -> Record:
        """Return the checksum of its bytes, if they are not packed."""
        return Record(self.start, self.stop, self.crc)


class Archive:
    """Hold an open archive whose directory has been checked; `members` are its records by name."""

    def __init__(self, stream: BinaryIO, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.members: dict[str, Member] = {}
        for entry in archive.infolist():
            if entry.filename in self.members:
                raise ArchiveError(f"two records called {entry.filename!r:.100}")
            self.members[entry.filename] = _member(stream, entry)
        position = 0
        for member in sorted(self.members.values(), key=lambda member: member.start):
            if member.entry.header_offset < position:
                raise ArchiveError(f"the record {member.name!r:.100} overlaps another")
            position = member.stop
        if position > archive.start_dir:
            raise ArchiveError("a record reaches over the end of the file, or into its directory")

    def pieces(self, member: Member) -> Iterator[bytes]:
        """Yield a record's bytes, unpacked; raise ArchiveError if they do not match their checksum."""
        with _faults(), self._archive.open(member.entry) as record:
            while piece := record.read(CHUNK):
                yield piece

    def read(self, member: Member, limit: int) -> bytes:
        """Return a record's bytes, unpacked; raise ArchiveError if they are damaged, or more than `limit`."""
        if member.size > limit:
            raise ArchiveError(f"the record {member.name!r:.100} takes {member.size} bytes, the limit is {limit}")
        return b"".join(self.pieces(member))


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive; raise ArchiveError if it is damaged, FileError if the system cannot read it."""
    try:
        with _Careful(io.FileIO(path)) as stream:
            with _faults():
                archive = Archive(cast(BinaryIO, stream), zipfile.ZipFile(stream))
            yield archive
    except OSError as error:
        raise unreadable(path, error) from None


class _Careful(io.BufferedReader):
    """Refuse to read more at once than a directory may have; `zipfile` asks for as much as the file says."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        if size is None or size > MAX_DIRECTORY:
            raise ArchiveError(f"a directory of more than {MAX_DIRECTORY} bytes")
        return super().read(size)

    def seek(self, target: int, whence: int = 0, /) -> int:
        """Move to a place in the file; raise ArchiveError for an impossible one."""
        if not -(1 << 62) < target < 1 << 62 or (whence == 0 and target < 0):
            raise ArchiveError("a record outside of the file")
        return super().seek(target, whence)


@contextmanager
def _faults() -> Iterator[None]:
    """Turn all errors of `zipfile` for damaged archives into ArchiveError."""
    try:
        yield
    except ArchiveError:
        raise
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, struct.error, ValueError) as error:
        raise ArchiveError(str(error) or "it ends early") from None


def _member(stream: BinaryIO, entry: zipfile.ZipInfo) -> Member:
    """Check the directory's entry of a record against the record's own header, which gives the start of its bytes."""
    stream.seek(entry.header_offset)
    head = stream.read(_LOCAL.size)
    fields = _LOCAL.unpack(head) if len(head) == _LOCAL.size else (b"",)
    if fields[0] != MAGIC:
        raise ArchiveError(f"the record {entry.filename!r:.100} is not where the directory says")
    _, _, flags, packing, *_, name_length, extra_length = fields
    name = stream.read(name_length).decode("utf-8" if flags & _UTF_8 else "cp437")
    if (name, packing) != (entry.orig_filename, entry.compress_type):
        raise ArchiveError(f"the record {entry.filename!r:.100} and the directory say different things")
    if (entry.flag_bits | flags) & _ENCRYPTED:
        raise ArchiveError(f"the record {entry.filename!r:.100} is encrypted")
    if packing not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"the record {entry.filename!r:.100} is compressed by method {packing}")
    is_packed = packing != zipfile.ZIP_STORED
    if not is_packed and entry.file_size != entry.compress_size:
        raise ArchiveError(f"the record {entry.filename!r:.100} has two sizes")
    start = entry.header_offset + _LOCAL.size + name_length + extra_length
    stop = start + entry.compress_size
    return Member(entry.filename, start, stop, entry.file_size, entry.CRC, is_packed, entry)
