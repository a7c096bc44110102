"""Compute again what a statement of provenance claims: the digests of the output and the inputs, and the recipe.

Nobody has to have signed the statement, and nothing in it is taken as true. What it says of who baked and when cannot
be computed, and is not looked at.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabake.artifacts.files import InputPart, OutputPart, input_parts, output_parts
from lorabake.artifacts.statement import (
    PREDICATE,
    STATEMENT,
    digests_of,
    is_of_bake,
    read_statement,
    statement_path,
)
from lorabake.documents.names import Figures
from lorabake.errors import FileError
from lorabake.planning import Plan
from lorabake.planning.provenance import DEVICE
from lorabake.progress import unseen
from lorabake.settings import STATE
from lorabake.storage.fields import RECIPE
from lorabake.tensors.checkpoint import WEIGHT_SUFFIXES, Checkpoint
from lorabake.tensors.reader import is_there
from lorabake.verification.findings import Finding, Status
from lorabake.verification.structure.recipes import Compared, compare, differences
from lorabake.visible import counted_as, some

LOADED = WEIGHT_SUFFIXES | {".py"}
"""Suffixes of files that a program may load or run in place of those that a bake wrote."""

CARD = "README.md"
"""What people add to a folder to tell of it; a statement is about the model alone."""


@dataclass(frozen=True, slots=True)
class _Claim:
    """Hold a name, and the SHA-256 and the source that a statement claims of it; empty where it claims none."""

    name: str
    sha256: str
    uri: str = ""


def statement_beside(output: Path) -> Path | None:
    """Return the statement that lies beside an output, or None."""
    place = statement_path(output, is_folder=output.is_dir())
    return place if is_there(place) else None


def parts_of(plan: Plan, output: Path) -> tuple[list[OutputPart], list[InputPart]]:
    """List the files that a statement makes claims of: those of the output, as far as they are there, and inputs."""
    return [part for part in output_parts(plan, output) if part.path.is_file()], [*input_parts(plan)]


def size_of(plan: Plan, output: Path) -> int:
    """Count the bytes that have to be read."""
    outputs, inputs = parts_of(plan, output)
    paths = {part.path for part in outputs} | {part.path for part in inputs}
    return sum(path.stat().st_size for path in paths)


def check_statement(
    plan: Plan, baked: Checkpoint, place: Path, progress: Callable[[int], None] = unseen
) -> Iterator[Finding]:
    """Compare the claims of a statement with what the files and the recipe say."""
    try:
        statement = read_statement(place)
    except FileError as error:
        note = str(error).removeprefix(f"{place}: ").replace("\n", "; ")
        yield Finding("provenance.form", Status.FAIL, place.name, "", "", note)
        return
    if not is_of_bake(statement):
        yield _foreign(statement, place)
        return
    outputs, inputs = parts_of(plan, baked.path)
    digests = digests_of([part.path for part in outputs] + [part.path for part in inputs], progress)
    definition = _at(statement, "predicate", "buildDefinition")
    said = _at(definition, "externalParameters")
    compared = compare(plan, {**baked.metadata, RECIPE: json.dumps(_at(said, "recipe"))})
    yield from _subjects(baked, outputs, [*_claims(statement.get("subject"))], digests)
    yield from _inputs(inputs, _at(definition, "resolvedDependencies"), digests, compared.order)
    yield _recipe(compared, place, said)
    yield _builder(baked, place, statement)


def _foreign(statement: Mapping[str, object], place: Path) -> Finding:
    if (statement.get("_type"), statement.get("predicateType")) == (STATEMENT, PREDICATE):
        note = "another program wrote this statement, about a build of another sort: nothing was compared"
    else:
        note = "is no in-toto statement with SLSA provenance: nothing was compared"
    return Finding("provenance.form", Status.SKIP, place.name, "", "", note)


# -- the output ------------------------------------------------------------------------------------------


def _subjects(
    baked: Checkpoint, outputs: Iterable[OutputPart], claims: list[_Claim], digests: Mapping[Path, str]
) -> Iterator[Finding]:
    check, claimed = "provenance.subject", {_inside(claim.name): claim for claim in claims}
    for name, count in Counter(_inside(claim.name) for claim in claims).items():
        if count > 1:
            note = "the statement names this file more than once"
            yield Finding(check, Status.FAIL, name, f"{count}", "1", note, Figures(count, 1, "files"))
    for part in outputs:
        digest, claim = digests[part.path], claimed.pop(_inside(part.name), None)
        note = "has the SHA-256 that the statement claims"
        if claim is None and not baked.is_folder:
            claim = next((each for each in claimed.values() if each.sha256 == digest), None)
            if claim is not None:
                del claimed[_inside(claim.name)]
                note += f", under the name {claim.name!r}"
        if claim is None:
            figures = Figures(digest, unit="sha256")
            note = "the statement does not name this file, nor its SHA-256"
            yield Finding(check, Status.FAIL, part.name, digest[:12], "", note, figures)
        else:
            yield _compared(check, part.name, digest, claim.sha256, note)
    for claim in claimed.values():
        yield Finding(check, Status.FAIL, claim.name, "", "", "the statement names this file, and it is not there")
    if baked.is_folder:
        yield from _strays(baked.path, {part.path for part in outputs})


def _strays(root: Path, known: set[Path]) -> Iterator[Finding]:
    """Tell of files in the output's folder that no statement of its bake can name."""
    found = [path for path in _below(root) if path not in known and path != root / CARD]
    for status, paths, note in (
        (Status.FAIL, [path for path in found if path.suffix.lower() in LOADED], "a program may load them"),
        (Status.WARN, [path for path in found if path.suffix.lower() not in LOADED], "no program loads them"),
    ):
        if paths:
            names = [path.relative_to(root).as_posix() for path in paths]
            told = f"the bake did not put these files there, and {note}: {some(names)}"
            yield Finding(
                "provenance.subject",
                status,
                root.name,
                f"{len(paths)} more",
                "0",
                told,
                Figures(len(paths), 0, "files"),
            )


def _below(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in sorted([*files, *links]))


def _inside(name: str) -> str:
    """Return a subject's path below the output, whose own name may have changed since: unet/config.json."""
    return name.partition("/")[2] or name


# -- what it was made of ---------------------------------------------------------------------------------


def _inputs(
    inputs: Iterable[InputPart], said: object, digests: Mapping[Path, str], order: Sequence[int]
) -> Iterator[Finding]:
    """Compare the inputs; `order` has for each LoRA its place in the statement's recipe.

    A file is told by its digest: it may have another name by now.
    """
    check = "provenance.input"
    claimed = [*_claimed_inputs(said)]
    there = {f"loras.{number}": f"loras.{place}" for number, place in enumerate(order)}
    for part in inputs:
        digest, role = digests[part.path], there.get(part.role, part.role)
        own = [(role_there, claim) for role_there, claim in claimed if role_there == role]
        found = next((each for each in own if each[1].name == part.name), None)
        found = found or next((each for each in own if each[1].sha256 == digest), None)
        if found is None:
            note = f"the statement does not name this file, which is for {part.role}"
            yield Finding(check, Status.FAIL, part.name, digest[:12], "", note, Figures(digest, unit="sha256"))
            continue
        claimed.remove(found)
        claim = found[1]
        name = f", under the name {claim.name!r}" if claim.name != part.name else ""
        note = f"for {part.role}: has the SHA-256 that the statement claims{name}"
        yield _compared(check, part.name, digest, claim.sha256, note)
        if not name and _without_commit(claim.uri) != _without_commit(part.uri):
            told = f"the statement claims that this file is from {claim.uri or 'this machine'}, not {part.uri!r}"
            yield Finding(check, Status.FAIL, part.name, "", "", told)
    for role, claim in claimed:
        note = f"the statement names this file, for {role}, and the recipe's inputs have none such"
        yield Finding(check, Status.FAIL, claim.name, "", "", note)


def _claimed_inputs(said: object) -> Iterator[tuple[str, _Claim]]:
    for entry in said if isinstance(said, list) else []:
        for claim in _claims([entry]):
            yield str(_at(entry, "annotations", "role")), claim


def _without_commit(uri: str) -> str:
    """Leave out which commit of a model a URI names: one file may be in many, and its digest says which it is."""
    return uri.partition("@")[0] if uri.startswith("pkg:") else uri


def _recipe(compared: Compared, place: Path, said: object) -> Finding:
    """Say how the recipe in a statement differs from the present one, whatever the paths and the order are."""
    surplus = sorted(key for key in said if key != "recipe") if isinstance(said, Mapping) else []
    differing = [f"recipe.{words}" for words in compared.differences]
    differing += (f"{key} is nothing that a bake is told" for key in surplus)
    if not differing:
        note = f"the statement claims this recipe{', '.join(['', *compared.told])}"
        return Finding("provenance.recipe", Status.PASS, place.name, "", "", note)
    note = (
        f"the statement claims another recipe: {'; '.join(differing[:5])}: verify with the recipe that was baked, "
        f"or {STATE} again"
    )
    figures = Figures(len(differing), 0, "differences")
    measured = counted_as(len(differing), "difference")
    return Finding("provenance.recipe", Status.FAIL, place.name, measured, "0", note, figures)


def _builder(baked: Checkpoint, place: Path, statement: Mapping[str, object]) -> Finding:
    """Compare what a statement says of the lorabake and the device with what the header says."""
    said = {
        "lorabake": _at(statement, "predicate", "runDetails", "builder", "version", "lorabake"),
        "device": _at(statement, "predicate", "buildDefinition", "internalParameters", "device"),
    }
    due = {
        "lorabake": baked.metadata.get("lorabake.version", ""),
        "device": baked.metadata.get(DEVICE, "").strip(),
    }
    differing = [*differences(said, due)]
    if not differing:
        note = f"baked by lorabake {due['lorabake']} on {due['device']}, as the header says"
        return Finding("provenance.builder", Status.PASS, place.name, "", "", note)
    note = f"the statement and the header name other makers: {'; '.join(differing)}"
    figures = Figures(len(differing), 0, "differences")
    return Finding(
        "provenance.builder", Status.FAIL, place.name, counted_as(len(differing), "difference"), "0", note, figures
    )


# -- reading what anyone may have written ----------------------------------------------------------------


def _at(value: object, *keys: str) -> object:
    """Return what lies at a path of keys in JSON; None where it is not there."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _claims(said: object) -> Iterator[_Claim]:
    for entry in said if isinstance(said, list) else []:
        said_of = (_at(entry, "name"), _at(entry, "digest", "sha256"), _at(entry, "uri"))
        yield _Claim(*(text if isinstance(text, str) else "" for text in said_of))


def _compared(check: str, name: str, digest: str, claim: str, note: str) -> Finding:
    figures = Figures(digest, claim, "sha256")
    if digest == claim:
        return Finding(check, Status.PASS, name, digest[:12], digest[:12], note, figures)
    told = "has another SHA-256 than the statement claims"
    return Finding(check, Status.FAIL, name, digest[:12], claim[:12] or "none", told, figures)
