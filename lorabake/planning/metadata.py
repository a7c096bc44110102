"""Compose the metadata of the output: the base's own, as far as they stay true, the recipe, and the inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lorabake.planning import provenance
from lorabake.planning.files import Draft, OutputFile, is_indexed
from lorabake.planning.identity import Identity, fields
from lorabake.planning.layout import OutputLayout
from lorabake.planning.storage import Storage
from lorabake.recipe import Source
from lorabake.sources import Sources
from lorabake.storage.kept import said_in_header, said_in_index, said_of_layers
from lorabake.storage.statements import LAYERS, modules_of
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.header import Header

THUMBNAIL_ROOM = 48 << 10
"""Bytes reserved in the first file's header for the picture that `verify` makes."""

BLOCK = 4096
"""Bytes of a file system's block. Untouched ranges keep their place relative to blocks and so can be reflinked."""


def described(
    sources: Sources, layout: OutputLayout, storage: Storage, drafts: Sequence[Draft], name: str, identity: Identity
) -> tuple[tuple[OutputFile, ...], dict[str, Path]]:
    """Compose each file's metadata; return the files, and the file that each placeholder for a digest stands for.

    `name` is the output's name if it is a single file.
    """
    recipe = sources.recipe
    inputs, pending = _inputs(sources)
    names = [draft.name if layout.is_folder else name for draft in drafts]
    listed = provenance.listed(inputs, names)
    recipe_text = recipe.normal_json()
    headers = _headers(sources)
    counts = Counter(draft.folder for draft in drafts)
    files: list[OutputFile] = []
    for draft, file_name, told in zip(drafts, names, listed, strict=True):
        keys = tuple(target.name for target in draft.targets)
        first = _first_header(sources, headers, draft)
        own: dict[str, str] = {}
        if not layout.is_converted:  # what a base says holds for its own names
            has_index = is_indexed(sources, draft.part, counts[draft.folder])
            own = _said(storage, draft, first or next(iter(headers.values())), has_index=has_index)
        text = provenance.metadata(
            own,
            fields(identity, _other_component(sources, draft)),
            recipe_text,
            told,
            changes=recipe.output.metadata,
            hashed=recipe.output.hash,
        )
        phase = first.data_start % BLOCK if first else 0
        aligned = first is not None and phase % 8 == 0
        order = _order(first, keys)
        files.append(
            OutputFile(
                file_name,
                draft.targets,
                order,
                text,
                phase if aligned else 0,
                BLOCK if aligned else 1,
                provenance.EDIT_ROOM + (0 if files or recipe.output.thumbnail is None else THUMBNAIL_ROOM),
            )
        )
    return tuple(files), pending


def _other_component(sources: Sources, draft: Draft) -> str:
    """Name the network of a folder that a file holds, unless it is the one that makes the architecture."""
    components = sources.key_map.architecture.components
    return "" if not components or draft.folder in ("", components[0].name) else draft.folder


def _inputs(sources: Sources) -> tuple[dict[str, object], dict[str, Path]]:
    """Identify all inputs, with a distinct placeholder for every digest that is not known yet."""
    recipe = sources.recipe
    pending: dict[str, Path] = {}

    def placeholders(checkpoint: Checkpoint) -> dict[Path, str]:
        places = {}
        for header in checkpoint.headers:
            places[header.path] = f"{len(pending):064x}"
            pending[places[header.path]] = header.path
        return places

    def described_input(checkpoint: Checkpoint, said: Source, digests: Mapping[Path, str]) -> dict[str, object]:
        return provenance.describe(checkpoint, said.portable_path, digests, sources.evidence.sides_of(checkpoint))

    stated = placeholders(sources.opened) if recipe.base.sha256 else {}
    inputs: dict[str, object] = {
        "base": described_input(sources.opened, recipe.base, stated),
        "loras": [
            described_input(lora.checkpoint, lora.entry, placeholders(lora.checkpoint)) for lora in sources.loras
        ],
    }
    if sources.vae is not None and recipe.vae is not None:
        inputs["vae"] = described_input(sources.vae, recipe.vae, placeholders(sources.vae))
    for part in sources.parts:
        known = placeholders(part.checkpoint) if part.entry.sha256 else {}
        said = provenance.describe(part.checkpoint, part.entry.portable_path, known, part.beside)
        inputs.setdefault("parts", {})[part.name] = said  # type: ignore[index]
    return inputs, pending


def _headers(sources: Sources) -> dict[Path, Header]:
    """Map each file of the base to its header, also the temporary files of pickles."""
    headers = {header.path: header for part in sources.base.parts for header in part.files}
    for header in [*headers.values()]:
        headers |= dict.fromkeys((info.file for info in header.tensors.values()), header)
    return headers


def _first_header(sources: Sources, headers: Mapping[Path, Header], draft: Draft) -> Header | None:
    """Return the header of the base's file that holds the first tensor of a future file."""
    key = next((key for target in draft.targets for key in target.source.keys), "")
    info = sources.base.tensors.get(key) or sources.packing.packed.get(key)
    return headers[info.file] if info else None


def _order(first: Header | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the order of a header's entries: the base's own if the file has exactly the base's tensors."""
    if first is None or len(first.tensors) != len(names):
        return names
    own = tuple(info.name for info in first.tensors.values())
    return own if {*own} == {*names} else names


def _said(storage: Storage, draft: Draft, first: Header, *, has_index: bool) -> dict[str, str]:
    """Return the base's own metadata for a file, without statements on stored weights that are no longer true.

    Statements in an index go into the file if no index is written.
    """
    part, change = draft.part, storage.changes[draft.part.folder]
    own = _said_in_headers(
        draft, {weight.file for target in draft.targets for weight in target.weights} | {first.path}
    )
    said = {} if has_index else said_in_index(part, change)
    texts = [text[LAYERS] for text in (*own, said) if LAYERS in text]
    layers = said_of_layers(texts, change.plain, modules_of(part)) if texts else None
    changed = said_in_header(first, change) | {LAYERS: layers}
    kept = {name: changed.get(name, text) for name, text in {**said, **first.metadata, LAYERS: ""}.items()}
    return {name: text for name, text in kept.items() if text is not None}


def _said_in_headers(draft: Draft, files: Collection[Path]) -> list[Mapping[str, str]]:
    """List the statements in the headers of a draft's files, in their order there."""
    numbers = {header.path: number for number, header in enumerate(draft.part.files)}
    return [draft.part.files[number].metadata for number in sorted(numbers[path] for path in files & numbers.keys())]
