"""Write a model card: what an output is, how it was made, how to use it, in Markdown that the Hugging Face hub reads.

All of it comes from the output's headers and files, and from a report if one is given. Whatever another person may
have written is escaped: nothing in a title or a file name can become markup, a link, or a line of the front matter.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from lorabake.artifacts.digests import FileDigest, file_digests
from lorabake.artifacts.licenses import identifier_of
from lorabake.artifacts.made import HUB_ID, Made, read_made
from lorabake.artifacts.proof import Proof, read_proof
from lorabake.artifacts.statement import dependencies, is_of_bake, read_statement, statement_path, subjects
from lorabake.artifacts.uses import Use, uses_of
from lorabake.errors import ArgumentError, SurroundingsError, TargetError
from lorabake.progress import unseen
from lorabake.settings import CARD_OVER
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.visible import counted, counted_as, in_markdown, size_of, visible
from lorabake.writing.cards import CARD, SUFFIX, marked, own_files
from lorabake.writing.whole import write_whole

VERDICTS = {
    "verified": "was found to be what the recipe says",
    "mismatch": "was found **not** to be what the recipe says",
    "not_finished": "was looked at, but not to the end",
    "not_checked": "was not checked",
}


class Text(str):
    """Mark a text as lorabake's own Markdown, which the template shows as it is."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Card:
    """Hold a card's place and content, and those of the picture that it shows; no picture has no place."""

    path: Path
    content: bytes
    picture_path: Path | None = None
    picture: bytes = b""


def card_path(output: Path) -> Path:
    """Return the place of an output's card: README.md in a folder, portrait.md beside portrait.safetensors."""
    return output / CARD if output.is_dir() else output.with_suffix(SUFFIX)


def card_of(
    output: Path,
    *,
    report: Path | None = None,
    loras: Sequence[Mapping[str, Any]] = (),
    base_models: Sequence[str] = (),
    progress: Callable[[int], None] = unseen,
) -> Card:
    """Compose an output's card.

    `report` is the folder of a verification's report. `loras` say what became of each LoRA, as a plan's record does.
    `base_models` are names on the hub that the recipe does not tell. `progress` receives counts of digested bytes.

    Raise FileError for what lorabake did not bake, and for a report about another file; ArgumentError for a name that
    the hub cannot have.
    """
    for name in base_models:
        if not HUB_ID.fullmatch(name):
            raise ArgumentError(f"base model {name}: give a name on the Hugging Face hub, such as org/model")
    made = read_made(output)
    files = file_digests(_files(made.checkpoint), progress=progress)
    proof = None
    if report is not None:
        proof = read_proof(report, made.checkpoint, {file.name: file.sha256 for file in files})
    place = card_path(output)
    picture = None
    if proof is not None and proof.picture:
        picture = place.with_name("samples.png" if made.checkpoint.is_folder else f"{made.name}.samples.png")
    ledger = (proof.loras if proof else ()) or loras
    text = _rendered(made, files, proof, ledger, picture.name if picture else "", [*made.hub_ids, *base_models])
    shown = proof.picture if proof else b""
    return Card(place, marked(text, quote(picture.name) if picture else "", shown), picture, shown)


def write_card(card: Card, *, overwrite: bool = False) -> Path:
    """Write a card and its picture; return the card's place.

    Raise TargetError where files would be replaced that lorabake did not write, or that were edited since, unless
    `overwrite` is set.
    """
    check_replaceable(card, overwrite=overwrite)
    try:
        if card.picture_path is not None:
            write_whole(card.picture_path, card.picture)
        write_whole(card.path, card.content)
    except OSError as error:
        raise SurroundingsError(f"{card.path}: the card cannot be written: {error.strerror}") from None
    return card.path


def check_replaceable(card: Card, *, overwrite: bool = False) -> None:
    """Raise TargetError where a card's files would replace others than lorabake's own."""
    for path in filter(None, (card.path, card.picture_path)):
        check_place(path, card.path, overwrite=overwrite)


def check_place(path: Path, card: Path, *, overwrite: bool = False, advice: str = "") -> None:
    """Raise TargetError where `path` is taken by something else than a `card` of lorabake's or the card's picture."""
    if not path.exists() or path in {*own_files(card)} or (overwrite and path.is_file()):
        return
    raise TargetError(
        f"{path}: exists, and lorabake did not write it, or somebody has edited it since",
        advice or f"Move it, or replace it: {CARD_OVER}",
    )


# -- the page --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Input:
    role: str
    file: str
    strength: str
    sha256: str


def _rendered(
    made: Made,
    files: Sequence[FileDigest],
    proof: Proof | None,
    ledger: Sequence[Mapping[str, Any]],
    picture: str,
    hub_ids: Sequence[str],
) -> str:
    environment = Environment(
        loader=PackageLoader("lorabake.artifacts", "page"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
        autoescape=False,
    )
    recipe_name = f"{made.name}.yaml"
    page = environment.get_template("card.md.j2").render(
        made=made,
        front=Text(front_matter(made, hub_ids)),
        what=Text(_what(made)),
        facts=[*_facts(made)],
        phrases=made.phrases,
        inputs=[*_inputs(made, claimed(made, files))],
        on_device=Text(f", on {in_markdown(made.device)}" if made.device else ""),
        on_same_device=Text(f" on the same sort of device, {in_markdown(made.device)}" if made.device else ""),
        ledger=[*_ledger(made, ledger)],
        recipe=Text(fenced(recipe_text(made), "yaml")),
        recipe_name=recipe_name,
        verdict=Text(_verdict(proof)),
        picture=Text(f"![Pictures of the base and of this checkpoint]({quote(picture)})" if picture else ""),
        prompts=proof.prompts if proof else (),
        licenses=[*_licenses(made)],
        uses=[*_uses(uses_of(made))],
        files=files,
        rebuild=Text(fenced("\n".join(_commands(made, recipe_name)), "sh")),
    )
    return re.sub(r"\n{3,}", "\n\n", page)


def _shown(value: object) -> object:
    """Escape what the template shows, unless it is lorabake's own Markdown."""
    return value if isinstance(value, (Text, int, float)) else in_markdown(str(value))


def fenced(text: str, language: str) -> str:
    """Put a text into a block of code that nothing in it can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = "\n".join(map(visible, text.rstrip("\n").split("\n")))
    return f"{fence}{language}\n{lines}\n{fence}"


def front_matter(made: Made, hub_ids: Sequence[str]) -> str:
    """Write the card's metadata as YAML between two lines of dashes.

    It has only what is known: names of models on the hub, where the recipe or the user gives them; a licence, where
    the inputs state it.
    """
    fields: dict[str, object] = {}
    if made.license:
        known = identifier_of(made.license)
        fields |= {"license": known} if known else {"license": "other", "license_name": "see-the-model-card"}
    if hub_ids:
        fields |= {"base_model": [*dict.fromkeys(hub_ids)], "base_model_relation": "merge"}
    if library := _library(made):
        fields["library_name"] = library
    if made.task:
        fields["pipeline_tag"] = made.task
    tags = ["lorabake", "merge", *(["lora"] if made.recipe.get("loras") else [])]
    fields["tags"] = [*tags, *([made.family_name.replace("_", "-")] if made.family_name else [])]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def _library(made: Made) -> str:
    """Name the library that loads the output, as the hub calls it."""
    folder = made.checkpoint.path
    if not made.checkpoint.is_folder:
        return "diffusion-single-file" if made.task and "text-generation" not in made.task else ""
    if (folder / "model_index.json").is_file():
        return "diffusers"
    return "transformers" if (folder / "config.json").is_file() and made.pipeline else ""


def _what(made: Made) -> str:
    count = len([each for each in made.ingredients if each.role == "LoRA"])
    family = f" of {in_markdown(made.family)}" if made.family else ""
    baked = f"with {counted_as(count, 'LoRA')} baked in" if count else "written anew by lorabake"
    return f"A checkpoint{family} {baked}. It needs no LoRA files, and loads like any other checkpoint of its family."


def _facts(made: Made) -> Iterator[tuple[str, str]]:
    said = made.said if made.is_identified else {}
    yield from (("family", name) for name in [made.family] if name)
    for label, field in (
        ("architecture", "modelspec.architecture"),
        ("resolution", "modelspec.resolution"),
        ("prediction", "modelspec.prediction_type"),
    ):
        if said.get(field):
            yield label, said[field]
    if made.components:
        yield "networks", ", ".join(f"{name} ({layout})" for name, layout in made.components.items())
    yield "tensors", counted(made.dtypes)
    files = [*made.checkpoint.headers]
    yield "size", f"{size_of(made.checkpoint.size)} in {counted_as(len(files), 'file')}"


def claimed(made: Made, files: Iterable[FileDigest]) -> list[tuple[str, str, str]]:
    """List role, name and digest of each input, from the statement beside the output if it is about these very files.

    A header has no digest of a whole base, because a plain bake takes none.
    """
    place = statement_path(made.checkpoint.path, is_folder=made.checkpoint.is_folder)
    statement = read_statement(place) if place.is_file() else {}
    if not is_of_bake(statement) or not {file.sha256 for file in files} <= {sha for _, sha in subjects(statement)}:
        return []
    return [*dependencies(statement)]


def _inputs(made: Made, known: Sequence[tuple[str, str, str]]) -> Iterator[_Input]:
    """Yield a row for each file of the inputs whose digest is known, or else for the input."""
    for each in made.ingredients:
        roles = (each.role, f"output.parts.{each.role}")
        stated = [(name, sha256) for role, name, sha256 in known if role in roles]
        if stated and not each.digests:
            yield from (_Input(each.role, name, each.strength, sha256) for name, sha256 in stated)
            continue
        if len(each.digests) < 2:
            sha256 = next(
                iter(each.digests.values()), f"of its header: {each.header}" if each.header else "not stated"
            )
            yield _Input(each.role, each.path, each.strength, sha256)
            continue
        for name, sha256 in each.digests.items():
            yield _Input(each.role, f"{each.path}: {name}", each.strength, sha256)


def _ledger(made: Made, loras: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say what became of each LoRA; its name is the one that the output has, since a record may have a whole path."""
    names = [each.path for each in made.ingredients if each.role == "LoRA"]
    for name, lora in zip(names, loras, strict=False):
        yield _line(name, lora)


def _line(name: str, lora: Mapping[str, Any]) -> str:
    """Say what became of a LoRA's tensors; `lora` is its record in a plan, which a report may hold."""

    def counts(field: str, name: str) -> str:
        rows = [row for row in lora.get(field, ()) if isinstance(row, Mapping)]
        return ", ".join(f"{row.get(name)} ×{row.get('count')}" for row in rows)

    told = "; ".join(filter(None, (counts("modules", "component"), counts("kinds", "kind"))))
    left = sum(row.get("count", 0) for row in lora.get("excluded", ()) if isinstance(row, Mapping))
    applied = f"{name}: {lora.get('applied')} of {lora.get('tensors')} tensors applied"
    return f"{applied}{f' ({told})' if told else ''}{f', {left} left out by the recipe' if left else ''}"


def _verdict(proof: Proof | None) -> str:
    if proof is None:
        return ""
    stages = ", ".join(in_markdown(stage) for stage in proof.stages)
    found = VERDICTS.get(proof.verdict, VERDICTS["not_checked"])
    on = f" on {in_markdown(proof.date)}" if proof.date else ""
    return f"`lorabake verify`{on}: this checkpoint {found} (stages: {stages})."


def _licenses(made: Made) -> Iterator[str]:
    gap = "\n\n" if "\n" in made.license else "; "
    yield from filter(None, (part.strip() for part in made.license.split(gap)))


def _uses(uses: Iterable[Use]) -> Iterator[tuple[str, Text, Text]]:
    for use in uses:
        names = {name: in_markdown(text) for name, text in use.names.items()}
        text = use.text.format_map(names)
        yield use.heading, Text(text), Text(fenced(use.code, use.language) if use.code else "")


# -- to make it again ------------------------------------------------------------------------------------


def recipe_text(made: Made) -> str:
    """Write the output's recipe as YAML, without what is as it would be anyway."""
    form = {key: _lean(value) for key, value in made.recipe.items() if key not in ("version", "output")}
    output: dict[str, Any] = {"path": made.checkpoint.path.name, **(_lean(made.recipe.get("output")) or {})}
    recipe: dict[str, Any] = {"version": made.recipe.get("version", 1)}
    recipe |= {key: value for key, value in form.items() if value is not None}
    ordered: dict[str, Any] = {key: recipe.pop(key) for key in ("version", "base", "loras", "vae") if key in recipe}
    ordered |= recipe
    ordered["output"] = output
    text: str = yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True)
    return text


def _lean(value: Any) -> Any:
    """Leave out nothings, and write pairs of blocks as the mapping that they stand for."""
    match value:
        case dict():
            lean: dict[Any, Any] = {
                key: _blocks(each) if key == "blocks" else _lean(each) for key, each in value.items()
            }
            return {key: each for key, each in lean.items() if each not in (None, [], {})}
        case list():
            return [_lean(each) for each in value]
    return value


def _blocks(pairs: Any) -> Any:
    is_pairs = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    return {str(glob): factor for glob, factor in pairs} if is_pairs else pairs


def _commands(made: Made, recipe_name: str) -> Iterator[str]:
    yield f"lorabake bake {shlex.quote(recipe_name)}"
    yield f"lorabake verify {shlex.quote(recipe_name)}"


def _files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Name the files with weights by their paths in the output."""
    root = checkpoint.path if checkpoint.is_folder else checkpoint.path.parent
    return {header.path.relative_to(root).as_posix(): header.path for header in checkpoint.headers}
