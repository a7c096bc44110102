"""Which files of a folder are the base's own but for their headers, so that a bake can link to those on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorabake.planning.files import OutputFile
from lorabake.planning.layout import OutputLayout
from lorabake.sources import Sources
from lorabake.storage.statements import in_metadata
from lorabake.tensors.header import Header

if TYPE_CHECKING:
    from lorabake.planning import Plan


def with_twins(
    sources: Sources, layout: OutputLayout, files: tuple[OutputFile, ...], computed: Collection[str]
) -> tuple[OutputFile, ...]:
    """Note of each file which of the base's files has the same name and data; `computed` are keys of other values.

    The first file has none: what a bake says of itself has to be where programs look for it.
    """
    base = sources.base
    if not base.is_folder or not layout.is_folder or layout.is_converted:
        return files
    inside = (header for header in base.headers if header.path.is_relative_to(base.path))
    headers = {header.path.relative_to(base.path).as_posix(): header for header in inside}
    read = sources.evidence.read
    return (*files[:1], *(replace(file, twin=_twin(file, headers, computed, read)) for file in files[1:]))


def _twin(
    file: OutputFile, headers: Mapping[str, Header], computed: Collection[str], read: Mapping[Path, object]
) -> Header | None:
    """Return the base's file of the same name, if its data and what it says of stored weights are the planned ones.

    A link changes the time of the file's status. So it must be enough to read the header again: no values in `read`.
    """
    header = headers.get(file.name)
    if header is None or header.path in read or header.size != header.data_start + file.data_size:
        return None
    if any(not target.is_direct or target.key in computed or len(target.weights) != 1 for target in file.targets):
        return None
    start = header.data_start
    here = {
        target.name: (first.file, first.start - start, target.offset, target.dtype, target.shape)
        for target, first in ((target, target.weight.first) for target in file.targets)
    }
    there = {
        info.name: (header.path, info.start - start, info.start - start, info.dtype, info.shape)
        for info in header.tensors.values()
    }
    is_same = here == there and in_metadata(file.metadata) == in_metadata(header.metadata)
    return header if is_same else None


def linked(plan: Plan) -> Plan:
    """Plan links in the place of all files that can be links; a note names them, or says why there are none."""
    files = tuple(replace(file, is_linked=file.twin is not None) for file in plan.files)
    numbers = {number for number, file in enumerate(files) if file.is_linked}
    note = f"linked to the base, not copied: {few(files)}" if numbers else _nothing(plan)
    return replace(
        plan,
        files=files,
        copies=tuple(copy for copy in plan.copies if copy.file not in numbers),
        notes=(*(each for each in plan.notes if each != note), note),
    )


def links_in(plan: Plan) -> list[OutputFile]:
    """List the files that are to be links to the base's."""
    return [file for file in plan.files if file.is_linked]


def few(files: Iterable[OutputFile]) -> str:
    """Name the first of the files that are or could be links."""
    names = [file.name for file in files if file.twin is not None]
    return ", ".join([*names[:3], *["…"] * (len(names) > 3)])


def unlinked_of(plans: Iterable[Plan]) -> dict[str, int]:
    """Count the plans without a link by the note that says why."""
    return Counter(_nothing(plan) for plan in plans if not links_in(plan))


def _nothing(plan: Plan) -> str:
    if not plan.sources.base.is_folder:
        return "nothing to link: the base is a single file"
    if plan.layout.is_converted or not plan.is_folder:
        return "nothing to link: the output has another layout than the base"
    return "nothing to link: no file but the first stays as it is"
