"""Let libFuzzer look for files that a reader cannot take: it keeps what reaches new code, and changes that.

    python -m tests.torture.fuzz pickles FOLDER -max_total_time=60

FOLDER holds right files to begin with. What is neither read nor refused by a LorabakeError ends the process with its
traceback. It takes the package atheris.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lorabake", "pickletools", "json.decoder"]):
    from lorabake.errors import LorabakeError
    from lorabake.recipe import load_recipe
    from lorabake.tensors.checkpoint import open_checkpoint
    from lorabake.tensors.npz import open_npz

SUFFIXES = {"SafeTensors": ".safetensors", "NumPy": ".npz", "GGUF": ".gguf", "pickles": ".pt", "recipes": ".yaml"}
"""What is fuzzed, and how its files are called."""


def main() -> None:
    """Fuzz one reader."""
    name, *arguments = sys.argv[1:]
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None)) / f"x{SUFFIXES[name]}"

    def attempt(content: bytes) -> None:
        place.write_bytes(content)
        try:
            if name == "recipes":
                load_recipe(place)
            else:
                for info in (open_npz if name == "NumPy" else open_checkpoint)(place).tensors.values():
                    assert 0 <= info.start <= info.stop <= info.file.stat().st_size, info
        except LorabakeError:
            pass

    atheris.Setup([sys.argv[0], *arguments], attempt)
    try:
        atheris.Fuzz()
    finally:
        place.unlink(missing_ok=True)
        os.rmdir(place.parent)


if __name__ == "__main__":
    main()
