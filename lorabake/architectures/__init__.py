"""One file a model family: table literals only. A new file here is found by itself.

For most families, `released/` lists the modules of released models; `tests/released.py` writes it from headers.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from lorabake.keymap.table import Architecture


@cache
def architectures() -> tuple[Architecture, ...]:
    """List every family that has a table, by file name; the order carries no meaning."""
    families: list[Architecture] = []
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        families.extend(value for value in vars(module).values() if isinstance(value, Architecture))
    return tuple(families)


def released() -> dict[str, list[str]]:
    """Read the lists of modules of released models: family -> lines."""
    files = sorted(Path(__file__).with_name("released").glob("*.txt"))
    return {path.stem: path.read_text(encoding="utf-8").splitlines() for path in files}
