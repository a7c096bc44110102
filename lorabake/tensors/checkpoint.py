"""Open a model or LoRA as one checkpoint: a file, shards with an index, or a diffusers folder.

All headers are read and checked; no tensor is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorabake.errors import FileError
from lorabake.machine import unreadable
from lorabake.tensors.folders import NO_ADAPTER, where_weights_are
from lorabake.tensors.header import Header, TensorInfo, check_count
from lorabake.tensors.links import files_below, listed
from lorabake.tensors.magic import GGUF, PICKLE, ZIP, format_at
from lorabake.tensors.reader import is_folder, is_there
from lorabake.tensors.safetensors import parse_object, read_header
from lorabake.tensors.small import MAX_CONFIG, MAX_INDEX, check_depth, content_of
from lorabake.visible import short_repr, some

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".lora"}
WEIGHT_SUFFIXES = PICKLE_SUFFIXES | {
    ".safetensors", ".msgpack", ".h5", ".onnx", ".onnx_data", ".gguf", ".tflite", ".ot"
}  # fmt: skip

# Names that diffusers, transformers and PEFT give to files of weights:
# model.safetensors, diffusion_pytorch_model.fp16.safetensors, pytorch_model.bin
_STEMS = r"(?:model|pytorch_model|diffusion_pytorch_model|adapter_model|pytorch_lora_weights)"
_VARIANT = r"(?:\.(?P<variant>\w+))?"
_SAFE = re.compile(_STEMS + _VARIANT + r"\.safetensors")
_PICKLED = re.compile(_STEMS + _VARIANT + r"\.bin")
# model.safetensors.index.json, diffusion_pytorch_model.safetensors.index.fp16.json
_STANDARD_INDEX = re.compile(_STEMS + r"\.safetensors\.index" + _VARIANT + r"\.json")
_INDEX = re.compile(r".+\.safetensors\.index" + _VARIANT + r"\.json")
_FOREIGN_INDEX = re.compile(r".+\.(?:bin|msgpack|h5)\.index(?:\.\w+)?\.json")

SHARD = re.compile(r".+-(\d{5})-of-(\d{5}).*")
"""The name of one file of several, with its number and theirs: model-00001-of-00003.safetensors."""

# A LoRA file's name -> the files beside it that say how it was trained.
_SAID_BESIDE = (
    (
        re.compile(r"(?:adapter(?:_model|_\d+)|(?:\d+_)?adapters)\..+"),
        ("adapter_config.json",),
    ),  # PEFT, torchtune, MLX-LM
    (re.compile(r".+\.pth\.lora"), ("hyperparameters.yaml", "model_config.yaml")),  # litgpt
)
# torchtune's own file comes before the one that it saves for PEFT. In the latter it reorders q and k of every model,
# although only some models need that, and it forgets the magnitudes of DoRA.
ADAPTERS = (
    "adapter_model.pt", "adapter_model.safetensors", "adapter_model.safetensors.index.json", "adapter_model.bin",
    "adapters.safetensors", "adapters.npz", "lit_model.pth.lora",
)  # fmt: skip
# MLX-LM's snapshots during training: 0000100_adapters.safetensors.
_NUMBERED = re.compile(r"\d+_adapters\.(?:safetensors|npz)")
# The beginning of PEFT's keys, also below wrappers of training.
_OF_PEFT = re.compile(r"(?:(?:module|_\w+)\.)*base_model\.")


@dataclass(frozen=True, slots=True)
class Part:
    """Hold one set of weights: a file, or shards, the name of their `index` and what its metadata say.

    `folder` is relative to the checkpoint's: "" at the top, "unet" in a diffusers folder.
    """

    __repr__ = short_repr

    folder: str
    index: str | None
    files: tuple[Header, ...]
    index_metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Describe one logical model or LoRA.

    `path` is the file or, with `is_folder`, the folder. `side_files` are the other files of the model
    (configurations, tokenizers), relative to the folder. `tensors` are in the files' order.
    """

    __repr__ = short_repr

    path: Path
    is_folder: bool
    parts: tuple[Part, ...]
    tensors: Mapping[str, TensorInfo]
    side_files: tuple[Path, ...]

    @property
    def headers(self) -> Iterator[Header]:
        """Yield the header of each file."""
        return (header for part in self.parts for header in part.files)

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return the first file's metadata."""
        return self.parts[0].files[0].metadata

    @property
    def facts(self) -> Mapping[str, object]:
        """Return what the first file says of its model; only GGUF files do."""
        return self.parts[0].files[0].facts

    @property
    def size(self) -> int:
        """Sum the bytes of all files with weights."""
        return sum(header.size for header in self.headers)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Name one candidate in a folder: a file of weights or an index. `variant` is "" for plain weights."""

    path: Path
    variant: str


def open_checkpoint(path: Path, variant: str | None = None) -> Checkpoint:
    """Read the headers of a model: a file, an index of shards, or a folder with either, or with components.

    `variant` picks one of a folder's sets of weights (`fp16`, `non_ema`); a component without that set uses its plain
    one. Keys of a diffusers folder begin with the component: `unet/conv_in.weight`.

    Raise FileError for any fault in a file, for missing or surplus shards and tensors, and if it is not clear which
    weights are meant.
    """
    if os.path.isdir(path):
        return _open_folder(path, variant)
    if variant is not None:
        raise FileError(
            f"{path}: variant {variant} can only be chosen in a folder",
            "Remove variant, or give the diffusers folder as base.",
        )
    if _INDEX.fullmatch(path.name):
        return _checkpoint(path.parent, [_part(path, "")], _side_files(path.parent))
    part = _part(path, "")
    return Checkpoint(path, False, (part,), part.files[0].tensors, ())


def open_lora(path: Path) -> tuple[Checkpoint, dict[str, object] | None]:
    """Read the header of a LoRA (a file or a trainer's folder) and its `adapter_config.json`.

    Raise FileError as open_checkpoint does, and for a configuration that is no JSON object, a PEFT folder without an
    adapter, and a folder with adapters in sub-folders.
    """
    if not os.path.isdir(path):
        checkpoint, config = open_checkpoint(path), path.with_name("adapter_config.json")
        return checkpoint, read_object(config) if config in said_beside(path, checkpoint.tensors) else None
    config = path / "adapter_config.json"
    adapter = next((path / name for name in ADAPTERS if is_there(path / name)), None)
    if adapter is not None:
        return _checkpoint(path, [_part(adapter, "")], ()), optional_object(config)
    if is_there(config):
        numbered = [file.name for file in listed(path) if _NUMBERED.fullmatch(file.name)]
        if numbered:
            raise FileError(
                f"{path}: has adapters from several moments of their training, and none from its end: "
                f"{some(numbered)}",
                f"Give the one that is meant: {path / numbered[-1]}",
            )
        raise FileError(
            f"{path}: has adapter_config.json, but neither adapter_model.safetensors nor .bin", NO_ADAPTER
        )
    inner = [folder.name for folder in _folders(path) if is_there(folder / "adapter_config.json")]
    if inner:
        raise FileError(f"{path}: the adapter is in a sub-folder: {some(inner)}", f"Give that one: {path / inner[0]}")
    return open_checkpoint(path), None


def said_beside(path: Path, keys: Iterable[str]) -> tuple[Path, ...]:
    """List the files beside a LoRA file that say how it was trained; `keys` are the LoRA's."""
    names = [name for pattern, names in _SAID_BESIDE if pattern.fullmatch(path.name) for name in names]
    if not names and all(_OF_PEFT.match(key) for key in keys):
        names = ["adapter_config.json"]  # PEFT's own file, renamed
    return tuple(path.with_name(name) for name in names if is_there(path.with_name(name)))


def _open_folder(path: Path, variant: str | None) -> Checkpoint:
    parts = [_part(weights.path, folder) for folder, weights in chosen_weights(path, variant).items()]
    return _checkpoint(path, parts, _side_files(path))


def chosen_weights(path: Path, variant: str | None) -> dict[str, _Weights]:
    """Choose the weights of a folder, and of each component in it, by names and indexes; no header is read."""
    pipeline = path / "model_index.json"
    is_pipeline = is_there(pipeline)
    top = None if is_pipeline else _choose(path, variant)
    if top is not None:
        chosen = {"": top}
    else:
        folders = _components(pipeline) if is_pipeline else _folders(path)
        choices = {folder.name: _choose(folder, variant) for folder in folders}
        chosen = {name: weights for name, weights in choices.items() if weights is not None}
    if not chosen:
        raise FileError(f"{path}: no weights in this folder", where_weights_are(path))
    if variant is not None and all(weights.variant != variant for weights in chosen.values()):
        raise FileError(f"{path}: has no variant {variant}", _variants_there(path, chosen))
    return chosen


def _variants_there(path: Path, chosen: Mapping[str, _Weights]) -> str:
    """Say which variants a folder has, from the folders in which its weights were chosen."""
    folders = {path, *(weights.path.parent for weights in chosen.values())}
    names = sorted({found.variant for folder in folders for found in _candidates(folder)} - {""})
    if not names:
        return "Its files have no variants: remove variant."
    return f"It has {' and '.join(names)}: write variant: {names[0]}, or remove variant."


def _checkpoint(path: Path, parts: list[Part], side_files: tuple[Path, ...]) -> Checkpoint:
    check_count(path, sum(len(header.tensors) for part in parts for header in part.files))
    tensors = {info.key: info for part in parts for header in part.files for info in header.tensors.values()}
    return Checkpoint(path, True, tuple(parts), tensors, side_files)


def _components(pipeline: Path) -> list[Path]:
    """List the folders that model_index.json names: `"unet": ["diffusers", "UNet2DConditionModel"]`."""
    named = [name for name, value in read_object(pipeline).items() if isinstance(value, list)]
    return [folder for folder in _folders(pipeline.parent) if folder.name in named]


def _folders(path: Path) -> list[Path]:
    return [p for p in _listed(path) if not p.name.startswith(".") and is_folder(p)]


def _listed(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise unreadable(path, error) from None


def _choose(folder: Path, variant: str | None) -> _Weights | None:
    """Choose a folder's weights; None if it has none. Raise FileError if several could be meant."""
    candidates = _candidates(folder)
    if not candidates:
        return None
    by_variant: dict[str, list[Path]] = {}
    for candidate in candidates:
        by_variant.setdefault(candidate.variant, []).append(candidate.path)
    if variant in by_variant:
        wanted = variant
    elif "" in by_variant:
        wanted = ""
    elif len(by_variant) == 1 and variant is None:
        wanted = next(iter(by_variant))
    else:
        known = sorted(by_variant)
        raise FileError(
            f"{folder}: has no plain weights, only the variants {', '.join(known)}",
            f"Choose one in the recipe: base: {{path: …, variant: {known[0]}}}",
        )
    paths = by_variant[wanted]
    if len(paths) > 1:
        raise FileError(
            f"{folder}: holds several sets of weights: {some([p.name for p in paths])}",
            f"Give the one that is meant: {paths[0]}",
        )
    return _Weights(paths[0], wanted)


def _candidates(folder: Path) -> list[_Weights]:
    """List a folder's sets of weights of the best sort that it has: standard names, any one file, or pickles."""
    entries = [p for p in listed(folder) if not p.name.startswith(".")]
    if named := [p for p in entries if (_SAFE.fullmatch(p.name) or _INDEX.fullmatch(p.name)) and is_folder(p)]:
        raise FileError(f"{named[0]}: is a folder, not a file")
    files = [p for p in entries if not is_folder(p)]
    safe = list(_matching(files, _SAFE))
    indexes = list(_matching(files, _STANDARD_INDEX))
    if safe or indexes:
        return _without_indexed(safe, indexes)
    if indexes := list(_matching(files, _INDEX)):
        return indexes
    tensors = [p for p in files if p.suffix == ".safetensors"]
    whole = [p for p in tensors if not SHARD.fullmatch(p.name)]
    if whole:
        return [_Weights(p, "") for p in whole]
    if tensors:
        raise FileError(f"{folder}: holds shards ({some([p.name for p in tensors])}), but not their index")
    pickled = list(_matching(files, _PICKLED))
    if not pickled and (index := next((p for p in files if p.name.endswith(".bin.index.json")), None)):
        raise FileError(
            f"{index}: sharded .bin files are not supported",
            "Use the model's SafeTensors release, or load and save it with transformers or diffusers.",
        )
    return pickled


def _matching(files: Iterable[Path], pattern: re.Pattern[str]) -> Iterator[_Weights]:
    for path in files:
        if match := pattern.fullmatch(path.name):
            yield _Weights(path, match["variant"] or "")


def _without_indexed(files: list[_Weights], indexes: list[_Weights]) -> list[_Weights]:
    """Drop files that an index lists, since some models have an index of a single file."""
    said = {index.path: read_object(index.path, MAX_INDEX) for index in indexes}
    listed = {path.parent / name for path in said for name in set(weight_map(path, said[path]).values())}
    return [weights for weights in files if weights.path not in listed] + indexes


def _part(path: Path, folder: str) -> Part:
    """Read the headers behind a file of weights or an index, and qualify the keys with the folder."""
    is_index = _INDEX.fullmatch(path.name) is not None
    index = read_object(path, MAX_INDEX) if is_index else {}
    headers = _read_shards(path, weight_map(path, index)) if is_index else [_read_file(path)]
    if folder:
        headers = [_qualified(header, folder) for header in headers]
    said = index.get("metadata")
    metadata = said if isinstance(said, dict) else {}
    return Part(folder, path.name if is_index else None, tuple(headers), metadata)


def _read_file(path: Path) -> Header:
    """Read the header of a file of any format; a format's reader is imported where a file of it is read."""
    suffix = path.suffix.lower() if os.path.isfile(path) else ""
    form = format_at(path) if suffix in (".gguf", ".npz", *PICKLE_SUFFIXES) else None
    if suffix == ".gguf" and form in (GGUF, None):
        from lorabake.tensors.gguf import open_gguf

        return open_gguf(path)
    if suffix == ".npz" and form in (ZIP, None):
        from lorabake.tensors.npz import open_npz

        return open_npz(path)
    if suffix in PICKLE_SUFFIXES and form in (ZIP, PICKLE):
        from lorabake.tensors.pickles import open_pickle

        return open_pickle(path)
    return read_header(path)


def _qualified(header: Header, folder: str) -> Header:
    infos = (replace(info, key=f"{folder}/{info.name}") for info in header.tensors.values())
    return replace(header, tensors={info.key: info for info in infos})


def _read_shards(index: Path, weight_map: Mapping[str, str]) -> list[Header]:
    """Read the shards that an index names, and check that both agree on every tensor."""
    check_count(index, len(weight_map))
    headers = []
    placed: dict[str, str] = {}
    shards = sorted(set(weight_map.values()))
    if lost := [name for name in shards if not os.path.isfile(index.parent / name)]:
        raise FileError(f"{index.parent}: missing shard {some(lost)} (named in {index.name})")
    for name in shards:
        header = read_header(index.parent / name)
        if twice := [key for key in header.tensors if key in placed]:
            raise FileError(f"{header.path}: {len(twice)} tensors are in {placed[twice[0]]} too: {some(twice)}")
        placed |= dict.fromkeys(header.tensors, name)
        headers.append(header)
    if missing := [key for key, name in weight_map.items() if placed.get(key) != name]:
        raise FileError(f"{index}: {len(missing)} tensors are not in the shard it names: {some(missing)}")
    if surplus := [key for key in placed if key not in weight_map]:
        raise FileError(f"{index}: {len(surplus)} tensors of the shards are not listed: {some(surplus)}")
    return headers


def weight_map(index: Path, said: Mapping[str, object]) -> dict[str, str]:
    """Return an index's map from tensors to shards; raise FileError if it names anything but files beside it."""
    weights = said.get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise FileError(f"{index}: has no weight_map")
    for name in weights.values():
        if not isinstance(name, str) or not name or re.search(r"[/\\\0]", name) or name in (".", ".."):
            raise FileError(f"{index}: weight_map names {name!r:.100}, which is no file beside it")
    return weights


def optional_object(path: Path) -> dict[str, object] | None:
    """Read a JSON object from a file that may be missing; raise FileError if the file holds anything else."""
    return read_object(path) if is_there(path) else None


def read_object(path: Path, limit: int = MAX_CONFIG) -> dict[str, object]:
    """Read a JSON object, such as a config.json; raise FileError if the file holds anything else."""
    try:
        value = parse_object(content_of(path, limit))
        check_depth(value)
        return value
    except ValueError as error:
        raise FileError(f"{path}: {error}") from None


def _side_files(root: Path) -> tuple[Path, ...]:
    """List all regular files under a folder that are neither hidden nor weights nor an index of weights."""
    return tuple(sorted(path.relative_to(root) for path in files_below(root) if _is_side_file(path)))


def _is_side_file(path: Path) -> bool:
    is_index = _INDEX.fullmatch(path.name) or _FOREIGN_INDEX.fullmatch(path.name)
    return not is_index and path.suffix.lower() not in WEIGHT_SUFFIXES
