"""The moves that give finished files and folders their names: all of them happen, or none.

A move never loses what had the name before: the two change places, and the old one goes when every move is made. What
is moved, and what makes way for it, are known by inode and size, so that nothing of another program's is moved or
removed because it bears a name that a bake uses.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from lorabake.errors import TargetError
from lorabake.writing.system import exchange, rename_new

Identity = tuple[int, int]
"""An inode and the bytes of a file; a folder has 0 bytes."""


def identity(path: Path | int) -> Identity | None:
    """Return what is at a path (a link itself, not what it names) or behind a descriptor; None where nothing is."""
    try:
        return identity_of(os.fstat(path) if isinstance(path, int) else os.lstat(path))
    except FileNotFoundError:
        return None


def identity_of(status: os.stat_result) -> Identity:
    """Return the identity that a status gives."""
    return status.st_ino, 0 if stat.S_ISDIR(status.st_mode) else status.st_size


@dataclass(frozen=True, slots=True)
class Made:
    """Say what a bake has made at a place, and which name it is to get."""

    place: Path
    target: Path
    identity: Identity

    def move(self) -> Move:
        """Return the move that gives it the name, in the place of what has the name now."""
        return Move(self.place, self.target, self.identity, identity(self.target))


@dataclass(frozen=True, slots=True)
class Move:
    """Say that `made` gets the name `target`; `new` and `old` are what is at the two names before (None: nothing)."""

    made: Path
    target: Path
    new: Identity
    old: Identity | None

    @property
    def aside(self) -> Path:
        """Name the place of the old one, where two names cannot change places in one step."""
        return self.made.with_name(self.made.name + ".old")

    @property
    def is_made(self) -> bool:
        """Tell whether the target is the new one."""
        return identity(self.target) == self.new

    @property
    def has_begun(self) -> bool:
        """Tell whether the target is no longer the old one."""
        return self.is_made or (self.old is not None and identity(self.aside) == self.old)

    def do(self) -> None:
        """Give `made` the target's name; if that fails, all is as it was.

        Raise TargetError if another program has put something else at either name.
        """
        if identity(self.made) != self.new:
            raise TargetError(f"{self.made}: another program has changed or removed it; nothing was replaced")
        if self.old is None:
            try:
                rename_new(self.made, self.target)
            except FileExistsError:
                raise self._changed() from None
        elif identity(self.target) != self.old:
            raise self._changed()
        elif not exchange(self.made, self.target):
            self._replace()
        elif identity(self.made) != self.old:  # between the look and the exchange
            exchange(self.made, self.target)
            raise self._changed()
        if not self.is_made:
            raise self._changed()

    def _changed(self) -> TargetError:
        return TargetError(f"{self.target}: another program has put something else there; run the bake again")

    def _replace(self) -> None:
        """Replace the old one where names cannot change places: a file in one step, if it can have two names."""
        try:
            if stat.S_ISDIR(os.lstat(self.target).st_mode):
                raise IsADirectoryError
            os.link(self.target, self.aside, follow_symlinks=False)
        except OSError:
            os.rename(self.target, self.aside)
        try:
            os.replace(self.made, self.target)
        except BaseException:
            os.rename(self.aside, self.target)
            with suppress(FileNotFoundError):  # two names of one file: the rename has done nothing
                self.aside.unlink()
            raise

    def take_back(self) -> None:
        """Undo the move, unless another program has replaced what was moved."""
        if not self.is_made:
            return
        if self.old is None:
            rename_new(self.target, self.made)
        elif identity(self.made) == self.old:
            exchange(self.made, self.target)
        else:
            os.rename(self.target, self.made)
            os.rename(self.aside, self.target)


def commit(moves: Iterable[Move], check: Callable[[], None]) -> None:
    """Make all moves, then `check`; if any of that fails, take back what was moved."""
    with ExitStack() as undo:
        for move in moves:
            move.do()
            undo.callback(move.take_back)
        check()
        undo.pop_all()


def complete(moves: Iterable[Move]) -> None:
    """Make what moves are left of those that a killed bake had begun.

    Raise TargetError where another program has changed what they are about.
    """
    for move in moves:
        if move.is_made:
            continue
        if identity(move.made) != move.new:
            raise TargetError(
                f"{move.made}: a bake was killed while it gave this file its name {move.target}, and another program "
                "has changed or removed it since",
                "Remove its folder by hand, and bake again.",
            )
        if move.old is not None and identity(move.target) is None and identity(move.aside) == move.old:
            rename_new(move.made, move.target)
            continue
        with suppress(FileNotFoundError):  # a second name of the old one
            move.aside.unlink()
        move.do()
