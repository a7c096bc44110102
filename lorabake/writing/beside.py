"""The files of learned embeddings that go beside an output, whatever its form."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence
from pathlib import Path

from lorabake.errors import TargetError
from lorabake.planning.files import Embedding
from lorabake.writing.commit import Identity, Made, identity_of
from lorabake.writing.inputs import Inputs
from lorabake.writing.partial import Partial
from lorabake.writing.system import open_new, write_all
from lorabake.writing.target import other_content

CHUNK = 4 << 20
"""Bytes that are copied at a time."""


class Beside:
    """Write the files of learned embeddings; each is known by its inode from the moment when it is made."""

    def __init__(
        self, embeddings: Sequence[Embedding], partial: Partial, inputs: Inputs, *, overwrite: bool, fsync: bool
    ) -> None:
        self._embeddings, self._partial, self._inputs = embeddings, partial, inputs
        self._overwrite, self._fsync = overwrite, fsync
        self.made: list[Made] = []

    @property
    def size(self) -> int:
        """Count the bytes of all files."""
        return sum(embedding.size for embedding in self._embeddings)

    def create(self) -> None:
        """Write the files, complete, where their bake makes everything."""
        for embedding in self._embeddings:
            place = self._partial.beside(embedding.path)
            self.made.append(Made(place, embedding.path, self._written(embedding, place)))

    def _written(self, embedding: Embedding, place: Path) -> Identity:
        fd = open_new(place)
        try:
            header = embedding.header()
            write_all(fd, memoryview(header), 0)
            position = len(header)
            for info in (vectors.info for vectors in embedding.vectors):
                for start in range(info.start, info.stop, CHUNK):
                    piece = memoryview(bytearray(min(CHUNK, info.stop - start)))
                    self._inputs.read(info.file, start, piece)
                    write_all(fd, piece, position)
                    position += len(piece)
            if self._fsync:
                os.fsync(fd)
            return identity_of(os.fstat(fd))
        finally:
            os.close(fd)

    def check(self) -> None:
        """Refuse to replace a file that has an embedding's name, unless it holds the same, or may be replaced."""
        for embedding in self._embeddings:
            target = embedding.path
            if target.is_dir():
                raise TargetError(f"{target}: is a folder, and a learned embedding is to be written there")
            if os.path.lexists(target) and not self._overwrite and not self._is_there(target):
                raise other_content(target)

    def _is_there(self, target: Path) -> bool:
        """Tell whether a file beside the output has the bytes that it is to have."""
        return target.is_file() and filecmp.cmp(self._partial.beside(target), target, shallow=False)
