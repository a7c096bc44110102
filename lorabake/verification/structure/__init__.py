"""The first stage: does the file have the form that the plan says? Headers only, in milliseconds.

Keys, dtypes, shapes, order, offsets, lengths, shards and their index, side files, metadata, the base's digest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from lorabake.documents.names import Figures
from lorabake.errors import FileError, first_line
from lorabake.keymap.names import patterns
from lorabake.keymap.table import find
from lorabake.planning import Plan
from lorabake.planning.files import Embedding, OutputFile
from lorabake.planning.steps import Target
from lorabake.storage.fields import RECIPE
from lorabake.storage.statements import as_texts, in_metadata
from lorabake.tensors.checkpoint import Checkpoint, open_checkpoint, read_object
from lorabake.tensors.reader import read_stored
from lorabake.tensors.safetensors import read_header
from lorabake.tensors.small import MAX_INDEX
from lorabake.verification.findings import Finding, Status
from lorabake.verification.structure.links import check_links, name_of
from lorabake.verification.structure.recipes import check_recipe, differences
from lorabake.verification.structure.side_files import check_side_files
from lorabake.visible import counted


def check_structure(plan: Plan, path: Path) -> tuple[list[Finding], Checkpoint | None]:
    """Compare a checkpoint's headers with the planned ones; return no checkpoint if it cannot be read as one."""
    try:
        baked = open_checkpoint(path, plan.variant if path.is_dir() else None)
    except FileError as error:
        return [_unreadable(plan, path, error)], None
    size = sum(header.size for part in baked.parts for header in part.files)
    note = "header, offsets and length agree"
    if plan.is_folder:
        note += ", and so does the index"
    found = [
        Finding("structure.file", Status.PASS, path.name, f"{size:,} bytes", "", note, Figures(size, unit="bytes"))
    ]
    found += [*_keys(plan, baked), *_forms(plan, baked), *_order(plan, baked), *_layout(plan, baked)]
    found += [*_made_anew(plan, baked)]
    is_own = _severity(baked) is Status.FAIL
    found += [*check_side_files(plan, baked, is_own=is_own), *_embeddings(plan, baked), *check_recipe(plan, baked)]
    found += [*_statements(plan, baked), *check_links(plan, baked)]
    return found, baked


def _unreadable(plan: Plan, path: Path, error: FileError) -> Finding:
    """Say why a checkpoint cannot be read; recognise shards with exchanged names."""
    message = str(error).replace(f"{path}: ", "").replace("\n", "; ")
    if path.is_dir() and len(plan.files) > 1:
        planned = {frozenset(target.name for target in file.targets): file.name for file in plan.files}
        held: dict[str, str] = {}
        for file in plan.files:
            try:
                held[file.name] = planned.get(frozenset(read_header(path / file.name).tensors), "")
            except FileError:
                held[file.name] = ""
        swapped = [
            f"{name} holds what belongs into {other}" for name, other in held.items() if other not in ("", name)
        ]
        if swapped:
            note = f"shards are exchanged: {'; '.join(swapped)}"
            return Finding(
                "structure.shards",
                Status.FAIL,
                path.name,
                f"{len(swapped)} shards",
                "0",
                note,
                Figures(len(swapped), 0, "shards"),
            )
    return Finding("structure.file", Status.FAIL, path.name, "", "", f"cannot be read: {message}")


def _targets(plan: Plan) -> dict[str, Target]:
    return {target.key: target for file in plan.files for target in file.targets}


def _keys(plan: Plan, baked: Checkpoint) -> Iterator[Finding]:
    planned = _targets(plan)
    missing = [key for key in planned if key not in baked.tensors]
    surplus = [key for key in baked.tensors if key not in planned]
    if missing:
        note = f"tensors {_of(plan)} are not there: {patterns(missing)}"
        yield Finding(
            "structure.keys", Status.FAIL, _subject(missing), f"{len(missing)} missing", "0", note, _figures(missing)
        )
    if surplus:
        who = "the plan" if plan.layout.is_converted else "the base"
        note = f"tensors that {who} does not have: {patterns(surplus)}"
        yield Finding(
            "structure.keys", Status.FAIL, _subject(surplus), f"{len(surplus)} more", "0", note, _figures(surplus)
        )
    if not missing and not surplus:
        figures = Figures(count=len(planned))
        subject = f"{len(planned)} tensors"
        whose = "those of the plan" if plan.layout.is_converted else "the base's keys"
        yield Finding("structure.keys", Status.PASS, subject, "", "", f"exactly {whose}", figures)


def _forms(plan: Plan, baked: Checkpoint) -> Iterator[Finding]:
    """Compare dtypes and shapes, with one finding for each sort of difference."""
    dtypes: dict[tuple[str, str], list[str]] = {}
    shapes: list[str] = []
    common = [(target, baked.tensors[key]) for key, target in _targets(plan).items() if key in baked.tensors]
    for target, info in common:
        if info.dtype != target.dtype:
            dtypes.setdefault((info.dtype, target.dtype), []).append(target.key)
        if info.shape != target.shape:
            shapes.append(target.key)
    for (there, due), keys in dtypes.items():
        note = f"{there} where {due} is due: {patterns(keys)}"
        figures = Figures(there, due, "dtype", _count(keys))
        yield Finding("structure.dtype", Status.FAIL, _subject(keys), there, due, note, figures)
    if shapes:
        info, target = baked.tensors[shapes[0]], _targets(plan)[shapes[0]]
        note = f"other shapes: {patterns(shapes)}"
        shape, wanted = [*info.shape], [*target.shape]
        figures = Figures(shape, wanted, "shape", _count(shapes))
        yield Finding("structure.shape", Status.FAIL, _subject(shapes), str(shape), str(wanted), note, figures)
    if common and not dtypes and not shapes:
        kinds = Counter(info.dtype for _, info in common)
        subject, measured = f"{len(common)} tensors", counted(dict(kinds.most_common()))
        figures = Figures(count=len(common))
        yield Finding("structure.dtype", Status.PASS, subject, measured, "", "dtypes and shapes as due", figures)


def _order(plan: Plan, baked: Checkpoint) -> Iterator[Finding]:
    """Compare which file holds which tensor, and the order of tensors in headers and data."""
    whose = "the plan's" if plan.layout.is_converted else "the base's"
    found = [header for part in baked.parts for header in part.files]
    headers = {name_of(baked, header): header for header in found}
    if not baked.is_folder and len(plan.files) == 1:
        headers = dict.fromkeys([plan.files[0].name], found[0])  # whatever it is called by now
    for file in plan.files:
        header = headers.get(file.name)
        if header is None:
            note = f"no such file; there is {', '.join(sorted(headers))}"
            yield Finding("structure.shards", _severity(baked), file.name, "", "", note)
            continue
        names = [info.name for info in header.tensors.values()]
        if {target.name for target in file.targets} != {*names}:
            continue  # told by the keys
        data = [info.name for info in sorted(header.tensors.values(), key=lambda info: (info.start, info.stop))]
        in_order = names == [*file.order]
        same = data == _data_order(file)
        if in_order and same:
            yield Finding("structure.order", Status.PASS, file.name, "", "", f"keys and data in {whose} order")
        else:
            what = " and ".join(["the header's keys"] * (not in_order) + ["the data"] * (not same))
            note = f"{what} are in another order than {whose}; programs load it all the same"
            yield Finding("structure.order", _severity(baked), file.name, "", "", note)


def _layout(plan: Plan, baked: Checkpoint) -> Iterator[Finding]:
    """Recognise a converted checkpoint by itself: each component has to be known, in its place and layout."""
    if not plan.layout.is_converted:
        return
    tensors, family = baked.tensors, plan.sources.key_map.architecture
    there = {component.name: find(component, tensors) for component in family.components}
    due = {place.component: (place.layout, place.key_prefix) for place in plan.layout.places}
    known = {name: (place[0].name, place[1]) for name, place in there.items() if place is not None}
    told = ", ".join(f"{name} ({layout})" for name, (layout, _) in known.items())
    if known == due and family.fits(tensors):
        note = f"by itself it is known as {family.title}: {told}"
        yield Finding("structure.layout", Status.PASS, baked.path.name, "", "", note)
    else:
        wanted = ", ".join(f"{name} ({layout})" for name, (layout, _) in due.items())
        note = f"by itself it is not known as {family.title} with {wanted}; there is {told or 'nothing of it'}"
        yield Finding("structure.layout", Status.FAIL, baked.path.name, "", "", note)


def _made_anew(plan: Plan, baked: Checkpoint) -> Iterator[Finding]:
    """Compare the small tensors that are of no tensor of the base: noise schedules, markers."""
    due = [target for target in _targets(plan).values() if target.data is not None and target.key in baked.tensors]
    wrong = [target.key for target in due if read_stored(baked.tensors[target.key]) != target.data]
    if wrong:
        note = f"not what the base's scheduler says: {patterns(wrong)}"
        yield Finding(
            "structure.made_anew", Status.FAIL, _subject(wrong), f"{len(wrong)}", "0", note, _figures(wrong)
        )
    elif due:
        subject, figures = f"{len(due)} tensors", Figures(count=len(due))
        note = "what the base's scheduler says"
        yield Finding("structure.made_anew", Status.PASS, subject, "", "", note, figures)


def _of(plan: Plan) -> str:
    return "of the plan" if plan.layout.is_converted else "of the base"


def _data_order(file: OutputFile) -> list[str]:
    """List names in the order of their data; empty tensors at the same place keep the plan's order."""
    return [target.name for target in sorted(file.targets, key=lambda each: (each.offset, each.nbytes))]


def _severity(baked: Checkpoint) -> Status:
    """Be strict with files that lorabake made; other tools may order tensors differently."""
    return Status.FAIL if RECIPE in baked.metadata else Status.WARN


def _embeddings(plan: Plan, baked: Checkpoint) -> Iterator[Finding]:
    """Look for the learned embeddings beside the checkpoint; other tools may not have copied them."""
    for embedding in plan.embeddings:
        fault = _embedding_fault(embedding)
        status = _severity(baked) if fault else Status.PASS
        note = fault or f"holds the learned embedding of {embedding.token!r}"
        yield Finding("structure.embedding", status, embedding.path.name, "", "", note)


def _embedding_fault(embedding: Embedding) -> str:
    """Say what is wrong with the header of a file of textual inversion; nothing where it is as planned."""
    if not embedding.path.is_file():
        return f"is missing, and should hold the learned embedding of {embedding.token!r}"
    try:
        there = read_header(embedding.path).tensors
    except FileError as error:
        return f"cannot be read: {first_line(error, None).removeprefix(f'{embedding.path}: ')}"
    due = {vectors.name: (vectors.info.dtype, vectors.shape) for vectors in embedding.vectors}
    found = {name: (info.dtype, info.shape) for name, info in there.items()}
    wrong = [name for name in {**due, **found} if due.get(name) != found.get(name)]
    return f"its tensors are not the planned ones: {', '.join(wrong[:3])}" if wrong else ""


def _statements(plan: Plan, baked: Checkpoint) -> Iterator[Finding]:
    """Compare statements in headers and indexes on how weights are stored, since programs decode weights by them."""
    headers = {name_of(baked, header): header for part in baked.parts for header in part.files}
    if not baked.is_folder and len(plan.files) == 1:
        headers = dict.fromkeys([plan.files[0].name], baked.parts[0].files[0])
    compared: list[tuple[str, Mapping[str, str], Mapping[str, str]]] = [
        (file.name, file.metadata, headers[file.name].metadata) for file in plan.files if file.name in headers
    ]
    for part in baked.parts if baked.is_folder else ():
        name = str(PurePosixPath(part.folder, part.index or ""))
        if part.index is not None and name in plan.texts:
            planned, written = json.loads(plan.texts[name]), read_object(baked.path / name, MAX_INDEX)
            both = [as_texts(_object(index.get("metadata"))) for index in (planned, written)]
            compared.append((name, both[0], both[1]))
    wrong, said = [], 0
    for name, metadata, found in compared:
        due, there = in_metadata(metadata), in_metadata(found)
        said += bool(due)
        wrong += [f"{name}: {each}" for each in differences(there, due)]
    subject, note = baked.path.name, "the headers say of stored weights what the plan says"
    if wrong:
        note = f"the headers say otherwise how weights are stored: {'; '.join(wrong[:3])}"
        figures = Figures(len(wrong), 0, "differences")
        yield Finding("structure.statements", Status.FAIL, subject, f"{len(wrong)} differences", "0", note, figures)
    elif said:
        yield Finding("structure.statements", Status.PASS, subject, "", "", note)


def _object(said: object) -> dict[str, object]:
    return said if isinstance(said, dict) else {}


def _subject(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{len(keys)} tensors"


def _count(keys: list[str]) -> int | None:
    """Count tensors that have no name of their own in a finding."""
    return len(keys) if len(keys) > 1 else None


def _figures(keys: list[str]) -> Figures:
    return Figures(len(keys), 0, "tensors", _count(keys))
