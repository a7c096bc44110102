"""An output that is one file."""

from __future__ import annotations

from pathlib import Path

from lorabake.errors import TargetError
from lorabake.planning.files import OutputFile


class OneFile:
    """Be the form of a single file with weights, which has the output's own name."""

    rest_size = 0

    def place(self, root: Path, file: OutputFile) -> Path:
        """Return the output's own place."""
        return root

    def check_sort(self, target: Path) -> None:
        """Raise TargetError for a folder."""
        if target.is_dir():
            raise TargetError(f"{target}: is a folder, and the output is to be a file")

    def first_lost(self, root: Path) -> Path | None:
        """Return None: a file that may be replaced loses nothing but itself."""
        return None

    def holds_rest(self, root: Path) -> bool:
        """Return True: there is nothing else."""
        return True

    def has_rest(self, root: Path) -> bool:
        """Return True: there is nothing else."""
        return True

    def prepare(self, root: Path) -> None:
        """Do nothing: the file lies where the output does."""

    def complete(self, root: Path, *, fsync: bool) -> None:
        """Do nothing: there is nothing else."""
