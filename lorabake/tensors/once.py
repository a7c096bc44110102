"""Do once what many recipes ask of the same files, while all of them are planned."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar, cast

from lorabake.tensors.header import Fingerprint
from lorabake.tensors.small import note, noting

Made = TypeVar("Made")

_KEPT: ContextVar[dict[Hashable, tuple[object, Mapping[Path, Fingerprint]]] | None] = ContextVar("kept", default=None)


@contextmanager
def shared() -> Iterator[None]:
    """Keep what `once` makes inside the `with` block; a block in another one keeps with it."""
    if _KEPT.get() is not None:
        yield
        return
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def once(make: Callable[[], Made], *key: Hashable) -> Made:
    """Return what `make` makes; inside `shared()`, what it made for the same key, and note the small files it read.

    The key has to say all that the result depends on, but for the files, whose fingerprints are compared before they
    are baked. What `make` raises is not kept.
    """
    kept = _KEPT.get()
    if kept is None:
        return make()
    if key not in kept:
        with noting() as read:
            made = make()
        kept[key] = made, read
    result, notes = kept[key]
    note(notes)
    return cast(Made, result)
