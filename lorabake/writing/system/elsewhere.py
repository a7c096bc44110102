"""What stands in for the system calls of writing where no file knows the platform: each of them says so."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from lorabake.errors import SurroundingsError


def refuse(*_: object) -> NoReturn:
    """Raise SurroundingsError; nothing is written then."""
    raise SurroundingsError(
        f"lorabake cannot write checkpoints on this system ({sys.platform})",
        "Linux and macOS can. To plan and to inspect works here, too.",
    )


_refusal: Any = refuse  # whatever is asked

copy_range = exchange = fsync = fsync_folder = is_ours = lock = names_in = open_again = open_folder = _refusal
open_new = remove = rename_new = reserve = share_range = start_writeback = write_all = _refusal
