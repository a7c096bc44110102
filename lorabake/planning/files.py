"""Lay out the files of the output: which tensors are in which file, at which offset, and the texts beside them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from lorabake import __version__
from lorabake.codecs.codec import Stored
from lorabake.keymap.embeddings import Vectors, file_stem
from lorabake.matching.ledger import Ledger
from lorabake.planning import provenance
from lorabake.planning.checks import check_is_no_input
from lorabake.planning.layout import is_folder
from lorabake.planning.steps import Target, whole
from lorabake.planning.storage import Storage, dtype_of, is_fixed
from lorabake.sources import Sources
from lorabake.storage.fields import INPUTS, THUMBNAIL
from lorabake.storage.kept import index_form, said_in_files, said_in_index
from lorabake.tensors.checkpoint import PICKLE_SUFFIXES, Part
from lorabake.tensors.dtypes import DTYPES, nbytes
from lorabake.tensors.header import Header
from lorabake.tensors.safetensors import encode_header
from lorabake.visible import short_repr


@dataclass(frozen=True)
class OutputFile:
    """Describe one planned file: its path below the output, its header's entries, and how the header is aligned.

    `room` is how many bytes its header has to spare. `twin` is the base's file that has its name and its data, and so
    differs in the header alone; with `is_linked`, the output has that file itself.
    """

    __repr__ = short_repr

    name: str
    targets: tuple[Target, ...]
    order: tuple[str, ...]
    metadata: Mapping[str, str]
    phase: int
    align: int
    room: int = provenance.EDIT_ROOM
    twin: Header | None = None
    is_linked: bool = False

    def header(
        self,
        digests: Mapping[str, str] | None = None,
        hashes: Mapping[str, str] | None = None,
        device: str | None = "",
        thumbnail: str = "",
    ) -> bytes:
        """Encode the header, with digests and hashes as zeros or filled in; the length is the same.

        `device` names the device classes that computed, once known; None leaves them out, as older bakes did.
        `thumbnail` is the picture that verify put into the room.
        """
        text = dict(self.metadata) | dict(hashes or {})
        room = self.room
        if device is not None:
            text[provenance.DEVICE] = device
            room += provenance.DEVICE_ROOM - len(device)
        if thumbnail:
            text[THUMBNAIL] = thumbnail
            room -= len(json.dumps({THUMBNAIL: thumbnail}, separators=(",", ":"))) - 1  # its braces are a comma
        for placeholder, digest in (digests or {}).items():
            text[INPUTS] = provenance.filled_in(text[INPUTS], placeholder, digest)
        entries = ((target.name, target.dtype, target.shape) for target in self.targets)
        return encode_header(entries, text, phase=self.phase, align=self.align, order=self.order, room=room)

    @cached_property
    def header_size(self) -> int:
        """Count the bytes of the header, whatever is filled in."""
        return len(self.header())

    @property
    def data_size(self) -> int:
        """Count the bytes of tensor data."""
        return self.targets[-1].offset + self.targets[-1].nbytes if self.targets else 0

    @property
    def size(self) -> int:
        """Count the file's bytes."""
        return self.link.size if self.link is not None else self.header_size + self.data_size

    @property
    def link(self) -> Header | None:
        """Return the base's file that the output has in this one's place, if it is to be a link."""
        return self.twin if self.is_linked else None


@dataclass(frozen=True, slots=True)
class Embedding:
    """Describe one planned file of textual inversion beside the output: a LoRA's learned embedding of one token."""

    __repr__ = short_repr

    path: Path
    lora: int
    token: str
    vectors: tuple[Vectors, ...]

    def header(self) -> bytes:
        """Encode the header; the data are the LoRA's, in the same order."""
        text = {"format": "pt", "lorabake.version": __version__, "lorabake.token": self.token}
        return encode_header(((each.name, each.info.dtype, each.shape) for each in self.vectors), text)

    @property
    def size(self) -> int:
        """Count the file's bytes."""
        return len(self.header()) + sum(each.info.nbytes for each in self.vectors)


@dataclass(frozen=True, slots=True)
class Draft:
    """Collect the tensors of a future file, in a folder of the output; it comes from one part of the base."""

    name: str
    folder: str
    part: Part
    targets: tuple[Target, ...]


def drafts_of(sources: Sources, storage: Storage, vae: Mapping[str, Stored]) -> Iterator[Draft]:
    """Distribute the base's tensors over files, each in the order of its data; `vae` has the replaced VAE tensors."""
    limit, number = sources.recipe.output.shard_size, 0
    for part in sources.base.parts:
        shards = []
        for index, header in enumerate(part.files):
            stored = list(storage.stored(header.in_order()))
            if stored or not header.tensors:  # a file that held only parts of other files' weights is dropped
                shards.append((_file_name(part, index), stored))
        if limit is not None:
            shards = list(_reshard(sources, part, [info for _, infos in shards for info in infos], limit))
        for name, infos in shards:
            place = f"{part.folder}/{name}" if part.folder else name
            yield Draft(place, part.folder, part, tuple(_targets(sources, infos, vae, number)))
            number += 1


def _reshard(sources: Sources, part: Part, infos: Iterable[Stored], limit: int) -> Iterator[tuple[str, list[Stored]]]:
    shards: list[list[Stored]] = [[]]
    size = 0
    for info in infos:
        count = nbytes(dtype_of(sources, info), info.shape)
        if shards[-1] and size + count > limit:
            shards.append([])
            size = 0
        shards[-1].append(info)
        size += count
    stem = _stem(part)
    for number, shard in enumerate(shards, 1):
        suffix = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        yield f"{stem}{suffix}.safetensors", shard


def _targets(sources: Sources, infos: Iterable[Stored], vae: Mapping[str, Stored], file: int) -> Iterator[Target]:
    offset, rounding = 0, sources.recipe.output.rounding
    for base in infos:
        weight = replace(vae[base.key], key=base.key, name=base.name) if base.key in vae else base
        dtype = dtype_of(sources, base)
        is_rounded = not is_fixed(sources.packing, base) and not DTYPES[dtype].is_fine
        seed = rounding.seed if rounding.is_drawn and is_rounded else None
        target = Target(
            base.key, base.name, whole(base.key, base.shape), (weight,), dtype, base.shape, file, offset, seed
        )
        offset += target.nbytes
        yield target


def _file_name(part: Part, index: int) -> str:
    path = part.files[index].path
    return f"{_stem(part)}.safetensors" if path.suffix.lower() in PICKLE_SUFFIXES else path.name


def _stem(part: Part) -> str:
    stem = re.sub(r"-\d+-of-\d+$", "", part.files[0].path.stem)
    return stem.replace("pytorch_model", "model") if stem.startswith("pytorch_model") else stem


# -- beside the weights ----------------------------------------------------------------------------------


def embeddings_of(sources: Sources, path: Path, ledgers: Iterable[Ledger]) -> Iterator[Embedding]:
    """Plan a file beside the output for each learned embedding.

    If the files of two tokens would have the same name, they are numbered in the order of the LoRAs.
    """
    stem = path.name if is_folder(sources) else path.stem
    taken: set[str] = set()
    for number, ledger in enumerate(ledgers):
        for learned in ledger.embeddings:
            word = file_stem(learned.token)
            names = (f"{word}-{count}" if count > 1 else word for count in itertools.count(1))
            chosen = next(name for name in names if name.casefold() not in taken)
            taken.add(chosen.casefold())
            place = path.with_name(f"{stem}.{chosen}.safetensors")
            check_is_no_input(sources, place)
            yield Embedding(place, number, learned.token, learned.vectors)


def is_indexed(sources: Sources, part: Part, files: int) -> bool:
    """Tell whether a part with so many files gets an index."""
    has_index = part.index is not None and sources.recipe.output.shard_size is None
    return is_folder(sources) and (files > 1 or has_index)


def indexes_of(sources: Sources, storage: Storage, drafts: Sequence[Draft]) -> dict[str, str]:
    """Write the index of every part that has several files or had an index."""
    texts = {}
    for part in sources.base.parts:
        own = [draft for draft in drafts if draft.part is part]
        if not is_indexed(sources, part, len(own)):
            continue
        name = part.index or index_name(_stem(part))
        weight_map = {target.name: PurePosixPath(draft.name).name for draft in own for target in draft.targets}
        size = sum(target.nbytes for draft in own for target in draft.targets)
        said = index_form(part, said_in_index(part, storage.changes[part.folder]))
        index = {"metadata": {"total_size": size, **said}, "weight_map": dict(sorted(weight_map.items()))}
        texts[f"{part.folder}/{name}" if part.folder else name] = json.dumps(index, indent=2) + "\n"
    return texts


def index_name(stem: str) -> str:
    """Name the index of shards, with a variant such as fp16 where diffusers and transformers look for it."""
    named = re.fullmatch(r"((?:diffusion_)?(?:pytorch_)?model)\.(\w+)", stem)
    return f"{named[1]}.safetensors.index.{named[2]}.json" if named else f"{stem}.safetensors.index.json"


def configs_of(sources: Sources, storage: Storage, drafts: Sequence[Draft]) -> dict[str, str | None]:
    """Update dtypes, widths and storage in the files beside the weights; None for a file that is dropped."""
    base = sources.base
    words = {dtype.name: str(dtype.torch) for dtype in DTYPES.values() if dtype.is_output}
    texts: dict[str, str | None] = {}
    for part in base.parts if base.is_folder else ():
        place = str(PurePosixPath(part.folder, "config.json"))
        floats = {target.dtype for draft in drafts if draft.part is part for target in draft.targets} & words.keys()
        is_cast = sources.recipe.output.dtype != "keep" and len(floats) == 1
        said = said_in_files(sources.evidence.beside, part.folder, storage.changes[part.folder])
        if part is base.parts[0] and "" not in storage.changes:
            said |= said_in_files(sources.evidence.beside, "", storage.change)
        if (is_cast or storage.decoded) and Path(place) in base.side_files:
            config = sources.evidence.document(place)
            plain = dict(said.get(place) or config)
            stale = {name: words[min(floats)] for name in ("torch_dtype", "dtype") if is_cast and name in config}
            if (plain := plain | stale | _widths(storage.grown.values(), part, config)) != config:
                said[place] = plain
        for name, content in said.items():
            texts[name] = json.dumps(content, indent=2, ensure_ascii=False) + "\n" if content is not None else None
    return texts


def _widths(grown: Iterable[Stored], part: Part, config: Mapping[str, object]) -> dict[str, object]:
    """Return the configuration fields that say that a network's first layer now reads more channels."""
    for info in grown:
        before, after = info.first.shape[1:2], info.shape[1:2]
        if info.key.startswith(f"{part.folder}/") and [config.get("in_channels")] == [*before]:
            return {"in_channels": after[0], "out_channels": config.get("out_channels") or before[0]}
    return {}
