"""List the files of weights that opening a folder would read, by names and indexes alone."""

from __future__ import annotations

from pathlib import Path

from lorabake.tensors.checkpoint import ADAPTERS, chosen_weights, read_object, weight_map
from lorabake.tensors.reader import is_there
from lorabake.tensors.small import MAX_INDEX

INDEX = ".json"


def weights_in(path: Path, variant: str | None = None) -> list[Path]:
    """List what `open_lora` or `open_checkpoint` reads in a folder; files may be empty, but for the indexes."""
    adapter = next((path / name for name in ADAPTERS if is_there(path / name)), None)
    if adapter is not None and is_there(path / "adapter_config.json"):
        return with_shards(adapter)
    return [file for weights in chosen_weights(path, variant).values() for file in with_shards(weights.path)]


def with_shards(path: Path) -> list[Path]:
    """List a file of weights; for an index of shards, the shards, too."""
    if path.suffix != INDEX:
        return [path]
    names = weight_map(path, read_object(path, MAX_INDEX)).values()
    return [path, *(path.parent / name for name in sorted({*names}))]
