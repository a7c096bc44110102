"""One file a library that names transformers' language models its own way. A new file here is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from lorabake.keymap.dialect import Dialect


@cache
def dialects() -> tuple[Dialect, ...]:
    """List every dialect, by file name; the order carries no meaning, since no key is of two."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return tuple(value for module in modules for value in vars(module).values() if isinstance(value, Dialect))
