"""Decide whether an output may replace what has its name: what is there, whose it is, what would be lost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lorabake.errors import FileError, TargetError
from lorabake.planning import Plan, provenance
from lorabake.planning.files import OutputFile
from lorabake.settings import OVERWRITE
from lorabake.storage.fields import DATA_HASHES, LEGACY_HASH, THUMBNAIL
from lorabake.tensors.header import Header
from lorabake.tensors.reader import sha256_of
from lorabake.tensors.safetensors import read_header
from lorabake.writing.form import Form

PIECE = 4 << 20
"""Bytes that are compared at a time."""


def other_content(path: Path) -> TargetError:
    """Return the error that something else is in a file's or folder's place."""
    return TargetError(f"{path}: exists and holds something else", f"Give {OVERWRITE} to replace it.")


def check_target(plan: Plan, form: Form, *, overwrite: bool) -> None:
    """Raise TargetError unless the output may replace what has its name now, judging by headers."""
    if not os.path.lexists(plan.path):
        return
    form.check_sort(plan.path)
    if overwrite:
        check_nothing_lost(plan.path, form, plan.path)
    elif not _holds_this_bake(plan, form):
        raise other_content(plan.path)


def check_nothing_lost(target: Path, form: Form, root: Path) -> None:
    """Raise TargetError if replacing a target, which is at `root` now, would lose anything."""
    if lost := form.first_lost(root):
        raise TargetError(
            f"{target}: holds {lost}, which this bake does not put there, and would lose it",
            "Move it, or name another folder.",
        )


def check_same_data(plan: Plan, form: Form, made: Path, digests: Mapping[str, str], device: str) -> None:
    """Raise TargetError if the target's data differ from the new ones, judging by hashes in the headers."""
    for file in plan.files:
        try:
            old, new = (read_header(form.place(root, file)) for root in (plan.path, made))
        except FileError:
            raise other_content(plan.path) from None
        if file.twin is not None and (file.is_linked or _is_as_base(old, file)):
            said = {key: old.metadata.get(key, "") for key in _hash_keys(file.metadata)}
            if (_is_as_base(old, file) or _is_header_of(old, file, digests, said)) and _same_data(old, new):
                continue
            raise other_content(plan.path)
        hashes = {key: new.metadata[key] for key in _hash_keys(file.metadata)}
        if _is_header_of(old, file, digests, hashes) and (hashes or _same_data(old, new)):
            continue
        computed_on = old.metadata.get(provenance.DEVICE)
        if computed_on not in (None, device):
            raise TargetError(
                f"{plan.path}: exists, computed on {computed_on}, and {device} computed other last bits",
                f"Give {OVERWRITE} to replace it, or name that device.",
            )
        raise other_content(plan.path)


def _holds_this_bake(plan: Plan, form: Form) -> bool:
    """Tell whether the target's headers are those of this very bake, apart from hashes of the data."""
    digests = {placeholder: sha256_of(file) for placeholder, file in plan.digests.items()}
    for file in plan.files:
        try:
            header = read_header(form.place(plan.path, file))
        except FileError:
            return False
        if _is_as_base(header, file):
            continue
        hashes = {key: header.metadata.get(key, "") for key in _hash_keys(file.metadata)}
        if not _is_header_of(header, file, digests, hashes):
            return False
    return form.holds_rest(plan.path)


def _is_as_base(header: Header, file: OutputFile) -> bool:
    """Tell whether a file is as a link to the base's would be, by its header."""
    twin = file.twin
    return twin is not None and (header.sha256, header.size) == (twin.sha256, twin.size)


def _is_header_of(header: Header, file: OutputFile, digests: Mapping[str, str], hashes: Mapping[str, str]) -> bool:
    """Tell whether a file has the planned header, whatever device it names and picture it shows."""
    with open(header.path, "rb") as stream:
        device, picture = header.metadata.get(provenance.DEVICE), ""
        if THUMBNAIL not in file.metadata and len(header.metadata.get(THUMBNAIL, "")) <= file.room:
            picture = header.metadata.get(THUMBNAIL, "")  # verify put it in
        return stream.read(header.data_start) == file.header(digests, hashes, device, picture)


def _same_data(one: Header, other: Header) -> bool:
    if os.path.samefile(one.path, other.path):
        return True
    with open(one.path, "rb") as left, open(other.path, "rb") as right:
        left.seek(one.data_start)
        right.seek(other.data_start)
        while piece := left.read(PIECE):
            if piece != right.read(PIECE):
                return False
        return not right.read(1)


def _hash_keys(metadata: Mapping[str, str]) -> list[str]:
    return [key for key in (*DATA_HASHES, LEGACY_HASH) if key in metadata]
