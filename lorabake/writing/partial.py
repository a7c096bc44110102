"""Manage the folder NAME.partial beside a target: a bake makes everything in it, and removes it at the end.

The folder has a mark of lorabake's, and is locked while its bake runs. A killed bake leaves it behind, and the next
bake onto the same target takes it over. That bake removes the contents. But if the killed one had begun to move files
to their names, it completes that first. A folder without the mark is never touched. A batch leaves receipts in it of
what is finished, and the next batch may keep that. Several processes can share a folder (`writing.sharing`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lorabake.errors import FileError, TargetError
from lorabake.tensors.small import parse_json, read_small
from lorabake.writing.commit import Move, complete, identity
from lorabake.writing.journal import BESIDE, MARK, MAX_JOURNAL, NEW, RECEIPTS, SHARED, moves_of, text_of
from lorabake.writing.names import remove_known
from lorabake.writing.system import (
    fsync,
    fsync_folder,
    is_ours,
    lock,
    names_in,
    open_again,
    open_folder,
    open_new,
    write_all,
)

_MARK_NEW: Final = MARK + ".new"
_RECEIPTS_OLD: Final = RECEIPTS + ".old"
_OURS: Final = {MARK, _MARK_NEW, NEW, NEW + ".old", BESIDE, RECEIPTS, _RECEIPTS_OLD}


def partial_of(target: Path) -> Path:
    """Return the path of the folder in which a target is made."""
    return target.with_name(target.name + ".partial")


class Partial:
    """Hold the folder in which a target is made, from `open` to `clean`: alone, or shared with other processes."""

    def __init__(self, target: Path, *, shared: bool = False) -> None:
        self.path, self._is_shared = partial_of(target), shared
        self.new, self.receipts = self.path / NEW, self.path / RECEIPTS
        self.fd = self._fd_shared = -1
        self._may_go = False  # False while the next bake may need the folder's contents

    def beside(self, target: Path) -> Path:
        """Return the path where a file for beside the target is made."""
        return self.path / BESIDE / target.name

    def open(self, keep: Callable[[], bool] | None = None) -> None:
        """Make the folder, or take over one that a killed bake left; `keep` tells whether its contents are of use.

        Raise TargetError if another bake has it or if it is not lorabake's; OSError if the system refuses.
        """
        self.hold()
        found = names_in(self.fd)
        try:
            self._take_over(found, keep)
            (self.path / BESIDE).mkdir()
        except BaseException:
            if not found:
                with suppress(OSError):
                    self.remove()
            self.leave()
            raise
        self._may_go = True

    def hold(self) -> None:
        """Lock the folder; make it if need be, unless it is shared.

        Raise TargetError if another bake has it; FileNotFoundError where a shared folder has gone.
        """
        if self._is_shared:
            self.fd, self._fd_shared = _joined(self.path)
        else:
            self.fd = _locked(self.path)

    @classmethod
    def complete_killed(cls, target: Path, made: Callable[[Path], None], *, shared: bool = False) -> None:
        """Complete what a killed bake had begun to move to its names, if it had begun; else leave all as it is.

        `made` is told the folder with the receipts, before that goes.
        """
        partial = cls(target, shared=shared)
        if not os.path.lexists(partial.path):
            return
        partial.hold()
        try:
            if moves := partial.moves_begun(names_in(partial.fd)):
                complete(moves)
                fsync_folder(target.parent)
                made(partial.receipts)
                partial.remove()
        finally:
            partial.leave()

    @property
    def is_moving(self) -> bool:
        """Tell whether a bake has begun to move what is in the folder, which is held, to its names."""
        return bool(self.moves_begun(names_in(self.fd)))

    def moves_begun(self, found: set[str]) -> list[Move]:
        """Return the moves in which a bake was killed, if it was; raise TargetError for a stranger's folder."""
        moves = self._moves_left(found)
        return moves if any(move.has_begun for move in moves) else []

    def _take_over(self, found: set[str], keep: Callable[[], bool] | None) -> None:
        if found:
            moves = self.moves_begun(found)
            if strangers := sorted(found - _OURS):
                raise TargetError(
                    f"{self.path}: holds {strangers[0]}, which no bake has put there",
                    "A bake makes its output in this folder. Move it, or choose another output.",
                )
            if moves:
                complete(moves)
                fsync_folder(self.path.parent)
                keep = None
            kept = {NEW, RECEIPTS} if keep is not None and found >= {NEW, RECEIPTS} and keep() else set()
            self._empty(kept | {RECEIPTS} if self._is_shared else kept)
            self._write(_MARK_NEW, [])
            os.rename(self.path / _MARK_NEW, self.path / MARK)
        else:
            self._write(MARK, [])

    def _moves_left(self, found: set[str]) -> list[Move]:
        """Return the moves that a killed bake recorded; raise TargetError if its mark is missing or wrong."""
        place = self.path / MARK
        if MARK not in found or not is_ours(self.fd):
            raise _stranger(self.path)
        status = os.lstat(place)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise _stranger(self.path)
        if status.st_size == 0 and found == {MARK}:  # the bake was killed after making the mark, before writing it
            return []
        try:
            return moves_of(self.path, parse_json(read_small(place, MAX_JOURNAL)))
        except (ValueError, FileError):
            raise _stranger(self.path) from None

    def _write(self, name: str, moves: Sequence[Move]) -> None:
        """Write the mark into a new file, because an existing one might be a link to something else."""
        (self.path / name).unlink(missing_ok=True)
        fd = open_new(self.path / name)
        try:
            write_all(fd, memoryview(text_of(moves)), 0)
        finally:
            os.close(fd)

    def _empty(self, kept: Collection[str] = ()) -> None:
        """Remove everything except what is kept and the mark, which identifies the folder to the end."""
        for name in _OURS - {MARK, *kept}:
            remove_known(self.path / name)

    def check(self) -> None:
        """Raise TargetError unless the name still belongs to this folder."""
        if identity(self.path) != identity(self.fd):
            raise TargetError(f"{self.path}: another program has moved or removed it; nothing was replaced")

    @contextmanager
    def moving(self, moves: Sequence[Move], *, durable: bool) -> Iterator[None]:
        """Record moves, so that the next bake can complete them; the caller makes them inside the context.

        Meanwhile the old targets are in the folder. They stay there if an error leaves the moves incomplete.
        """
        self.check()
        self._note(moves, durable=durable)
        self._may_go = False
        try:
            yield
        except BaseException:
            self._may_go = not any(move.has_begun for move in moves)
            raise
        self._may_go = True

    def _note(self, moves: Sequence[Move], *, durable: bool) -> None:
        place = self.path / _MARK_NEW
        self._write(_MARK_NEW, moves)
        if durable:
            fsync(place)
        os.rename(place, self.path / MARK)
        if durable:
            for folder in (self.path, self.path / BESIDE):
                fsync_folder(folder)

    @property
    def has_receipts(self) -> bool:
        """Tell whether anything in the folder is known to be finished."""
        return next(self.receipts.glob("*.json"), None) is not None

    def clean(self, *, keep: bool = False) -> None:
        """Remove the folder and all in it, unless the next bake needs it; raise OSError where the system refuses.

        With `keep`, it stays if there are receipts in it.
        """
        try:
            if self._may_go and not (keep and self.has_receipts):
                self.remove()
        finally:
            self.leave()

    def remove(self) -> None:
        """Remove the folder, if its name still is its own; raise OSError where the system refuses."""
        if identity(self.path) == identity(self.fd):
            if self._is_shared:  # all at once, so that nobody lays a claim to what goes
                with suppress(OSError):
                    os.rename(self.receipts, self.path / _RECEIPTS_OLD)
            self._empty()
            with suppress(FileNotFoundError):
                (self.path / MARK).unlink()
            self.path.rmdir()

    def leave(self) -> None:
        """Unlock the folder, and leave it as it is."""
        self._may_go = False
        for fd in (self.fd, self._fd_shared):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
        self.fd = self._fd_shared = -1


def _stranger(path: Path) -> TargetError:
    what = "is a symbolic link" if path.is_symlink() else "is there"
    return TargetError(
        f"{path}: {what}, and no bake has made it",
        "A bake makes its output in a folder of this name. Move it, or choose another output.",
    )


def _locked(path: Path) -> int:
    """Make the folder if need be, and lock it."""
    while True:
        is_new = False
        with suppress(FileExistsError):
            path.mkdir()
            is_new = True
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise _stranger(path)
            fd = open_folder(path)
        except FileNotFoundError:  # the other bake has ended
            continue
        except BaseException:
            _remove_new(path, is_new=is_new)
            raise
        try:
            if not lock(fd) and not is_new:
                raise TargetError(
                    f"{path}: is there, and this file system has no locks: another bake may be writing this target",
                    "If none is, remove the folder.",
                )
            if identity(path) == identity(fd):
                _check_unshared(path)
                return fd
        except BlockingIOError:
            os.close(fd)
            raise _busy(path) from None
        except BaseException:
            os.close(fd)
            _remove_new(path, is_new=is_new)
            raise
        os.close(fd)  # the other bake ended between open and lock, so the name means another folder now


def _check_unshared(path: Path) -> None:
    """Raise BlockingIOError if processes share a folder; those of another machine may have locked this file alone."""
    with suppress(FileNotFoundError):
        fd = open_again(path / RECEIPTS / SHARED)
        try:
            lock(fd)
        finally:
            os.close(fd)


def _joined(path: Path) -> tuple[int, int]:
    """Open a folder that processes share, and the file that says so, and lock both against who wants it alone.

    Network file systems lock files from machine to machine, but folders on one machine only. Where there are no locks
    at all, nobody who wants a folder alone takes one that is there.
    """
    fds = [open_folder(path)]
    try:
        fds.append(open_again(path / RECEIPTS / SHARED))
        for fd in fds:
            lock(fd, shared=True)
        if identity(path) != identity(fds[0]):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, BlockingIOError):
            raise _busy(path) from None
        raise
    return fds[0], fds[1]


def _busy(path: Path) -> TargetError:
    return TargetError(f"{path}: another bake is writing this target; wait for it, or choose another")


def _remove_new(path: Path, *, is_new: bool) -> None:
    if is_new:
        with suppress(OSError):
            path.rmdir()
