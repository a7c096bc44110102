"""Read everything that planning needs besides headers, before planning: planning itself reads nothing.

This is the one place for facts that influence a plan and are in no header: small files beside weights, single numbers
such as alphas, where a tensor has zeros, and which tensors are equal. Asking for any other fact is a bug of
lorabake's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lorabake.adapters.embedding import AS_LINEAR
from lorabake.codecs.codec import Stored
from lorabake.errors import InternalError
from lorabake.keymap import split_qkv
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.slots import LoraModule, LoraTensors
from lorabake.keymap.spelling import Spellings
from lorabake.sources.ties import Tie
from lorabake.storage.statements import Beside
from lorabake.tensors.checkpoint import Checkpoint, said_beside
from lorabake.tensors.header import Fingerprint
from lorabake.tensors.reader import read_stored
from lorabake.tensors.small import content_of
from lorabake.tensors.values import read_scalar
from lorabake.visible import short_repr

Inode = tuple[int, int]
"""Identifies a file or folder on this machine, whatever its path: device and inode number."""

_CHUNK = 1 << 24
"""Bytes of a tensor that are hashed at a time."""


class NotReadError(InternalError):
    """Report a question about an input whose answer was never read."""

    def __init__(self, what: object) -> None:
        super().__init__(f"{what} was not read as evidence before planning")


# -- Files -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SideFile:
    """Identify a file beside a LoRA that says how the LoRA is applied."""

    __repr__ = short_repr

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Location:
    """Say where an input lies: `real` is its path without links, `folders` those around it, innermost first.

    An unreachable path has no inode.
    """

    __repr__ = short_repr

    path: Path
    is_folder: bool
    real: Path
    inode: Inode | None
    folders: tuple[Inode | None, ...]


@dataclass(frozen=True, slots=True)
class FileEvidence:
    """Hold the content of files without weights at the time when they were read.

    `config` is the base's config.json, or what a GGUF file says in its place. `beside` holds the files beside the
    base's weights that may say how these are stored. `sides` are the files beside each input, by its path.
    `locations` are those of all inputs, and of the recipe itself. `read` has the fingerprints of all small files that
    decided something. `schedule` is a diffusers folder's configuration of its scheduler. `held` says of LoRAs that
    the base holds already, by number, how that is known. `configs` are those of `verify.config` of the recipe, by
    their paths below it, where a folder is made of a single file.
    """

    __repr__ = short_repr

    config: Mapping[str, object]
    beside: Beside
    sides: Mapping[Path, tuple[SideFile, ...]]
    locations: tuple[Location, ...]
    read: Mapping[Path, Fingerprint]
    schedule: Mapping[str, object] = field(default_factory=dict)
    held: Mapping[int, str] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def document(self, place: str) -> Mapping[str, object]:
        """Return a JSON file beside the base's weights, by its path below the base's folder."""
        if place not in self.beside:
            raise NotReadError(place)
        return self.beside[place]

    def sides_of(self, checkpoint: Checkpoint) -> tuple[SideFile, ...]:
        """Return the files beside an input that say how the input is applied."""
        if checkpoint.path not in self.sides:
            raise NotReadError(f"what lies beside {checkpoint.path}")
        return self.sides[checkpoint.path]


def sides_of(checkpoint: Checkpoint) -> tuple[SideFile, ...]:
    """Read the files beside a LoRA that say how the LoRA is applied."""
    first = next(checkpoint.headers).path
    paths = said_beside(first, checkpoint.tensors)
    return tuple(SideFile(path.name, hashlib.sha256(content_of(path)).hexdigest()) for path in paths)


def locations_of(inputs: Iterable[tuple[Path, bool]]) -> tuple[Location, ...]:
    """Look up where inputs lie, each with whether it is a folder."""
    known = cache(inode_of)  # shards are in the same folder
    locations = []
    for path, is_folder in inputs:
        real = path.resolve()
        locations.append(Location(path, is_folder, real, known(real), tuple(map(known, real.parents))))
    return tuple(locations)


def inode_of(path: Path) -> Inode | None:
    """Return the device and inode of a path; None if it cannot be reached."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


# -- Tensors ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorEvidence:
    """Hold what was read from a LoRA's tensors.

    `numbers` are alphas, None where a tensor holds no number. `blocks` tells whether an `up` has values on the
    diagonal of blocks alone, by its key and the rows of the blocks. `contents` are digests of tensors that may hold
    the same, by their keys and whether they are turned.
    """

    __repr__ = short_repr

    numbers: Mapping[str, float | None] = field(default_factory=dict)
    blocks: Mapping[tuple[str, tuple[int, ...]], bool] = field(default_factory=dict)
    contents: Mapping[tuple[str, bool], str] = field(default_factory=dict)

    def scale_of(self, module: LoraModule) -> float | None:
        """Return alpha/rank of a module; None if its tensors do not tell it."""
        alpha = self._alpha_of(module)
        return None if alpha is None else split_qkv.scale_of(module, alpha)

    def is_trained_apart(self, module: LoraModule, sizes: tuple[int, ...], scales: AbstractSet[float]) -> bool:
        """Tell from a fused module's values whether its parts, with so many rows each, were trained separately.

        `scales` are those of the file's modules that are not fused.
        """
        if not split_qkv.fits(module, sizes):
            return False
        alpha = self._alpha_of(module)
        if alpha is None or not split_qkv.may_be_apart(module, alpha, len(sizes), scales):
            return False
        up = module.slots["up"]
        if (up.key, sizes) not in self.blocks:
            raise NotReadError(up.key)
        return self.blocks[up.key, sizes]

    def content_of(self, info: Stored, *, turned: bool = False) -> str:
        """Return a digest of a tensor's stored values, or of its transpose's."""
        if (info.key, turned) not in self.contents:
            raise NotReadError(info.key)
        return self.contents[info.key, turned]

    def _alpha_of(self, module: LoraModule) -> float | None:
        info = module.slots.get("alpha")
        if info is None or not split_qkv.has_rank(module):
            return None
        if info.key not in self.numbers:
            raise NotReadError(info.key)
        return self.numbers[info.key]


def read_tensors(
    tensors: LoraTensors, metadata: Mapping[str, str], key_map: KeyMap, tie: Tie | None
) -> TensorEvidence:
    """Read what matching may ask of a LoRA's tensors; `metadata` are the file's."""
    modules = tensors.modules.values()
    fused = split_qkv.fused_rows(key_map) if split_qkv.said_by(metadata) is None else frozenset[tuple[int, ...]]()
    is_asked = any(split_qkv.fits(module, sizes) for module in modules for sizes in fused)
    numbers = {
        module.slots["alpha"].key: _number(module.slots["alpha"])
        for module in (modules if is_asked else ())
        if "alpha" in module.slots and split_qkv.has_rank(module)
    }
    blocks = dict(_blocks(modules, numbers, fused))
    return TensorEvidence(numbers, blocks, dict(_contents(modules, key_map, tie)))


def _number(info: Stored) -> float | None:
    try:
        return read_scalar(info.first)
    except ValueError:
        return None


def _blocks(
    modules: Collection[LoraModule], numbers: Mapping[str, float | None], fused: Iterable[tuple[int, ...]]
) -> Iterator[tuple[tuple[str, tuple[int, ...]], bool]]:
    """Look for blocks in every module whose alpha leaves it open, even if it turns out not to be fused."""
    alphas = {module.name: numbers.get(module.slots["alpha"].key) for module in modules if "alpha" in module.slots}
    known = [(module, alpha) for module in modules if (alpha := alphas.get(module.name)) is not None]
    scales = {split_qkv.scale_of(module, alpha) for module, alpha in known}
    for module, alpha in known:
        for sizes in fused:
            parts, alone = len(sizes), split_qkv.scale_of(module, alpha, len(sizes))
            may_be = split_qkv.may_be_apart(module, alpha, parts, frozenset())
            may_be = may_be or (alone in scales and split_qkv.may_be_apart(module, alpha, parts, {alone}))
            if may_be and split_qkv.fits(module, sizes):
                up = module.slots["up"]
                yield (up.key, sizes), split_qkv.has_blocks(up, sizes)


def _contents(
    modules: Iterable[LoraModule], key_map: KeyMap, tie: Tie | None
) -> Iterator[tuple[tuple[str, bool], str]]:
    """Hash a LoRA's tensors for the uses of one embedding, if two of them may be equal."""
    if tie is None:
        return
    spelled = Spellings(key_map, tie.named)
    uses = [module for module in modules if tie.use(spelled.get(module.name, ())) is not None]
    infos = [(slot, info) for module in uses for slot, info in module.slots.items()]
    alike = Counter((info.dtype, *sorted(info.shape)) for _, info in infos)
    for slot, info in infos:
        if alike[info.dtype, *sorted(info.shape)] > 1:
            yield (info.key, False), _digest(info)
            if slot in AS_LINEAR and len(info.shape) == 2:
                yield (info.key, True), _digest_turned(info)


def _digest(stored: Stored) -> str:
    digest = _begun(stored)
    for info in stored.parts.values():
        for start in range(0, info.nbytes, _CHUNK):
            digest.update(read_stored(info, start, min(_CHUNK, info.nbytes - start)))
    return digest.hexdigest()


def _digest_turned(stored: Stored) -> str:
    import numpy as np

    digest, info = _begun(stored), stored.first
    values = np.frombuffer(read_stored(info), np.uint8).reshape(*info.shape, -1)
    digest.update(values.swapaxes(0, 1).tobytes())
    return digest.hexdigest()


def _begun(stored: Stored) -> hashlib._Hash:
    """Begin a hash with the meaning of the stored values and the order in which they are seen."""
    order = None if stored.view is None else (stored.view.title, stored.view.rows)
    return hashlib.sha256(repr((stored.codec, order)).encode())
