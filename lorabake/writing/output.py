"""Hold one output from the first check of its name to its place there: bytes at planned offsets, fsync, a rename.

Everything is made in a folder beside the target (`writing.partial`). Whatever stops a bake, the target is what it
was. Learned embeddings, files of their own, get their names with it, or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lorabake.errors import SurroundingsError
from lorabake.interrupts import held
from lorabake.machine import unwritable
from lorabake.planning import Plan
from lorabake.planning.checks import check_is_no_input
from lorabake.visible import size_of
from lorabake.writing.beside import Beside
from lorabake.writing.commit import Made, Move, commit, identity
from lorabake.writing.folder import Folder
from lorabake.writing.form import Form
from lorabake.writing.inputs import Inputs
from lorabake.writing.linking import room_of
from lorabake.writing.onefile import OneFile
from lorabake.writing.partial import Partial
from lorabake.writing.system import fsync_folder
from lorabake.writing.target import check_nothing_lost, check_same_data, check_target
from lorabake.writing.weights import Weights, meddled


def form_of(plan: Plan) -> Form:
    """Return the form that a plan's output has."""
    return Folder(plan) if plan.is_folder else OneFile()


Keep = Callable[["Output"], bool]
"""Tells whether what a stopped batch left of an output is of use."""


class Output:
    """Make what a plan says beside its target, and give it the target's name at the end.

    Entering the context checks that the output may replace what has its name, and makes its files. `weights` takes
    their bytes. `complete` fills in what is known only at the end, and returns what can be committed. Leaving the
    context removes whatever is left; `left` tells what the system said if it could not, and `copied_links` why files
    that were to be links are copies. Several outputs can be
    written at once, each in a folder of its own. With `keep`, what a stopped batch left may stay.
    A `shared` folder is there already, and other processes write into it, too.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Inputs,
        *,
        overwrite: bool,
        fsync: bool,
        form: Form | None = None,
        keep: Keep | None = None,
        shared: bool = False,
    ) -> None:
        self.plan, self.path, self.form = plan, plan.path, form or form_of(plan)
        self.partial = Partial(plan.path, shared=shared)
        self.weights = Weights(
            self.partial.path,
            plan.files,
            self.paths(self.partial.new),
            inputs,
            hashed=plan.sources.recipe.output.hash,
            fsync=fsync,
        )
        self.beside = Beside(plan.embeddings, self.partial, inputs, overwrite=overwrite, fsync=fsync)
        self.fsync = fsync
        self.left: OSError | None = None
        self.copied_links: list[OSError] = []
        self._overwrite, self._keep = overwrite, keep
        self._kept: frozenset[int] = frozenset()

    def paths(self, root: Path) -> list[Path]:
        """List where the files with weights lie in an output that is at `root`."""
        return [self.form.place(root, file) for file in self.plan.files]

    def __enter__(self) -> Self:
        try:
            check_is_no_input(self.plan.sources, self.partial.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with held():
                self.partial.open(self._take_over if self._keep is not None else None)
            check_target(self.plan, self.form, overwrite=self._overwrite)
            self._check_room()
            self.form.prepare(self.partial.new)
            self.weights.create(self._kept)
            self.beside.create()
            self.beside.check()
            return self
        except OSError as error:
            self.clean(keep=self._keep is not None)
            raise unwritable(self.partial.path, error) from None
        except BaseException:
            self.clean(keep=self._keep is not None)
            raise

    def __exit__(self, *_: object) -> None:
        try:
            with held():
                self.clean()
        except BaseException:  # a signal before it was held
            self.clean()
            raise

    def _take_over(self) -> bool:
        """Ask whether what a stopped batch left is of use; if so, remove all but its files with weights."""
        if self._keep is None or not self._keep(self):
            return False
        self._kept = self.weights.whole()
        planned = {*self.paths(self.partial.new)}
        for path in [*self.partial.new.rglob("*")] if self.plan.is_folder else []:
            if path not in planned and (path.is_symlink() or not path.is_dir()):
                path.unlink()
        return True

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.path.parent).free
        needed = room_of(self.plan) + self.beside.size + self.form.rest_size
        needed -= sum(
            os.stat(path).st_size for number, path in enumerate(self.paths(self.partial.new)) if number in self._kept
        )
        if free < needed:
            short = f"{size_of(free)} free, and the bake needs {size_of(needed)}"
            raise SurroundingsError(f"{self.path.parent}: {short}", "Make room, or choose another folder.")

    def complete(self, hashes: Sequence[str], digests: Mapping[str, str], device: str) -> Complete:
        """Fill in the digests and what computed, and make everything durable: names are all that is left to give."""
        with self.wording():
            self.weights.fill_in(hashes, digests, device)
            self.copied_links = self.weights.link()
            if not self._overwrite and os.path.lexists(self.path):
                check_same_data(self.plan, self.form, self.partial.new, digests, device)
            self.beside.check()
            self.form.complete(self.partial.new, fsync=self.fsync)
            if (output := identity(self.partial.new)) is None:
                raise meddled(self.partial.new)
            self.partial.check()
            self.weights.close()
            self.weights.check_at(self.paths(self.partial.new))
            return Complete(self, (*self.beside.made, Made(self.partial.new, self.path, output)))

    @contextmanager
    def wording(self) -> Iterator[None]:
        """Word a failure in the partial folder, which another program may have moved."""
        try:
            yield
        except OSError as error:
            self.partial.check()
            place = error.filename2 or error.filename  # of a rename, the target
            path = Path(os.fsdecode(place)) if isinstance(place, str | bytes) else self.partial.path
            raise unwritable(path, error) from None

    def clean(self, *, keep: bool = False) -> None:
        """Remove what is left beside the target, unless the next bake needs it; with `keep`, not what is finished."""
        with suppress(OSError):
            self.weights.close()
        try:
            self.partial.clean(keep=keep)
        except OSError as error:
            self.left = error


@dataclass(frozen=True, slots=True)
class Complete:
    """Hold an output of which everything is made and durable, and only the names are left to give."""

    output: Output
    made: tuple[Made, ...]

    def commit(self) -> None:
        """Give what is made its names: all of it, or nothing. After that the bake is done, whatever happens.

        Raise TargetError if another program has changed a target meanwhile, or put something there that would get
        lost.
        """
        output = self.output
        moves = [made.move() for made in self.made]
        with output.wording(), output.partial.moving(moves, durable=output.fsync):
            commit(moves, lambda: self._check_moved(moves[-1]))
        if output.fsync:
            with suppress(OSError):
                fsync_folder(output.path.parent)

    def _check_moved(self, move: Move) -> None:
        """Refuse weights that another program changed, and to lose what came into the target folder meanwhile."""
        self.output.weights.check_at(self.output.paths(move.target))
        if move.old is not None:
            check_nothing_lost(move.target, self.output.form, move.made)
