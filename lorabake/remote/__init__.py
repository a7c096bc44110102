"""Addresses of inputs that lie elsewhere. Looking one up on this machine never uses the network.

`schemes` has one file a scheme, found by itself. It has `BEGINS`, which fits no path and no other scheme's address,
and `read`, which turns a text into an `Address`, or raises ValueError with what to write instead.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache
from typing import Protocol, cast

from lorabake.remote import schemes
from lorabake.remote.address import Address, Fetched, Progress, Wanted

__all__ = ["Address", "Fetched", "Progress", "Wanted", "address_of", "fault_of", "known_schemes"]


class Scheme(Protocol):
    """Describe what the file of a scheme has."""

    BEGINS: re.Pattern[str]

    def read(self, text: str) -> Address:
        """Read an address; raise ValueError with what to write instead."""


@cache
def known_schemes() -> tuple[Scheme, ...]:
    """List every scheme, by file name; no two begin alike, so the order carries no meaning."""
    names = sorted(info.name for info in pkgutil.iter_modules(schemes.__path__))
    return tuple(cast(Scheme, importlib.import_module(f"{schemes.__name__}.{name}")) for name in names)


def address_of(text: str) -> Address | None:
    """Read a text as an address; None for a path and for what `fault_of` refuses."""
    try:
        return _read(text)
    except ValueError:
        return None


def fault_of(text: str) -> str | None:
    """Say what is wrong with an address; None for a good one and for what is none."""
    try:
        _read(text)
    except ValueError as error:
        return str(error)
    return None


@cache
def _read(text: str) -> Address | None:
    scheme = next((scheme for scheme in known_schemes() if scheme.BEGINS.match(text)), None)
    return scheme.read(text) if scheme is not None else None
