"""State how an output was made: an in-toto Statement (v1) whose predicate is SLSA's provenance (v1).

All of it follows from the recipe, the inputs and the output, so the same bake has the same statement, and `verify`
can compute it again. It has no date unless one is given. It is not signed: docs/provenance.md says how to do that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from lorabake.artifacts.digests import file_digests
from lorabake.artifacts.files import InputPart, OutputPart, input_parts, output_parts
from lorabake.errors import ArgumentError, FileError, SurroundingsError, TargetError
from lorabake.planning import Plan
from lorabake.planning.provenance import DEVICE
from lorabake.progress import unseen
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.tensors.reader import fingerprint
from lorabake.tensors.small import MAX_INDEX, content_of, parse_json
from lorabake.visible import visible_json
from lorabake.writing.linking import linked_in
from lorabake.writing.whole import write_whole

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILDER = "https://github.com/lorabake/lorabake"
BUILD_TYPE = f"{BUILDER}/blob/main/docs/provenance.md#build-type-bake-version-1"
"""Names what the fields of a bake's statement mean; the page says it."""

SUFFIX = ".intoto.json"


def statement_path(output: Path, *, is_folder: bool) -> Path:
    """Return the place of an output's statement: beside the file or the folder, `portrait.intoto.json`."""
    return output.with_name((output.name if is_folder else output.stem) + SUFFIX)


def statement_of(
    plan: Plan,
    output: Path | None = None,
    *,
    date: str = "",
    progress: Callable[[int], None] = unseen,
) -> dict[str, object]:
    """State how a finished output was made; every file of it and of its inputs is read whole.

    `output` is where the output lies, if not where the plan puts it. `date` is when the bake ended: 2026-11-29, or
    2026-11-29T12:00:00Z. `progress` receives counts of bytes, from any thread.

    Raise FileError for files that are missing, cannot be read, or have changed since they were planned; ArgumentError
    for a date that is none.
    """
    ended, place = timestamp(date), output or plan.path
    outputs, inputs = [*output_parts(plan, place)], [*input_parts(plan)]
    digests = digests_of([part.path for part in outputs] + [part.path for part in inputs], progress)
    check_planned(plan, place)
    metadata = open_checkpoint(place, plan.sources.recipe.base.variant if plan.is_folder else None).metadata
    return composed(plan, outputs, inputs, digests, metadata, ended)


def write_statement(
    plan: Plan, output: Path | None = None, *, date: str = "", progress: Callable[[int], None] = unseen
) -> Path:
    """Write the statement of a finished output beside it, and return where it lies.

    An older statement is replaced. Raise what `statement_of` raises, and SurroundingsError where nothing can be
    written.
    """
    place = statement_path(output or plan.path, is_folder=plan.is_folder)
    content = encoded(statement_of(plan, output, date=date, progress=progress))
    try:
        write_whole(place, content)
    except OSError as error:
        raise SurroundingsError(f"{place}: the statement cannot be written: {error.strerror}") from None
    return place


def check_replaceable(place: Path) -> None:
    """Raise TargetError where something that is no statement of a bake has the place of one."""
    if not place.exists():
        return
    try:
        found = read_statement(place)
    except FileError:
        found = {}
    if not is_of_bake(found):
        raise TargetError(
            f"{place}: exists and holds something else than the statement of a bake",
            "Move it, or give the output another name.",
        )


def read_statement(place: Path) -> dict[str, object]:
    """Read a statement, whoever wrote it; raise FileError for what is no JSON object."""
    try:
        found = parse_json(content_of(place, MAX_INDEX))
    except ValueError as error:
        raise FileError(f"{place}: is no statement: {error}") from None
    if not isinstance(found, dict):
        raise FileError(f"{place}: is no statement: it is no JSON object")
    return found


def is_of_bake(statement: Mapping[str, object]) -> bool:
    """Tell whether a statement says of itself that it is about a bake."""
    predicate = statement.get("predicate")
    definition = predicate.get("buildDefinition") if isinstance(predicate, dict) else None
    build_type = definition.get("buildType") if isinstance(definition, dict) else None
    return (statement.get("_type"), statement.get("predicateType"), build_type) == (STATEMENT, PREDICATE, BUILD_TYPE)


def subjects(statement: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the name and the SHA-256 of each subject, as far as a statement has them as texts."""
    for entry in _entries(statement.get("subject")):
        yield str(entry.get("name", "")), _sha256(entry)


def dependencies(statement: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    """Yield the role, the name and the SHA-256 of each input."""
    predicate = statement.get("predicate")
    definition = predicate.get("buildDefinition") if isinstance(predicate, dict) else None
    for entry in _entries(definition.get("resolvedDependencies") if isinstance(definition, dict) else None):
        notes = entry.get("annotations")
        role = notes.get("role") if isinstance(notes, dict) else ""
        yield str(role), str(entry.get("name", "")), _sha256(entry)


def _entries(value: object) -> Iterator[dict[str, object]]:
    yield from (entry for entry in value if isinstance(entry, dict)) if isinstance(value, list) else ()


def _sha256(entry: Mapping[str, object]) -> str:
    digest = entry.get("digest")
    sha256 = digest.get("sha256") if isinstance(digest, dict) else ""
    return sha256 if isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256) else ""


def composed(
    plan: Plan,
    outputs: Iterable[OutputPart],
    inputs: Iterable[InputPart],
    digests: Mapping[Path, str],
    metadata: Mapping[str, str],
    ended: str = "",
) -> dict[str, object]:
    """Put a statement together; `metadata` are the output's own, `ended` the time when the bake ended, or empty."""
    builder = {"id": BUILDER, "version": {"lorabake": metadata.get("lorabake.version", "")}}
    return {
        "_type": STATEMENT,
        "subject": [{"name": part.name, "digest": {"sha256": digests[part.path]}} for part in outputs],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": plan.sources.recipe.normal_form()},
                "internalParameters": {"device": metadata.get(DEVICE, "").strip()},
                "resolvedDependencies": [_dependency(part, digests[part.path]) for part in inputs],
            },
            "runDetails": {"builder": builder, **({"metadata": {"finishedOn": ended}} if ended else {})},
        },
    }


def encoded(statement: Mapping[str, object]) -> bytes:
    """Write a statement as JSON, with every character visible."""
    return f"{visible_json(statement)}\n".encode()


def timestamp(date: str) -> str:
    """Return a date as SLSA writes it, 2026-11-29T12:00:00Z; empty stays empty. One without a zone is in UTC."""
    if not date:
        return ""
    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        raise ArgumentError(
            f"date {date}: give a date such as 2026-11-29, or with a time 2026-11-29T12:00:00Z"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def digests_of(paths: Iterable[Path], progress: Callable[[int], None] = unseen) -> dict[Path, str]:
    """Return the SHA-256 of each file, read now and whole; a cache of digests proves nothing."""
    named = {str(path): path for path in paths}
    return {named[file.name]: file.sha256 for file in file_digests(named, cached=False, progress=progress)}


def check_planned(plan: Plan, output: Path) -> None:
    """Raise FileError if an input is not what it was when the bake was planned; links to inputs are in the output."""
    links = {*linked_in(plan.files, output)}
    planned = {header.path: header.identity for checkpoint, _ in plan.sources.inputs for header in checkpoint.headers}
    for path, identity in {**planned, **plan.sources.evidence.read}.items():
        if path not in links and fingerprint(path) != identity:
            raise FileError(
                f"{path}: changed after the bake had read it, so nothing can be stated about it",
                "The output is complete. Bake it again to state how it was made.",
            )


def _dependency(part: InputPart, sha256: str) -> dict[str, object]:
    named = {"name": part.name, **({"uri": part.uri} if part.uri else {})}
    return {**named, "digest": {"sha256": sha256}, "annotations": {"role": part.role}}
