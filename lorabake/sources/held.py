"""Ask a base's header which of a recipe's LoRAs it holds already: they would be added once more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from lorabake.recipe.models import Recipe
from lorabake.sources.loras import LoraSource
from lorabake.storage.fields import INPUTS, RECIPE
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.reader import sha256_of
from lorabake.tensors.small import json_or_text

MERGED_FROM = "modelspec.merged_from"
"""What programs write who follow ModelSpec: the names of models and LoRAs, with commas between them."""

SHORTEST = 4
"""Fewest letters of a name that is looked for in such a text."""


def held_by(base: Checkpoint, loras: Sequence[LoraSource], recipe: Recipe) -> dict[int, str]:
    """Say of LoRAs that the base holds, by their numbers, how that is known.

    Files of equal size are hashed; other files are known by their names.
    """
    stated = [*_stated(base.metadata)]
    merged = base.metadata.get(MERGED_FROM, "")
    held = {}
    for number, lora in enumerate(loras):
        name = PurePosixPath(recipe.loras[number].portable_path).name
        if (words := _held(lora, name, stated)) or (words := _merged(name, merged)):
            held[number] = words
    return held


def _stated(metadata: Mapping[str, str]) -> Iterator[tuple[Mapping[str, object], str]]:
    """Yield what a header that lorabake wrote states of each LoRA, and the LoRA's strength there in words."""
    inputs, recipe = (json_or_text(metadata.get(key, "{}")) for key in (INPUTS, RECIPE))
    loras = inputs.get("loras") if isinstance(inputs, dict) else None
    entries = recipe.get("loras") if isinstance(recipe, dict) else None
    for number, said in enumerate(loras if isinstance(loras, list) else ()):
        entry = entries[number] if isinstance(entries, list) and number < len(entries) else None
        strength = entry.get("strength") if isinstance(entry, dict) else None
        words = f" at strength {strength:g}" if isinstance(strength, (int, float)) else ""
        if isinstance(said, dict):
            yield said, words


def _held(lora: LoraSource, name: str, stated: Sequence[tuple[Mapping[str, object], str]]) -> str:
    for said, strength in stated:
        if _is_file(lora.checkpoint, said):
            return f"the base was baked with this file already{strength}"
    for said, strength in stated:
        path = said.get("path", said.get("name"))
        if isinstance(path, str) and PurePosixPath(path).name == name:
            return f"the base was baked with a LoRA of this name already{strength}"
    return ""


def _is_file(checkpoint: Checkpoint, said: Mapping[str, object]) -> bool:
    """Tell whether a LoRA is what a header states: sizes first, digests where those agree."""
    listed = said.get("files", [said])
    files = [each for each in listed if isinstance(each, dict) and "size" in each] if isinstance(listed, list) else []
    headers = [*checkpoint.headers]
    if not files or [each["size"] for each in files] != [header.size for header in headers]:
        return False
    try:
        return all(sha256_of(header.path) == each.get("sha256") for header, each in zip(headers, files, strict=True))
    except OSError:
        return False


def _merged(name: str, merged: str) -> str:
    """Look for a LoRA's name, with or without its ending, among the names of a text."""
    stem = PurePosixPath(name).stem
    if len(stem) >= SHORTEST and re.search(rf"(?<![\w.-]){re.escape(stem)}(?![\w-])", merged):
        return f"the base's header names it among what the base was merged from ({MERGED_FROM})"
    return ""
