"""The form of an output: what a file, a folder and whatever comes later each do in their own way."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lorabake.planning.files import OutputFile


class Form(Protocol):
    """Say how the files of an output lie at its one name, and what else is there.

    Everything that an output lives through is in `output.Output`, once for all forms: the folder beside the target,
    ranges, hashes, headers, learned embeddings beside it, names that change places. It asks the form, in this order:

    1. What lies at the name? `has_rest`, `check_sort`, `first_lost`, and without --overwrite `holds_rest`.
    2. Where is room needed, and for what? `rest_size`, `prepare`, `place`.
    3. All weights are written: `complete` writes the rest.
    4. The output has its name, and what was there before is at `root`: `first_lost`, once more.

    A new form is one more class with these methods. It gets the plan when it is made, and holds nothing that changes.
    `root` is where the output is: where it is made, or its name. The files with weights have to lie below one root,
    which the system can rename in one step.
    """

    @property
    def rest_size(self) -> int:
        """Count the bytes of what there is beside the files with weights."""

    def place(self, root: Path, file: OutputFile) -> Path:
        """Return where a file with weights lies."""

    def check_sort(self, target: Path) -> None:
        """Raise TargetError if what is at the output's name is of another sort, as a folder in a file's place."""

    def first_lost(self, root: Path) -> Path | None:
        """Return what would be lost, or the first of it, if what is at `root` made way for this output."""

    def holds_rest(self, root: Path) -> bool:
        """Tell whether what this bake puts beside the weights is at `root` already, and nothing else."""

    def has_rest(self, root: Path) -> bool:
        """Tell whether what this bake puts beside the weights is at `root` already; there may be more."""

    def prepare(self, root: Path) -> None:
        """Make the folders that the files with weights lie in."""

    def complete(self, root: Path, *, fsync: bool) -> None:
        """Write what there is beside the files with weights; with `fsync` wait until the disk has all of it."""
