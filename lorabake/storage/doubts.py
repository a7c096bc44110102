"""Doubts about weights that their own tensors do not raise: what files and statements elsewhere may say of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lorabake.codecs import comfy
from lorabake.codecs.codec import Statement, Stored, Strange
from lorabake.storage.advice import OTHER_SCALES, UNKNOWN
from lorabake.storage.groups import is_float8
from lorabake.storage.options import fault, read_options
from lorabake.storage.statements import Statements
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import TensorInfo
from lorabake.visible import visible

MAP = re.compile(
    r"[._-](?:(?:fp8|float8|quant|dequant|weights?|scales?)[._-])?(?:map|scales?|amax|scale_inv)\.\w+", re.I
)
"""What stands behind the stem of a file's name in the name of one that holds its scales (HunyuanVideo)."""


def mapped(checkpoint: Checkpoint, infos: Mapping[str, TensorInfo]) -> dict[str, Strange]:
    """Find plain weights in float8 beside whose file another lies that may hold their scales."""
    strange = {}
    for part in checkpoint.parts:
        root = (checkpoint.path if checkpoint.is_folder else checkpoint.path.parent) / part.folder
        maps: dict[str, str] | None = None
        for header in part.files:
            coded = [info for info in header.tensors.values() if info.key in infos and is_float8(info)]
            matrices = [info for info in coded if len(info.shape) > 1]
            if matrices and maps is None:
                maps = _maps_in(root)
            beside = maps.get(header.path.stem.lower()) if matrices and maps else None
            for info in matrices if beside else ():
                title = f"{DTYPES[info.dtype].title} beside {beside}"
                why = f"which {visible(str(beside))} beside its file may scale\n{OTHER_SCALES}"
                strange[info.key] = Strange(title, why, frozenset({info.key}), has_codes=True)
    return strange


def _maps_in(folder: Path) -> dict[str, str]:
    """Map the stems of files, in small letters, to the names of those that may hold their scales."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # files in a folder can be read though it cannot be listed
        return {}
    found: dict[str, str] = {}
    for name in names:
        for cut in (match.start() for match in re.finditer(r"[._-]", name)):
            if MAP.fullmatch(name, cut):
                found.setdefault(name[:cut].lower(), name)
    return found


def misnamed(checkpoint: Checkpoint, statements: Statements, weights: Mapping[str, Stored]) -> dict[str, Strange]:
    """Find weights without a statement, if a statement names a layer that does not exist: it may mean them.

    Both may be the same layers by two names. What names a format that tensors show says nothing more than they do.
    """
    strange = {}
    shown = ({}, *({"format": name} for name in comfy.NAMES.values()))
    for part in checkpoint.parts:
        lost = statements.lost.get(part.folder, {})
        name = next((name for name, said in lost.items() if comfy.meaning(said.says) not in shown), None)
        if name is None:
            continue
        keys = {info.key for header in part.files for info in header.tensors.values()}
        for key, weight in weights.items():
            if keys & weight.keys and key.removesuffix(".weight") not in statements.layers:
                why = f"which {lost[name].place} may mean by {visible(name)}, a layer that the base does not have"
                strange[key] = Strange(f"{weight.title} {why}", f"{why}\n{UNKNOWN}", weight.keys, has_codes=True)
    return strange


def doubted(
    infos: Mapping[str, TensorInfo],
    statements: tuple[Statement, ...],
    weights: Iterable[Stored],
    strange: Mapping[str, Strange],
) -> dict[str, Strange]:
    """Find that every weight of a component is strange, if a statement about the whole of it is not understood."""
    why = next(_doubts(statements), None)
    if why is None:
        return {}
    reason = why.partition("\n")[0]
    doubted = {
        weight.key: Strange(f"{weight.title} {reason}", why, weight.keys)
        for weight in weights
        if weight.keys & infos.keys()
    }
    taken = frozenset().union(*(weight.parts for weight in {**strange, **doubted}.values()))
    for key, info in infos.items():
        if key not in taken and DTYPES[info.dtype].floating:
            doubted[key] = Strange(f"floats {reason}", why, frozenset({key}))
    return doubted


def _doubts(statements: tuple[Statement, ...]) -> Iterator[str]:
    """Yield why the weights of a model cannot be trusted to be what their tensors say."""
    for statement in statements:
        if (what := fault(statement)) is not None:
            advice = f"If that has no say in stored values, take it out of a copy of the base's {statement.place}."
            yield f"of which {statement.place} says {visible(what)}\n{UNKNOWN}\n{advice}"
    if isinstance(options := read_options(statements), str):
        yield f"{options}\n{UNKNOWN}"
