"""The mark of a bake's folder: it says whose the folder is, and lists the moves once they begin."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lorabake.writing.commit import Identity, Move

MARK: Final = "lorabake.json"
"""The file that marks a folder as lorabake's."""

NEW: Final = "new"
"""What becomes the target: a file, or a folder."""

BESIDE: Final = "beside"
"""A folder of files that go beside the target."""

SHARED: Final = "shared"
"""A file among the receipts: it says which output several processes make in this folder."""

RECEIPTS: Final = "receipts"
"""A folder of what is finished, by which a batch goes on where another one was stopped."""

_SAID: Final = "this folder holds a bake that is not finished"

MAX_JOURNAL: Final = 1 << 20
"""Bytes of the mark; a move takes some hundred."""


def text_of(moves: Sequence[Move]) -> bytes:
    """Write down moves."""
    rows = [[move.made.name, move.target.name, move.new, move.old] for move in moves]
    return json.dumps({"lorabake": _SAID, "moves": rows}).encode()


def moves_of(folder: Path, journal: object) -> list[Move]:
    """Return the moves that a journal lists; raise ValueError for what lorabake does not write."""
    if (
        not isinstance(journal, dict)
        or journal.get("lorabake") != _SAID
        or not isinstance(journal.get("moves"), list)
    ):
        raise ValueError("no mark of lorabake's")
    moves = []
    for row in journal["moves"]:
        if not isinstance(row, list) or len(row) != 4:
            raise ValueError("no move")
        made, target = (_plain_name(name) for name in row[:2])
        place = folder / NEW if made == NEW else folder / BESIDE / made
        new = _identity_of(row[2])
        moves.append(Move(place, folder.parent / target, new, None if row[3] is None else _identity_of(row[3])))
    return moves


def _plain_name(name: object) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError("no name of a file")
    os.fsencode(name)  # half a surrogate pair is a ValueError, too
    return name


def _identity_of(pair: object) -> Identity:
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(number) is int for number in pair):
        raise ValueError("no inode and size")
    return pair[0], pair[1]
