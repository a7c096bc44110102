"""Key tables of real checkpoints and LoRAs: name -> dtype and shape; see headers/README.md."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

from lorabake.tensors.dtypes import nbytes
from lorabake.tensors.header import TensorInfo

FILE = Path(__file__).parent / "headers" / "tables.json.gz"


@cache
def _tables() -> dict[str, dict[str, dict[str, object]]]:
    loaded: dict[str, dict[str, dict[str, object]]] = json.loads(gzip.decompress(FILE.read_bytes()))
    return loaded


def names(kind: str) -> list[str]:
    """List the tables of a kind: checkpoint or lora."""
    return [name for name, table in _tables().items() if table["kind"] == kind]


def load_metadata(name: str) -> dict[str, str]:
    """Return what the file's `__metadata__` said."""
    return dict(_tables()[name].get("metadata", {}))  # type: ignore[arg-type]


def load_table(name: str) -> dict[str, TensorInfo]:
    """Return a table's tensors, laid out one after the other in a file that does not exist."""
    return infos(_tables()[name]["tensors"], name)  # type: ignore[arg-type]


def infos(shapes: dict[str, object], name: str = "table") -> dict[str, TensorInfo]:
    """Make headers of shapes, or of [dtype, shape] pairs: key -> (8, 4), or key -> ["F16", [8, 4]]."""
    found = {}
    path = Path(f"{name}.safetensors")
    start = 0
    for key, entry in shapes.items():
        dtype, shape = entry if entry and isinstance(entry[0], str) else ("F32", entry)  # type: ignore[index,misc]
        size = nbytes(dtype, shape)
        found[key] = TensorInfo(key, key, dtype, tuple(shape), path, start, start + size)
        start += size
    return found
