"""What a checkpoint says of how its weights are stored, gathered in one place, wherever it stands.

A *statement* says that stored values are not the weights themselves, or promises something of them. ComfyUI says it
of single layers, in a tensor beside the weight (`fc.comfy_quant`) or in the file's header (`_quantization_metadata`).
Others say it of a whole model: `quantization_config` and its like, in config.json at any depth, in a file of its own
or in the header. All are read here. `lorabake.storage.options` tells what their options mean,
`lorabake.storage.recognition` judges what they mean for a weight, and `lorabake.storage.kept` keeps them true where
weights become plain. Files and headers only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lorabake.codecs.codec import NOTE, Says, Statement
from lorabake.errors import FileError
from lorabake.storage.options import OTHER_NAMES, SIGNS
from lorabake.tensors import values
from lorabake.tensors.checkpoint import Checkpoint, Part, read_object
from lorabake.tensors.header import Header
from lorabake.tensors.reader import is_there
from lorabake.tensors.small import parse_json
from lorabake.visible import short_repr

LAYERS = "_quantization_metadata"
"""The header's key that says the same of many layers."""

MODEL_KEYS = ("quantization_config", "compression_config", "quant_config", "quantization")
"""What a statement about a whole model is called in JSON."""

TELLING = {"quant_method", "quant_algo", "bits", "w_bit", "group_size", "qformat_weight", "method", "config_groups"}
"""One of these makes a statement of what is called by a word of many meanings."""

OF_VALUES = re.compile(r"codebook|code_|num_quantizers|n_q$|n_e$|e_dim|vq|commit|embed|levels|fsq|lfq|quantizer_type")
"""What networks say that quantise what flows through them, and not their weights (VQ, FSQ)."""

LOOSE = ("transform_config", "spinquant_config", "rotation_config", "scale_fmt", "scale_format")
"""Options that mean the same outside of any statement."""

FILES = {
    "config.json": "", "params.json": "", "hf_quant_config.json": "modelopt", "quantize_config.json": "gptq",
    "quant_config.json": "awq", "quanto_qmap.json": "quanto", "model_index.json": "",
}  # fmt: skip
"""Files with statements, and the method that one without a name means; files with a method hold nothing else."""

QUANTO_TYPES = {"none", "qint2", "qint4", "qint8", "qfloat8", "qfloat8_e4m3fn", "qfloat8_e5m2"}

Beside = Mapping[str, Mapping[str, object]]
"""The files beside a checkpoint's weights that may hold statements, by their paths below its folder, read as JSON."""


@dataclass(frozen=True, slots=True)
class Statements:
    """Hold all that a checkpoint says of how its weights are stored.

    `layers` are about one layer each, by its path (with the component's folder in front); `models` about all weights
    of a component, by its folder. `lost` are about layers that no file of the component has, by its folder
    and by what they call them.
    """

    __repr__ = short_repr

    layers: Mapping[str, tuple[Statement, ...]]
    models: Mapping[str, tuple[Statement, ...]]
    lost: Mapping[str, Mapping[str, Statement]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Texts:
    """Hold what a file says beside its tensors, each entry as text; `place` names it in messages."""

    path: Path
    place: str
    entries: Mapping[str, str]


def read_beside(checkpoint: Checkpoint) -> dict[str, dict[str, object]]:
    """Read the files beside a checkpoint's weights that may hold statements, by their paths below its folder.

    A GGUF file says all itself. Raise FileError for a file that is there and cannot be read.
    """
    if checkpoint.facts:
        return {}
    root = checkpoint.path if checkpoint.is_folder else checkpoint.path.parent
    folders = dict.fromkeys(folder for part in checkpoint.parts for folder in (part.folder, ""))
    places = [str(PurePosixPath(folder, name)) for folder in folders for name in FILES]
    return {place: read_object(root / place) for place in places if is_there(root / place)}


def gather(checkpoint: Checkpoint, beside: Beside) -> Statements:
    """Read every statement of a checkpoint; `beside` holds the files beside its weights.

    Raise FileError for one that is there and cannot be read.
    """
    layers: dict[str, list[Statement]] = {}
    models: dict[str, list[Statement]] = {}
    lost: dict[str, dict[str, Statement]] = {}
    for part in checkpoint.parts:
        prefix = f"{part.folder}/" if part.folder else ""
        for header in part.files:
            for info in header.tensors.values():
                module, _, leaf = info.key.rpartition(".")
                if leaf == NOTE:
                    layers.setdefault(module, []).append(Statement(info.key, values.read_object(info)))
        texts = [*map(of_header, part.files), *of_index(part)]
        modules = modules_of(part) if any(LAYERS in each.entries for each in texts) else {}
        for each in texts:
            place = f"{each.place}'s {LAYERS}"
            for name, says in _layers(each).items():
                described = meant(name, modules)
                for module in described:
                    layers.setdefault(prefix + module, []).append(Statement(place, says))
                if not described:
                    lost.setdefault(part.folder, {})[name] = Statement(place, says)
            models.setdefault(part.folder, []).extend(_in_texts(each))
        for folder in dict.fromkeys((part.folder, "")):
            for place, name in files_of(beside, folder):
                models[part.folder].extend(_in_file(beside[place], place, FILES[name]))
    return Statements(
        {module: tuple(found) for module, found in layers.items()},
        {folder: tuple(found) for folder, found in models.items()},
        lost,
    )


# -- where they stand ------------------------------------------------------------------------------------


def of_header(header: Header) -> Texts:
    """Return what a header says beside its tensors."""
    return Texts(header.path, "the header", header.metadata)


def of_index(part: Part) -> Iterator[Texts]:
    """Yield what the index of a part's shards says beside their names, if it has one."""
    if part.index is not None:
        path = part.files[0].path.with_name(part.index)
        yield Texts(path, str(PurePosixPath(part.folder, part.index)), as_texts(part.index_metadata))


def as_texts(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return the metadata of an index as a header would hold them."""
    return {name: said if isinstance(said, str) else json.dumps(said) for name, said in metadata.items()}


def _layers(texts: Texts) -> dict[str, Says]:
    if LAYERS not in texts.entries:
        return {}
    layers = _parsed(texts, LAYERS).get("layers")
    if not isinstance(layers, dict) or not all(isinstance(says, dict) for says in layers.values()):
        raise FileError(f"{texts.path}: {_where(texts, LAYERS)} has no layers that it describes")
    return layers


def _where(texts: Texts, name: str) -> str:
    return f"the header's {name}" if texts.place == "the header" else f"its {name}"


def modules_of(part: Part) -> dict[str, list[str]]:
    """Return the paths of all layers and tensors of a component, by their last words."""
    names = [info.name for header in part.files for info in header.tensors.values()]
    found: dict[str, list[str]] = {}
    for module in {*names, *(name.rpartition(".")[0] for name in names)}:
        found.setdefault(module.rpartition(".")[2], []).append(module)
    return found


def meant(name: str, modules: Mapping[str, list[str]]) -> list[str]:
    """Return the layers that a statement means: the one of this path, or, next best, those whose path ends so.

    Where the statement has more in front than the file, it is the layer with the longest path that ends the name.
    """
    path = name.removesuffix(".weight")
    alike = modules.get(path.rpartition(".")[2], [])
    if path in alike:
        return [path]
    if longer := [module for module in alike if module.endswith(f".{path}")]:
        return longer
    shorter = [module for module in alike if path.endswith(f".{module}")]
    return [max(shorter, key=len)] if shorter else []


def _parsed(texts: Texts, name: str) -> dict[str, object]:
    said = _object(texts.entries[name])
    if said is None:
        where = _where(texts, name)
        raise FileError(f"{texts.path}: {where} says how weights are stored, and is no JSON object")
    return said


def as_json(text: str) -> object:
    """Return what a text says in JSON, None where it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return None


def _object(text: str) -> dict[str, object] | None:
    said = as_json(text)
    return said if isinstance(said, dict) else None


def holders(texts: Texts) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield what of a file's texts may hold statements about a whole model: its key, and what holds it."""
    for name, text in texts.entries.items():
        if name in MODEL_KEYS or name in LOOSE:
            said = as_json(text)
            if name in MODEL_KEYS and not isinstance(said, list):
                said = _parsed(texts, name)
            yield name, {name: text if name in LOOSE and said is None else said}
        elif _may_say(name, text) and (found := _object(text)) is not None:
            yield name, found


def _may_say(name: str, text: str) -> bool:
    """Tell whether an entry of a header's metadata may hold statements deeper in it."""
    return not name.startswith(("lorabake.", "ss_")) and any(f'"{key}"' in text for key in MODEL_KEYS)


def in_metadata(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return what a header's metadata says of how weights are stored, parsed, by its keys there."""
    named = (LAYERS, *MODEL_KEYS, *LOOSE)
    found: dict[str, object] = {name: as_json(metadata[name]) or metadata[name] for name in named if name in metadata}
    for name, text in metadata.items():
        if name not in found and _may_say(name, text):
            found |= {f"{name}: {path}": says for path, says in _search(_object(text), "")}
    return found


def _in_texts(texts: Texts) -> Iterator[Statement]:
    for _, said in holders(texts):
        yield from (Statement(_of(texts.place, path), says) for path, says in _search(said, ""))


def _of(place: str, path: str) -> str:
    return f"{place}'s {path}" if path else place


def files_of(beside: Beside, folder: str) -> Iterator[tuple[str, str]]:
    """Yield the paths and the names of the files in a component's folder."""
    places = ((str(PurePosixPath(folder, name)), name) for name in FILES)
    return ((place, name) for place, name in places if place in beside)


def _in_file(said: Says, name: str, way: str) -> Iterator[Statement]:
    if way == "quanto":
        kinds = {str(each.get("weights")) if isinstance(each, dict) else "" for each in said.values()}
        yield Statement(name, {"quant_method": way, **dict.fromkeys(kinds - QUANTO_TYPES, True)})
    elif way and not any(key in said for key in MODEL_KEYS):
        yield Statement(name, named(said, way))
    else:
        yield from (Statement(_of(name, path), says) for path, says in _search(said, way))


def _search(said: object, way: str, path: str = "") -> Iterator[tuple[str, Says]]:
    """Find the statements in what a JSON file says, at any depth, each by its usual names and with its path."""
    if isinstance(said, list):
        for number, each in enumerate(said):
            yield from _search(each, way, f"{path}{number}.")
    elif isinstance(said, dict):
        if loose := {key: said[key] for key in LOOSE if said.get(key)}:
            yield path.removesuffix("."), loose
        for key, value in said.items():
            found = statements_in(key, value)
            yield from ((path + key, named(says, way)) for says in found)
            if not found and key not in LOOSE:
                yield from _search(value, way, f"{path}{key}.")


def statements_in(key: str, value: object) -> list[dict[str, object]]:
    """Return what an entry says of how weights are stored: an object, or several, or either written as a string."""
    if key not in MODEL_KEYS or not value:
        return []
    if isinstance(value, list):
        return [says for each in value for says in statements_in(key, each)]
    if isinstance(value, str):
        said = as_json(value)
        if isinstance(said, (dict, list)):
            return statements_in(key, said)
        return [{"quant_method": value}] if key in MODEL_KEYS[:2] else []
    return [value] if isinstance(value, dict) and _is_statement(key, value) else []


def _is_statement(key: str, says: Says) -> bool:
    """Tell whether an object of this name says how weights are stored: vector quantisers have other words."""
    if key in MODEL_KEYS[:2] or TELLING & says.keys():
        return True
    return any(says.values()) and not any(OF_VALUES.search(option) for option in says)


def named(says: Says, way: str) -> Says:
    """Say by its usual names what a statement says, its way among it."""
    found = says.get("quant_method") or says.get("method") or way
    if not found:
        found = next((name for key, name in SIGNS.items() if says.get(key)), "")
    name = str(found).lower()
    others = OTHER_NAMES.get(name, {})
    renamed = {other: says[key] for key, other in others.items() if key in says and other not in says}
    return {**says, **renamed, "quant_method": name}
