"""Step 3 of the flow: `Sources` in; a `Plan` out: every header, offset and step, before a byte is written.

Pure: no tensor is read. Everything after the plan only obeys it.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path, PurePosixPath

from lorabake import __version__
from lorabake.adapters import dora
from lorabake.adapters.kind import matrix
from lorabake.errors import FileError, MatchError, RecipeError, TargetError, lines_of
from lorabake.keymap.embeddings import Vectors, file_stem
from lorabake.matching import Matcher
from lorabake.matching.ledger import Ledger
from lorabake.matching.patches import Patch
from lorabake.matching.ties import find_tie
from lorabake.planning import provenance
from lorabake.recipe import Recipe
from lorabake.sources import GENERIC, Sources, model_config, resolve
from lorabake.sources.translation import left_out_of
from lorabake.tensors.checkpoint import PICKLE_SUFFIXES, Checkpoint, Part, read_object
from lorabake.tensors.dtypes import DTYPES, is_output, named, nbytes
from lorabake.tensors.header import Fingerprint, Header, TensorInfo
from lorabake.tensors.packing import PackedInfo
from lorabake.tensors.safetensors import encode_header
from lorabake.tensors.small import noting
from lorabake.tensors.statements import (
    LAYERS,
    Change,
    index_form,
    is_under,
    modules_of,
    said_in_files,
    said_in_header,
    said_in_index,
    said_of_layers,
)

_NAME_A_DTYPE = (
    "Packed weights are decoded, and not packed again: say what they become with output.dtype (such as bfloat16)."
)

BLOCK = 4096
"""Bytes: untouched ranges keep the base's place relative to such blocks, so that they can be reflinked."""

TILE_VALUES = 1 << 18
"""Values of a tensor that the CPU computes at a time; as float32 a tile of 1 MiB stays in a core's cache."""

DEVICE_TILE_VALUES = 1 << 24
"""Values that an accelerator computes at a time: 64 MiB of float32.

How products are cut decides the order of their sums, and so the last bits. It is fixed here, by device class; the
memory that happens to be free never changes it.
"""

RUNTIME_BYTES = 190 << 20
"""Anonymous memory of a process that has imported torch and runs two workers, as measured on Linux."""


@dataclass(frozen=True, slots=True)
class Target:
    """Say where one tensor comes from and where it goes: `file` of the plan, `offset` from that file's data.

    `encoding` says how it is stored, where it is stored scaled and stays so. What is computed for it is rounded by
    chance where `is_drawn`.
    """

    key: str
    source: TensorInfo
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    encoding: PackedInfo | None = None
    is_drawn: bool = False

    @property
    def scale_key(self) -> str:
        """Name the tensor whose values multiply this one's; nothing where it is stored plain."""
        return self.encoding.parts["scale"].key if self.encoding is not None else ""

    @property
    def nbytes(self) -> int:
        """Count the bytes written."""
        return nbytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy bytes `start` to `stop` of an input to `offset` in the data of a planned file."""

    source: Path
    start: int
    stop: int
    file: int
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Say which rows of its module a patch has in a piece of a tensor."""

    patch: Patch
    rows: slice


@dataclass(frozen=True, slots=True)
class Bake:
    """Compute tensors that patches touch together; without patches, cast one.

    `summed` is false where the recipe's method combines deltas otherwise.
    """

    targets: tuple[Target, ...]
    patches: tuple[Patch, ...]
    summed: bool = True

    @property
    def by_rows(self) -> bool:
        """Tell whether any rows of the tensor can be computed without the others."""
        if len(self.targets) > 1 or isinstance(self.targets[0].source, PackedInfo):
            return False
        return self.summed and all(not needs_whole(patch) for patch in self.patches)

    def matrix(self, target: Target) -> tuple[int, int]:
        """Return how many rows a target has, as its patches count them, and how many values in each."""
        for patch in self.patches:
            if target.key in patch.view.keys:
                width = patch.view.width
                return prod(target.shape) // max(width, 1), width
        return matrix(target.shape)

    def pieces(self) -> Iterator[tuple[str, int, int, tuple[Piece, ...]]]:
        """Cut the targets' rows where any patch begins or ends: (tensor, first row, last row, who is there)."""
        for target in self.targets:
            summed = [patch for patch in self.patches if not patch.kind.replaces]
            spans = [(patch, span) for patch in summed for span in patch.view.spans(target.key)]
            cuts = sorted({at for _, span in spans for at in (span.stored.start, span.stored.stop)})
            for start, stop in itertools.pairwise(cuts):
                there = tuple(
                    Piece(patch, piece.own) for patch, span in spans if (piece := span.cut(start, stop)) is not None
                )
                if there:
                    yield target.key, start, stop, there


@dataclass(frozen=True, slots=True)
class OutputFile:
    """Describe one planned file: its path below the output, its header's entries, and how the header is aligned."""

    name: str
    targets: tuple[Target, ...]
    order: tuple[str, ...]
    metadata: Mapping[str, str]
    phase: int
    align: int

    def header(
        self,
        digests: Mapping[str, str] | None = None,
        hashes: Mapping[str, str] | None = None,
        device: str | None = "",
    ) -> bytes:
        """Encode the header, digests and hashes still zeros, or filled in; the length is the same.

        `device` names the device classes that computed, once that is known; None leaves them out, as bakes once did.
        """
        text = dict(self.metadata) | dict(hashes or {})
        room = 0
        if device is not None:
            text[provenance.DEVICE] = device
            room = provenance.DEVICE_ROOM - len(device)
        for placeholder, digest in (digests or {}).items():
            place, filled = f'"sha256":"{placeholder}"', f'"sha256":"{digest}"'  # a file's name may look like zeros
            text["lorabake.inputs"] = text["lorabake.inputs"].replace(place, filled)
        entries = ((target.source.name, target.dtype, target.shape) for target in self.targets)
        return encode_header(entries, text, phase=self.phase, align=self.align, order=self.order, room=room)

    @property
    def data_size(self) -> int:
        """Count the bytes of tensor data."""
        return self.targets[-1].offset + self.targets[-1].nbytes if self.targets else 0


@dataclass(frozen=True, slots=True)
class Embedding:
    """Describe one planned file of textual inversion, beside the output: a LoRA's learned embedding of one token."""

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
class Plan:
    """Hold all that a bake will do. `digests` maps each placeholder in the metadata to the file it stands for."""

    sources: Sources
    path: Path
    is_folder: bool
    files: tuple[OutputFile, ...]
    texts: Mapping[str, str]
    copies: tuple[Copy, ...]
    bakes: tuple[Bake, ...]
    ledgers: tuple[Ledger, ...]
    digests: Mapping[str, Path]
    notes: tuple[str, ...]
    embeddings: tuple[Embedding, ...] = ()
    left_out: frozenset[str] = frozenset()
    """Files of the base's folder that say how weights are stored, which is true no more."""
    read: Mapping[Path, Fingerprint] = field(default_factory=dict)
    """The small files that decided something, such as configurations, as they were then."""

    @property
    def size(self) -> int:
        """Count the bytes of all files with weights."""
        return sum(len(file.header()) + file.data_size for file in self.files)

    @property
    def side_files(self) -> tuple[Path, ...]:
        """List the files beside the base's weights that the output has, too, as they are or rewritten."""
        base = self.sources.base
        files = base.side_files if base.is_folder else ()
        return tuple(path for path in files if path.as_posix() not in self.left_out)

    @property
    def patches(self) -> tuple[Patch, ...]:
        """List every patch of every step once."""
        return tuple({id(patch): patch for bake in self.bakes for patch in bake.patches}.values())

    @property
    def baked_bytes(self) -> int:
        """Count the bytes that are computed."""
        return sum(target.nbytes for bake in self.bakes for target in bake.targets)

    @property
    def copied_bytes(self) -> int:
        """Count the bytes that are copied as they are."""
        return sum(copy.stop - copy.start for copy in self.copies)

    def peak_memory(self, workers: int = 2) -> int:
        """Estimate the bytes of anonymous memory that a bake needs."""
        wide = 8 if self.sources.recipe.in_float64 else 4
        largest = max((_working_values(bake) for bake in self.bakes), default=0)
        return RUNTIME_BYTES + workers * wide * largest

    def report(self) -> dict[str, object]:
        """Put the plan in figures, for machines."""
        key_map = self.sources.key_map
        return {
            "architecture": key_map.architecture.name,
            "layout": key_map.layout if key_map.placed else None,
            "components": {name: place[0].name for name, place in key_map.placed.items()},
            "output": {
                "files": [file.name for file in self.files],
                "bytes": self.size,
                "tensors": sum(len(file.targets) for file in self.files),
            },
            "baked": {"tensors": sum(len(bake.targets) for bake in self.bakes), "bytes": self.baked_bytes},
            "copied": {
                "tensors": sum(len(file.targets) for file in self.files)
                - sum(len(bake.targets) for bake in self.bakes),
                "bytes": self.copied_bytes,
            },
            "peak_memory_bytes": self.peak_memory(),
            "loras": [
                {
                    "path": ledger.lora,
                    "family": ledger.family,
                    "tensors": ledger.tensors,
                    "applied": ledger.applied,
                    "excluded": dict(ledger.excluded),
                    "modules": dict(ledger.modules),
                    "kinds": dict(ledger.kinds),
                    "ranks": {str(rank): count for rank, count in sorted(ledger.ranks.items())},
                    "notes": ledger.notes,
                }
                for ledger in self.ledgers
            ],
            "embeddings": [
                {
                    "path": each.path.name,
                    "lora": self.ledgers[each.lora].lora,
                    "token": each.token,
                    "tensors": {vectors.name: list(vectors.shape) for vectors in each.vectors},
                    "bytes": each.size,
                }
                for each in self.embeddings
            ],
            "notes": list(self.notes),
        }


def plan(recipe: Recipe, output: str | Path | None = None) -> Plan:
    """Plan a bake from headers alone.

    `output` overrides the recipe's path. Raise FileError for a faulty input, MatchError for a LoRA that does
    not fit whole, TargetError for an output that is an input or of the wrong form.
    """
    with noting() as read:
        made = _Planner(resolve(recipe), Path(output) if output else recipe.locate(recipe.output.path)).plan()
    return replace(made, read=read)


def needs_whole(patch: Patch) -> bool:
    """Tell whether a patch's effect on one row depends on other rows of the base tensor."""
    if patch.view.transpose:
        return patch.has_dora or not patch.kind.low_rank
    axis = dora.axis(patch.shapes, patch.view.shape, patch.kind.length_axis) if patch.has_dora else None
    column = patch.has_dora and dora.reads_columns(patch.semantics, axis)
    return column or not patch.kind.by_rows


@dataclass(frozen=True, slots=True)
class _Draft:
    """Collect the tensors of one file to be, below the part of the base that it comes from."""

    name: str
    part: Part
    targets: tuple[Target, ...]


class _Planner:
    def __init__(self, sources: Sources, path: Path) -> None:
        self.sources, self.path, self.recipe = sources, path, sources.recipe
        self.notes: list[str] = []
        self.grown: dict[str, PackedInfo] = {}

    def plan(self) -> Plan:
        self._check_form()
        check_is_no_input(self.sources, self.path)
        self._check_dtypes()
        patches, ledgers = self._match()
        embeddings = tuple(self._embeddings(ledgers))
        touched: dict[str, list[Patch]] = {}
        for patch in patches:
            for key in patch.view.keys:
                touched.setdefault(key, []).append(patch)
        self._check_rows(touched)
        self.grown = {key: info for key, info in self.sources.packing.grown.items() if key in touched}
        vae = self._replace_vae()
        drafts = list(self._drafts(vae))
        summed = self.recipe.method.name == "sum"
        groups = _group(patches, summed=summed)
        by_key = {target.key: target for draft in drafts for target in draft.targets}
        assert len(by_key) == sum(len(draft.targets) for draft in drafts), "a tensor is planned twice"
        bakes = []
        for target in by_key.values():
            group = groups.get(target.key, (target.key,))
            if target.key in touched and group[0] == target.key:
                together = {id(patch): patch for key in group for patch in touched[key]}
                chosen = tuple(sorted(together.values(), key=lambda patch: patch.lora))
                targets = [by_key[key] for key in group]
                targets += [by_key[each.scale_key] for each in targets if each.scale_key]
                bakes.append(Bake(tuple(targets), chosen, summed))
            elif target.key not in touched and target.dtype != target.source.dtype:
                bakes.append(Bake((target,), ()))
        baked = {target.key for bake in bakes for target in bake.targets}
        copies = tuple(_copies(target for target in by_key.values() if target.key not in baked))
        self._note(touched)
        if self.recipe.output.rounding.is_drawn and not any(t.is_drawn for bake in bakes for t in bake.targets):
            self.notes.append("rounding: stochastic changes nothing here: nothing is rounded to 16 or 8 bits")
        digests, files = self._describe(drafts)
        configs = self._configs(drafts) if self._is_folder else {}
        return Plan(
            sources=self.sources,
            path=self.path,
            is_folder=self._is_folder,
            files=files,
            texts=self._indexes(drafts) | {name: text for name, text in configs.items() if text is not None}
            if self._is_folder
            else {},
            copies=copies,
            bakes=tuple(bakes),
            ledgers=tuple(ledgers),
            digests=digests,
            notes=tuple(self.notes),
            embeddings=embeddings,
            left_out=frozenset(name for name, text in configs.items() if text is None),
        )

    # -- the output's form ----------------------------------------------------------------------------

    @property
    def _is_folder(self) -> bool:
        return self.sources.base.is_folder or self.recipe.output.shard_size is not None

    def _check_form(self) -> None:
        if self._is_folder and self.path.suffix in (".safetensors", ".ckpt"):
            why = "shard_size is set" if not self.sources.base.is_folder else "the base is a folder"
            raise TargetError(f"{self.path}: {why}, so the output must be a folder, not a file")
        if not self._is_folder and self.path.suffix != ".safetensors":
            raise TargetError(f"{self.path}: the output must be a .safetensors file")

    def _check_dtypes(self) -> None:
        wanted, placed = self.recipe.output.dtype, self.sources.key_map.placed
        if not isinstance(wanted, dict):
            return
        for name in wanted:
            if name not in placed:
                raise RecipeError(
                    f"output.dtype names the component {name!r}, and the base has none",
                    f"The base has: {', '.join(placed) or 'no component of a known name'}",
                )

    def _embeddings(self, ledgers: list[Ledger]) -> Iterator[Embedding]:
        """Plan a file beside the output for each learned embedding.

        Files of tokens that come to one name are numbered, in the order of the LoRAs.
        """
        stem = self.path.name if self._is_folder else self.path.stem
        taken: set[str] = set()
        for number, ledger in enumerate(ledgers):
            for token, vectors in ledger.embeddings.items():
                word = file_stem(token)
                names = (f"{word}-{count}" if count > 1 else word for count in itertools.count(1))
                chosen = next(name for name in names if name.casefold() not in taken)
                taken.add(chosen.casefold())
                path = self.path.with_name(f"{stem}.{chosen}.safetensors")
                check_is_no_input(self.sources, path)
                yield Embedding(path, number, token, tuple(vectors.values()))

    # -- what happens to each tensor -------------------------------------------------------------------

    def _match(self) -> tuple[list[Patch], list[Ledger]]:
        if not self.sources.loras:
            return [], []
        key_map = self.sources.key_map
        matcher = Matcher(key_map, find_tie(model_config(self.sources.base), key_map))
        placed = [matcher.match(index, lora) for index, lora in enumerate(self.sources.loras)]
        patches = [patch for found, _ in placed for patch in found]
        replaced: dict[str, Patch] = {}
        for patch in patches:
            for key in patch.view.keys if patch.kind.replaces else ():
                if key in replaced:
                    first = self.sources.loras[replaced[key].lora].name
                    raise MatchError(
                        f"LoRA {self.sources.loras[patch.lora].name!r}: replaces {key} whole, as {first!r} does",
                        "Leave one of them out with blocks or components.",
                    )
                replaced[key] = patch
        for patch in patches:
            for slot, info in patch.tensors.items():
                single, whole = slot in patch.kind.numbers, slot in patch.kind.integers
                if not _is_readable(info, integers=single or whole) or (single and prod(info.shape) != 1):
                    wanted = "one number" if single else "whole numbers" if whole else "floats"
                    name = self.sources.loras[patch.lora].name
                    raise MatchError(f"LoRA {name!r}: {info.name} is {info.dtype} {list(info.shape)}, not {wanted}")
            for key in patch.view.keys:
                if fault := self._stored_fault(key):
                    name = self.sources.loras[patch.lora].name
                    raise MatchError(*lines_of(f"LoRA {name!r}: {patch.module} would change {key}, ", fault))
        return patches, [ledger for _, ledger in placed]

    def _check_rows(self, touched: Mapping[str, list[Patch]]) -> None:
        """Refuse what would have to count one tensor's rows in two ways, or to part values of one row."""
        method = self.recipe.method.name
        for key, patches in touched.items():
            first = patches[0]
            for patch in patches:
                name = self.sources.loras[patch.lora].name
                if patch.view.width != first.view.width:
                    raise MatchError(
                        f"LoRA {name!r}: {patch.module} changes {key} as a whole, and {first.module} single experts",
                        "Bake one of them after the other.",
                    )
                if patch.view.picked is not None and method != "sum":
                    raise MatchError(
                        f"LoRA {name!r}: {patch.module} is parts of the rows of {key}",
                        f"The method {method} takes rows whole: use sum.",
                    )

    def _stored_fault(self, key: str) -> str | None:
        """Say why a weight cannot be changed in the way in which it is stored, to follow its name."""
        info, packing = self.sources.key_map.tensors[key], self.sources.packing
        if key in packing.strange:
            return packing.strange[key].why
        if isinstance(info, PackedInfo):
            if self._dtype(key, info) == info.dtype:
                return f"which is packed ({info.dtype})\n{_NAME_A_DTYPE}"
        elif not is_output(info.dtype) and key not in packing.scaled:
            return (
                f"whose dtype is {info.dtype}\n"
                "This version bakes into float8, float16, bfloat16, float32 and float64 tensors, and scaled int8."
            )
        return None

    def _replace_vae(self) -> dict[str, TensorInfo]:
        """Map each VAE tensor of the base to the one that takes its place."""
        vae, vae_map = self.sources.vae, self.sources.vae_map
        if vae is None or vae_map is None:
            return {}
        key_map = self.sources.key_map
        if "vae" not in key_map.modules:
            raise FileError(f"{vae.path}: the base has no VAE that it could replace")
        replaced: dict[str, TensorInfo] = {}
        used = set()
        for name, module in key_map.modules["vae"].items():
            other = vae_map.modules["vae"].get(name)
            for parameter, view in module.views.items():
                key = view.regions[0].key
                source = other.views.get(parameter) if other else None
                if source is None:
                    continue
                info = vae.tensors[source.regions[0].key]
                if key in self._still_stored:
                    way = key_map.tensors[key].dtype if key in key_map.tensors else "codes"
                    raise FileError(
                        f"{vae.path}: cannot take the place of the base's VAE, whose {key} is stored as {way}",
                        "Make it a plain one with output.dtype (such as {vae: float32}).",
                    )
                if _squeezed(info.shape) != _squeezed(self.sources.base.tensors[key].shape):
                    shapes = f"{info.shape}, the base's is {self.sources.base.tensors[key].shape}"
                    raise FileError(f"{vae.path}: {info.name} is {shapes}: a VAE of another model?")
                dtype = self.sources.base.tensors[key].dtype
                if info.dtype != dtype and not (_is_readable(info) and is_output(dtype)):
                    raise FileError(f"{vae.path}: {info.name} is {info.dtype}, and cannot become the base's {dtype}")
                replaced[key] = info
                used.add(info.key)
        wanted = [key for key, owner in key_map.owner.items() if owner == "vae"]
        missing = [key for key in wanted if key not in replaced and key not in self._decoded]
        if missing:
            raise FileError(f"{vae.path}: lacks {len(missing)} of the {len(wanted)} tensors of a VAE: {missing[0]} …")
        left = Counter(re.sub(r"\d+", "N", key) for key in vae.tensors if key not in used)
        if left:
            names = ", ".join(f"{name} ×{count}" for name, count in left.most_common(5))
            self.notes.append(f"of the VAE file these have no place in the base: {names}")
        return replaced

    def _dtype(self, key: str, base: TensorInfo) -> str:
        """Return the output dtype: only weights are cast, and of a known family only its networks'."""
        wanted, packing = self.recipe.output.dtype, self.sources.packing
        owner = self.sources.key_map.owner.get(key)
        if isinstance(wanted, dict):
            wanted = wanted.get(owner or "", "keep")
        if isinstance(base, PackedInfo) and key in packing.grown:
            return self._dtype(key, base.parts["weight"])
        if wanted == "keep" or not base.nbytes or owner is None or self._is_fixed(key, base):
            return base.dtype
        if not is_output(base.dtype) and key not in packing.scaled and not isinstance(base, PackedInfo):
            return base.dtype
        return named(wanted).name

    def _is_fixed(self, key: str, info: TensorInfo) -> bool:
        """Tell whether a tensor stays as it is: a part of a stored weight, or one that cannot be decoded."""
        packing = self.sources.packing
        return key in packing.strange or (key in packing.fixed and not isinstance(info, PackedInfo))

    @cached_property
    def _decoded(self) -> dict[str, PackedInfo]:
        """Map every tensor that is part of a weight to be decoded to that weight."""
        packing, found = self.sources.packing, dict(self.grown)
        for key, info in (*packing.packed.items(), *packing.scaled.items()):
            stored = info.parts["weight"] if key in packing.scaled else info
            if self._dtype(key, stored) != stored.dtype:
                found |= dict.fromkeys((part.key for part in info.parts.values()), info)
            elif isinstance(self.sources.base.tensors.get(key), PackedInfo):  # no SafeTensors could hold it as it is
                raise FileError(f"{info.file}: {key} is packed ({info.dtype})", f"{_NAME_A_DTYPE}")
        return found

    @cached_property
    def _plain(self) -> frozenset[str]:
        """Collect the weights that were stored otherwise and become plain ones."""
        return frozenset(info.key for info in self._decoded.values() if info.key not in self.grown)

    @cached_property
    def _still_stored(self) -> frozenset[str]:
        """Collect the weights that stay stored otherwise than as plain ones."""
        packing = self.sources.packing
        return frozenset({*packing.packed, *packing.scaled, *packing.strange} - self._plain)

    def _stored(self, infos: Iterable[TensorInfo]) -> Iterator[TensorInfo]:
        """Put decoded weights in the place of the first of their parts; what says how they were stored goes."""
        for info in infos:
            weight = self._decoded.get(info.key)
            if weight is None:
                if not info.key.endswith("scaled_fp8") or not self._is_over(info.key):
                    yield info
            elif info.key == next(iter(weight.parts.values())).key:
                yield weight

    def _is_over(self, marker: str) -> bool:
        """Tell whether a marker speaks of weights that were scaled, and of none that still is."""
        plain, stored = (any(is_under(key, marker) for key in keys) for keys in (self._plain, self._still_stored))
        return plain and not stored

    # -- files -----------------------------------------------------------------------------------------

    def _drafts(self, vae: Mapping[str, TensorInfo]) -> Iterator[_Draft]:
        """Lay the tensors of the base out in files, each in the order of its data; `vae` says whose bytes serve."""
        limit, base = self.recipe.output.shard_size, self.sources.base
        number = 0
        for part in base.parts:
            shards = []
            for index, header in enumerate(part.files):
                stored = list(self._stored(header.in_order()))
                if stored or not header.tensors:  # parts of weights that lie elsewhere leave no file behind
                    shards.append((_file_name(part, index), stored))
            if limit is not None:
                shards = list(self._reshard(part, [info for _, infos in shards for info in infos], limit))
            for name, infos in shards:
                place = f"{part.folder}/{name}" if part.folder else name
                yield _Draft(place, part, tuple(self._targets(infos, vae, number)))
                number += 1

    def _reshard(self, part: Part, infos: list[TensorInfo], limit: int) -> Iterator[tuple[str, list[TensorInfo]]]:
        shards: list[list[TensorInfo]] = [[]]
        size = 0
        for info in infos:
            count = nbytes(self._dtype(info.key, info), info.shape)
            if shards[-1] and size + count > limit:
                shards.append([])
                size = 0
            shards[-1].append(info)
            size += count
        stem = _stem(part)
        for number, shard in enumerate(shards, 1):
            suffix = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
            yield f"{stem}{suffix}.safetensors", shard

    def _targets(self, infos: list[TensorInfo], vae: Mapping[str, TensorInfo], file: int) -> Iterator[Target]:
        offset = 0
        for base in infos:
            source = replace(vae.get(base.key, base), key=base.key, name=base.name)
            dtype, scaled = self._dtype(base.key, base), self.sources.packing.scaled.get(base.key)
            encoding = scaled if dtype == base.dtype else None
            drawn = self.recipe.output.rounding.is_drawn and not self._is_fixed(base.key, base)
            drawn = drawn and not DTYPES[dtype].is_fine
            target = Target(base.key, source, dtype, base.shape, file, offset, encoding, drawn)
            offset += target.nbytes
            yield target

    def _describe(self, drafts: list[_Draft]) -> tuple[dict[str, Path], tuple[OutputFile, ...]]:
        """Compose each file's metadata, with a distinct placeholder for every digest still to be taken."""
        recipe, sources = self.recipe, self.sources
        pending: dict[str, Path] = {}

        def placeholders(checkpoint: Checkpoint) -> dict[Path, str]:
            found = {}
            for header in checkpoint.headers:
                found[header.path] = f"{len(pending):064x}"
                pending[found[header.path]] = header.path
            return found

        stated = placeholders(sources.base) if recipe.base.sha256 else {}
        inputs: dict[str, object] = {
            "base": provenance.describe(sources.base, recipe.base.portable_path, stated),
            "loras": [
                provenance.describe(lora.checkpoint, lora.entry.portable_path, placeholders(lora.checkpoint))
                for lora in sources.loras
            ],
        }
        if sources.vae is not None and recipe.vae is not None:
            vae = placeholders(sources.vae)
            inputs["vae"] = provenance.describe(sources.vae, recipe.vae.portable_path, vae)
        base_headers = {header.path: header for part in sources.base.parts for header in part.files}
        counts = Counter(draft.part.folder for draft in drafts)
        file_names = [draft.name if self._is_folder else self.path.name for draft in drafts]
        listed = provenance.listed(inputs, file_names)
        recipe_text = recipe.normal_json()
        for header in [*base_headers.values()]:  # what a pickle holds rearranged lies in another file
            base_headers |= dict.fromkeys((info.file for info in header.tensors.values()), header)
        files = []
        for draft, name, told in zip(drafts, file_names, listed, strict=True):
            is_indexed = self._is_indexed(draft.part, counts[draft.part.folder])
            names = tuple(target.source.name for target in draft.targets)
            key = draft.targets[0].key if draft.targets else ""
            info = sources.base.tensors.get(key) or sources.key_map.tensors.get(key)
            first = base_headers[info.file] if info else None
            own = self._said(draft, first or next(iter(base_headers.values())), is_indexed=is_indexed)
            text = provenance.metadata(own, recipe_text, told, hashed=recipe.output.hash)
            phase = first.data_start % BLOCK if first else 0
            aligned = first is not None and phase % 8 == 0
            keeps = first is not None and len(first.tensors) == len(names)
            keeps = keeps and first is not None and {info.name for info in first.tensors.values()} == set(names)
            order = tuple(info.name for info in first.tensors.values()) if first and keeps else names
            files.append(
                OutputFile(name, draft.targets, order, text, phase if aligned else 0, BLOCK if aligned else 1)
            )
        return pending, tuple(files)

    def _said(self, draft: _Draft, first: Header, *, is_indexed: bool) -> dict[str, str]:
        """Return the base's own metadata for a file, with what it says of stored weights as far as it stays true.

        What an index says goes into the file if no index is written.
        """
        part, change = draft.part, self._changes[draft.part.folder]
        files = {target.source.file for target in draft.targets} | {first.path}
        numbers = self._numbers[part.folder]
        said = {} if is_indexed else said_in_index(part, change)
        told = [part.files[number].metadata for number in sorted(numbers[path] for path in files & numbers.keys())]
        told.append(said)
        texts = [each[LAYERS] for each in told if LAYERS in each]
        layers = said_of_layers(texts, change.plain, modules_of(part)) if texts else None
        changed = said_in_header(first, change) | {LAYERS: layers}
        kept = {name: changed.get(name, text) for name, text in (said | first.metadata | {LAYERS: ""}).items()}
        return {name: text for name, text in kept.items() if text is not None}

    @cached_property
    def _numbers(self) -> dict[str, dict[Path, int]]:
        """Map the files of each part of the base, by its folder, to their numbers in it."""
        parts = self.sources.base.parts
        return {part.folder: {header.path: number for number, header in enumerate(part.files)} for part in parts}

    @cached_property
    def _changes(self) -> dict[str, Change]:
        """Say of each component, by its folder, which layers become plain, by their own names."""
        packing, plain = self.sources.packing, dict[str, str]()
        for key, info in self._decoded.items():
            if info.key in self._plain:
                plain[key] = info.name.removesuffix(".weight")
        infos = (packing.packed.get(key) or packing.scaled.get(key) for key in self._still_stored)
        stored = {part.key for info in infos if info is not None for part in info.parts.values()}
        stored.update(*(packing.strange[key].parts for key in self._still_stored & packing.strange.keys()))
        changes = {}
        for part in self.sources.base.parts:
            keys = [info.key for header in part.files for info in header.tensors.values()]
            layers = tuple(dict.fromkeys(plain[key] for key in keys if key in plain))
            changes[part.folder] = Change(layers, is_partial=not stored.isdisjoint(keys))
        return changes

    @property
    def _change(self) -> Change:
        """Say the same of all components."""
        changes = self._changes.values()
        plain = dict.fromkeys(name for each in changes for name in each.plain)
        return Change(tuple(plain), is_partial=any(each.is_partial for each in changes))

    def _is_indexed(self, part: Part, files: int) -> bool:
        """Tell whether a part that gets so many files gets an index."""
        has_index = part.index is not None and self.recipe.output.shard_size is None
        return self._is_folder and (files > 1 or has_index)

    def _indexes(self, drafts: list[_Draft]) -> dict[str, str]:
        """Write the index of every part that has several files, or had an index."""
        texts = {}
        for part in self.sources.base.parts:
            own = [draft for draft in drafts if draft.part is part]
            if not self._is_indexed(part, len(own)):
                continue
            name = part.index or _index_name(_stem(part))
            weight_map = {
                target.source.name: PurePosixPath(draft.name).name for draft in own for target in draft.targets
            }
            size = sum(target.nbytes for draft in own for target in draft.targets)
            index = {
                "metadata": {"total_size": size, **index_form(part, said_in_index(part, self._changes[part.folder]))},
                "weight_map": dict(sorted(weight_map.items())),
            }
            texts[f"{part.folder}/{name}" if part.folder else name] = json.dumps(index, indent=2) + "\n"
        return texts

    def _configs(self, drafts: list[_Draft]) -> dict[str, str | None]:
        """Rewrite what the files beside the weights say of dtypes, widths and stored weights; None for what goes."""
        words = {dtype.name: str(dtype.torch) for dtype in DTYPES.values() if dtype.is_output}
        texts: dict[str, str | None] = {}
        for part in self.sources.base.parts if self.sources.base.is_folder else ():
            place = str(PurePosixPath(part.folder, "config.json"))
            cast = {target.dtype for draft in drafts if draft.part is part for target in draft.targets}
            floats = cast & words.keys()
            is_cast = self.recipe.output.dtype != "keep" and len(floats) == 1
            said = said_in_files(self.sources.base, part.folder, self._changes[part.folder])
            if part is self.sources.base.parts[0] and "" not in self._changes:
                said |= said_in_files(self.sources.base, "", self._change)
            if (is_cast or self._decoded) and Path(place) in self.sources.base.side_files:
                config = read_object(self.sources.base.path / place)
                plain = said.get(place) or config
                stale = {name: words[min(floats)] for name in ("torch_dtype", "dtype") if is_cast and name in config}
                if (plain := plain | stale | self._widths(part, config)) != config:
                    said[place] = plain
            for name, found in said.items():
                texts[name] = json.dumps(found, indent=2, ensure_ascii=False) + "\n" if found is not None else None
        return texts

    def _widths(self, part: Part, config: Mapping[str, object]) -> dict[str, object]:
        """Say in diffusers' words that the first layer of a network reads more channels than it did."""
        for info in self.grown.values():
            before, after = info.parts["weight"].shape[1:2], info.shape[1:2]
            if info.key.startswith(f"{part.folder}/") and [config.get("in_channels")] == [*before]:
                return {"in_channels": after[0], "out_channels": config.get("out_channels") or before[0]}
        return {}

    def _note(self, touched: Mapping[str, object]) -> None:
        key_map = self.sources.key_map
        if key_map.architecture.name == GENERIC and self.sources.loras:
            self.notes.append(
                "no table knows the base's family: modules are matched by the base's own names and their shapes"
            )
        ways = Counter(info.title for info in {info.key: info for info in self._decoded.values()}.values())
        for key, info in self.grown.items():
            before, after = (" × ".join(map(str, each.shape)) for each in (info.parts["weight"], info))
            self.notes.append(f"{key} grows from {before} to {after}, as a LoRA asks")
            del ways[info.title]
        self._note_left()
        if ways:
            told = ", ".join(f"{count} {way}" for way, count in ways.most_common())
            self.notes.append(f"decoded into plain weights: {told}")
        if any(info.dtype == "AWQ" and info.key in touched for info in self._decoded.values()):
            told = "AWQ moves factors from a layer's inputs into the layer before it"
            self.notes.append(f"{told}: a LoRA fits exactly where it was trained on this very checkpoint")
        if left_out := left_out_of(self.sources.base):
            self.notes.append(f"left out, since transformers works it out anew: {', '.join(left_out)}")
        ema = sum(key.startswith("model_ema.") for key in self.sources.base.tensors)
        if ema and self.sources.loras:
            self.notes.append(
                f"the base's {ema} EMA copies (model_ema.*) stay as they are; programs that load them see no LoRA"
            )

    def _note_left(self) -> None:
        """Say what output.dtype leaves as it is, since it cannot be decoded."""
        wanted = self.recipe.output.dtype
        components = wanted if isinstance(wanted, dict) else {}
        left = {
            key: each
            for key, each in self.sources.packing.strange.items()
            if wanted != "keep" and (not components or self._component(each.parts) in components)
        }
        for title, count in Counter(each.title for each in left.values()).most_common():
            first = next(key for key, each in left.items() if each.title == title)
            stay = f"{count} weight{'s stay as they are' if count > 1 else ' stays as it is'}"
            self.notes.append(f"{stay}, since this version cannot decode {title}: {first}{' …' * (count > 1)}")

    def _component(self, keys: Iterable[str]) -> str:
        owner = self.sources.key_map.owner
        return next((owner[key] for key in keys if key in owner), "")


def check_is_no_input(sources: Sources, written: Path) -> None:
    """Raise TargetError if a path that a bake writes is an input, is in an input folder, or has an input in it.

    Folders are known by inode: a link or a second mount gives one folder two names.
    """
    try:
        target = written.resolve(strict=False)
    except (OSError, RuntimeError) as error:
        raise TargetError(f"{written}: cannot follow this path: {error}") from None
    inputs: list[tuple[Path, bool]] = []
    for checkpoint, _ in sources.inputs:
        inputs += [(checkpoint.path, checkpoint.is_folder), *((header.path, False) for header in checkpoint.headers)]
    if sources.recipe.file is not None:
        inputs.append((sources.recipe.file, False))
    known = functools.cache(_inode)  # shards lie in one folder
    place, around = known(target.parent), {inode for each in target.parents if (inode := known(each))}
    itself = known(target) if os.path.isdir(target) else None
    for path, is_folder in inputs:
        real = path.resolve()
        is_same = target == real or (place is not None and (place, target.name) == (known(real.parent), real.name))
        if is_same or (is_folder and known(real) in {*around, itself} - {None}):
            raise TargetError(f"{written}: is an input of this recipe ({path}); choose another output")
        if itself is not None and any(itself == known(each) for each in real.parents):
            raise TargetError(f"{written}: holds an input of this recipe ({path}); choose another output")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _file_name(part: Part, index: int) -> str:
    path = part.files[index].path
    return f"{_stem(part)}.safetensors" if path.suffix.lower() in PICKLE_SUFFIXES else path.name


def _stem(part: Part) -> str:
    stem = re.sub(r"-\d+-of-\d+$", "", part.files[0].path.stem)
    return stem.replace("pytorch_model", "model") if stem.startswith("pytorch_model") else stem


def _index_name(stem: str) -> str:
    """Name the index of shards; a variant such as fp16 stands where diffusers and transformers look for it."""
    named = re.fullmatch(r"((?:diffusion_)?(?:pytorch_)?model)\.(\w+)", stem)
    return f"{named[1]}.safetensors.index.{named[2]}.json" if named else f"{stem}.safetensors.index.json"


def _group(patches: Iterable[Patch], *, summed: bool) -> dict[str, tuple[str, ...]]:
    """Join base tensors that a patch can only change together; name each group by its first tensor."""
    group: dict[str, list[str]] = {}
    for patch in patches:
        if len(patch.view.keys) > 1 and (needs_whole(patch) or not summed):
            merged = list(dict.fromkeys(key for each in patch.view.keys for key in group.get(each, [each])))
            group |= dict.fromkeys(merged, merged)
    return {key: tuple(keys) for key, keys in group.items()}


def _copies(targets: Iterable[Target]) -> Iterator[Copy]:
    """Join tensors that follow each other in both files into one range."""
    run: Copy | None = None
    for target in targets:
        source = target.source
        if (
            run
            and (run.source, run.stop, run.file) == (source.file, source.start, target.file)
            and run.offset + run.stop - run.start == target.offset
        ):
            run = Copy(run.source, run.start, source.stop, run.file, run.offset)
            continue
        if run and run.stop > run.start:
            yield run
        run = Copy(source.file, source.start, source.stop, target.file, target.offset)
    if run and run.stop > run.start:
        yield run


def _working_values(bake: Bake) -> int:
    """Count the values that one worker holds while it computes a step: factors, what draws take, and weights."""
    factors = 0
    for patch in bake.patches:
        for info in patch.tensors.values():
            rows, columns = matrix(info.shape)
            factors += 2 * rows * columns
        if "drawn" in patch.settings:
            factors += 2 * patch.kind.drawn_values(patch.settings)
    largest = max(bake.matrix(target)[1] for target in bake.targets)
    if any(target.is_drawn for target in bake.targets):
        factors += 8 * max(TILE_VALUES, largest)
    if bake.by_rows:
        return factors + 3 * max(TILE_VALUES, largest)
    whole = sum(rows * columns for rows, columns in (matrix(target.shape) for target in bake.targets))
    packed = any(isinstance(target.source, PackedInfo) for target in bake.targets)
    turned = any(target.encoding is not None and target.encoding.facts.get("rotation") for target in bake.targets)
    return factors + (10 if packed else 8 if turned else 4) * whole


def _is_readable(info: TensorInfo, *, integers: bool = False) -> bool:
    """Tell whether a bake and its verification read a tensor as numbers: floats, or also `integers`."""
    if isinstance(info, PackedInfo):
        return True
    dtype = DTYPES[info.dtype]
    return dtype.is_number and (dtype.floating or integers)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
