"""Check that machines of a cluster see the same files: a marker beside each output, and the inputs.

The driver plants markers, each machine looks at what is planted, and the driver compares.
"""

from __future__ import annotations

import platform
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lorabake.errors import SurroundingsError
from lorabake.machine import unwritable, versions

MARKER = ".lorabake-shared-"
"""How the names of markers begin."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Tell what a machine sees: its packages' versions, the texts of markers, and the sizes of files, or None."""

    host: str
    versions: dict[str, str]
    markers: tuple[str | None, ...]
    sizes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Places:
    """Name the folders that outputs go to, and the files that they are made from."""

    folders: tuple[Path, ...]
    files: tuple[Path, ...]

    @contextmanager
    def marked(self) -> Iterator[Markers]:
        """Plant a marker in each folder, made where it is missing, inside the context."""
        token = secrets.token_hex(8)
        planted: list[Path] = []
        try:
            for folder in self.folders:
                path = folder / f"{MARKER}{token}"
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    path.write_text(token, encoding="ascii")
                except OSError as error:
                    raise unwritable(folder, error) from None
                planted.append(path)
            yield Markers(tuple(planted), self.files, token)
        finally:
            for path in planted:
                with suppress(OSError):
                    path.unlink()


@dataclass(frozen=True, slots=True)
class Markers:
    """Hold planted markers with their text, and the input files that have to be seen, too."""

    planted: tuple[Path, ...]
    files: tuple[Path, ...]
    token: str

    def look(self) -> Sight:
        """Look at the markers and files from this machine."""
        return Sight(platform.node(), versions(), tuple(map(_text, self.planted)), tuple(map(_size, self.files)))

    def check(self, node: str, sight: Sight) -> None:
        """Raise SurroundingsError where a machine sees something else than this one; `node` names it."""
        own = self.look()
        for path, text in zip(self.planted, sight.markers, strict=True):
            if text != self.token:
                raise SurroundingsError(
                    f"node {node}: does not see {path.parent} as this machine does",
                    "Every machine of the cluster has to reach the outputs by the same paths. "
                    "Mount the same storage there, or choose another folder.",
                )
        for file, here, there in zip(self.files, own.sizes, sight.sizes, strict=True):
            if here != there:
                what = "does not have it" if there is None else f"has one of {there:,} bytes, not {here:,}"
                raise SurroundingsError(
                    f"{file}: node {node} {what}",
                    "Every machine of the cluster has to reach the inputs by the same paths. "
                    "Mount the same storage there, or copy the file.",
                )
        if others := _differences(own.versions, sight.versions):
            raise SurroundingsError(
                f"node {node}: has other versions than this machine: {', '.join(others)}",
                "The bytes may differ between versions. Install the same everywhere.",
            )


def _differences(own: dict[str, str], others: dict[str, str]) -> Sequence[str]:
    names = dict.fromkeys([*own, *others])
    return [
        f"{name} {others.get(name, 'missing')}, not {own.get(name, 'missing')}"
        for name in names
        if own.get(name) != others.get(name)
    ]


def _text(path: Path) -> str | None:
    try:
        with path.open(encoding="ascii") as file:
            return file.read(64)
    except (OSError, ValueError):
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
