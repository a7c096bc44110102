"""What a checkpoint says of how its weights are stored, gathered in one place, wherever it stands.

A *statement* says that stored values are not the weights themselves, or promises something of them. ComfyUI says it
of single layers, in a tensor beside the weight (`fc.comfy_quant`) or in the file's header (`_quantization_metadata`).
Others say it of a whole model: `quantization_config` and its like, in config.json at any depth, in a file of its own
or in the header. All are read here, and kept true where weights become plain; `lorabake.storage.recognition` judges
what they mean for a weight. Files and headers only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lorabake.codecs import codecs
from lorabake.codecs.codec import NOTE, Says, Statement
from lorabake.errors import FileError, TargetError
from lorabake.tensors import values
from lorabake.tensors.checkpoint import Checkpoint, Part, read_object
from lorabake.tensors.header import Header
from lorabake.tensors.reader import is_there
from lorabake.tensors.small import parse_json

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
"""The files that hold statements, and whose way one of no name is; those with a way hold nothing else."""

QUANTO_TYPES = {"none", "qint2", "qint4", "qint8", "qfloat8", "qfloat8_e4m3fn", "qfloat8_e5m2"}


@dataclass(frozen=True, slots=True)
class Method:
    """Describe a way of storing weights: its name, and the option that lists the modules that are left plain."""

    title: str
    plain: str = ""


METHODS = {
    "aqlm": Method("AQLM", "linear_weights_not_to_quantize"),
    "auto-round": Method("AutoRound"),
    "awq": Method("AWQ", "modules_to_not_convert"),
    "bitnet": Method("BitNet", "modules_to_not_convert"),
    "bitsandbytes": Method("bitsandbytes", "llm_int8_skip_modules"),
    "compressed-tensors": Method("compressed-tensors", "ignore"),
    "eetq": Method("EETQ", "modules_to_not_convert"),
    "exl2": Method("EXL2"),
    "exl3": Method("EXL3"),
    "fbgemm_fp8": Method("FBGEMM fp8", "modules_to_not_convert"),
    "fp8": Method("fp8", "modules_to_not_convert"),
    "gptq": Method("GPTQ"),
    "hqq": Method("HQQ", "skip_modules"),
    "mlx": Method("MLX"),
    "modelopt": Method("ModelOpt", "ignore"),
    "mxfp4": Method("MXFP4", "modules_to_not_convert"),
    "mxfp8": Method("MXFP8", "modules_to_not_convert"),
    "quanto": Method("quanto", "modules_to_not_convert"),
    "quark": Method("Quark", "exclude"),
    "sdnq": Method("SDNQ", "modules_to_not_convert"),
    "spqr": Method("SpQR", "modules_to_not_convert"),
    "svdquant": Method("SVDQuant"),
    "torchao": Method("torchao", "modules_to_not_convert"),
    "vptq": Method("VPTQ", "modules_to_not_convert"),
}
"""The ways, as `quant_method` names them, that mark each weight by the tensors beside it; other weights are plain."""

SHOWN = {
    "quant_method", "method", "bits", "num_bits", "nbits", "w_bit", "weight_bits", "super_bits", "group_size",
    "q_group_size", "super_group_size", "zero_point", "has_zero_point", "sym", "desc_act", "pack_dtype",
    "data_type", "weight_dtype", "weights_dtype", "quant_type", "quant_algo", "axis", "mode",
    "weight_block_size", "checkpoint_format", "version", "format", "packing_format", "config_groups",
    "global_quant_config", "layer_quant_config", "layer_type_quant_config", "quantized_layers", "dynamic",
    "dynamic_config", "config_for_layers", "shared_layer_config", "quant_mode", "export", "load_in_4bit",
    "load_in_8bit", "_load_in_4bit", "_load_in_8bit", "llm_int8_has_fp16_weight", "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant", "bnb_4bit_quant_storage", "nbits_per_codebook", "num_codebooks", "in_group_size",
    "out_group_size", "beta1", "beta2", "shapes", "view_as_float", "rank", "qformat_weight", "weight", "weights",
    "scale_fmt", "scale_format", "scale_dtype",
}  # fmt: skip
"""Options that the tensors show as well, by their shapes, dtypes and names, or that formats read."""

LISTED = {
    "ignore", "ignored_layers", "exclude", "exclude_modules", "modules_to_not_convert", "modules_to_convert",
    "skip_modules", "llm_int8_skip_modules", "linear_weights_not_to_quantize", "modules_in_block_to_quantize",
    "block_name_to_quantize", "module_name_preceding_first_block", "quant_block_list", "to_quant_block_names",
    "lm_head", "include_input_output_embeddings", "untie_embedding_weights", "packed_modules_mapping",
    "modules_to_fuse",
}  # fmt: skip
"""Options about which modules are stored in this way."""

FLOWING = {
    "activation", "activations", "input_activations", "output_activations", "input_tensors", "output_tensors",
    "activation_scheme", "activation_scale_ub", "activation_bits", "act_bits",
    "act_group_size", "act_sym", "act_dynamic", "act_data_type", "qscheme_act", "softmax_quant_spec",
    "kv_cache_scheme", "kv_cache_quant_algo", "kv_cache_quant_method", "kv_cache_dtype", "kv_cache_config",
    "llm_int8_threshold", "llm_int8_enable_fp32_cpu_offload", "bnb_4bit_compute_dtype", "compute_dtype",
    "use_quantized_matmul",
}  # fmt: skip
"""Options about what goes through a layer."""

MADE = {
    "meta", "producer", "quantizer", "tokenizer", "dataset", "observer", "observer_kwargs", "quantization_status",
    "global_compression_ratio", "model_name_or_path", "model_file_base_name", "model_class", "model_seqlen",
    "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "act_group_aware", "mse", "hessian",
    "gptaq", "foem", "fallback", "failsafe", "batch_size", "pad_token_id", "max_input_length",
    "cache_block_outputs", "seqlen", "nsamples", "iters", "lr", "minmax_lr", "amp", "train_bs",
    "gradient_accumulate_steps", "enable_minmax_tuning", "enable_norm_bias_tuning", "enable_quanted_input",
    "low_gpu_mem_usage", "autoround_version", "enable_proxy_error", "backend", "quant_backend", "device",
    "use_exllama", "disable_exllama", "exllama_config", "use_cuda_fp16", "max_input_len", "run_compressed",
    "dequantize", "do_fuse", "fuse_max_seq_len", "use_optimized_inference", "tune_metadata", "offload_to_disk",
    "offload_to_disk_path", "parallel_packing", "use_rms_norm", "rms_norm_eps",
}  # fmt: skip
"""Options about how weights were made, or how programs run them."""

SILENT = SHOWN | LISTED | FLOWING | MADE
"""Options without a say in what stored values mean, given the tensors."""

ARGUMENTS = {
    "num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder",
    "scale_dtype", "zp_dtype", "observer", "observer_kwargs", "is_mx",
}  # fmt: skip
"""What compressed-tensors says of the weights of a group, of which the same holds."""

GROUP = ARGUMENTS | {"targets", "weights", "format"}
"""What it says of a group; NVIDIA's ModelOpt says the same."""

QUARK = {
    "weight", "bias", "target_device", "dtype", "is_dynamic", "qscheme", "ch_axis", "group_size", "symmetric",
    "round_method", "scale_type", "scale_format", "scale_calculation_mode", "mx_element_dtype", "observer_cls",
    "zero_point_type", "is_scale_quant", "block_size",
}  # fmt: skip
"""What Quark says of the tensors of a layer."""

BELOW: Mapping[str, tuple[int, AbstractSet[str]]] = {
    "config_groups": (1, GROUP),
    "global_quant_config": (0, QUARK),
    "layer_quant_config": (1, QUARK),
    "layer_type_quant_config": (1, QUARK),
    "dynamic": (1, SILENT),
    "quantized_layers": (1, SILENT | {"pre_quant_scale"}),
}
"""Options without a say that hold others: so many names, of layers or groups, stand above these, which are known."""

TURNING = re.compile(r"rotat|hadamard|spin_?quant|quarot|incoheren|pre_quant_opt|transform(?!er)", re.I)
"""Words of options that turn weights, wherever they stand."""

ALLOWED: Mapping[str, tuple[object, ...]] = {
    "fmt": ("e4m3", "e4m3fn", "float8_e4m3", "float8_e4m3fn", "e5m2", "float8_e5m2"),
    "expert_dtype": ("fp8",),
    "quantization_mode": ("offline",),
    "linear_class": ("bitlinear",),
    "sparsity_structure": ("unstructured", "0:0"),
}
"""Options that change nothing with these values alone."""

OTHER_NAMES = {"gptq": {"format": "checkpoint_format"}, "awq": {"format": "version"}}
"""What GPTQModel calls an option of another program's, by the way."""


SIGNS = {
    "config_groups": "compressed-tensors",
    "quant_algo": "modelopt",
    "load_in_4bit": "bitsandbytes",
    "load_in_8bit": "bitsandbytes",
    "w_bit": "awq",
    "qformat_weight": "fp8",
    "weight_block_size": "fp8",
    "bits": "mlx",
}
"""Whose way it is, by an option of no other, where nothing names it."""


Beside = Mapping[str, Mapping[str, object]]
"""The files beside a checkpoint's weights that may hold statements, by their paths below its folder, read as JSON."""


@dataclass(frozen=True, slots=True)
class Statements:
    """Hold all that a checkpoint says of how its weights are stored.

    `layers` are about one layer each, by its path (with the component's folder in front); `models` about all weights
    of a component, by its folder. `lost` are about layers that no file of the component has, by its folder
    and by what they call them.
    """

    layers: Mapping[str, tuple[Statement, ...]]
    models: Mapping[str, tuple[Statement, ...]]
    lost: Mapping[str, Mapping[str, Statement]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Texts:
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
        texts = [*map(_of_header, part.files), *_of_index(part)]
        modules = modules_of(part) if any(LAYERS in each.entries for each in texts) else {}
        for each in texts:
            place = f"{each.place}'s {LAYERS}"
            for name, says in _layers(each).items():
                meant = _meant(name, modules)
                for module in meant:
                    layers.setdefault(prefix + module, []).append(Statement(place, says))
                if not meant:
                    lost.setdefault(part.folder, {})[name] = Statement(place, says)
            models.setdefault(part.folder, []).extend(_in_texts(each))
        for folder in dict.fromkeys((part.folder, "")):
            for place, name in _files(beside, folder):
                models[part.folder].extend(_in_file(beside[place], place, FILES[name]))
    return Statements(
        {module: tuple(found) for module, found in layers.items()},
        {folder: tuple(found) for folder, found in models.items()},
        lost,
    )


# -- where they stand ------------------------------------------------------------------------------------


def _of_header(header: Header) -> _Texts:
    return _Texts(header.path, "the header", header.metadata)


def _of_index(part: Part) -> Iterator[_Texts]:
    """Yield what the index of a part's shards says beside their names, if it has one."""
    if part.index is not None:
        path = part.files[0].path.with_name(part.index)
        yield _Texts(path, str(PurePosixPath(part.folder, part.index)), as_texts(part.index_metadata))


def as_texts(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return the metadata of an index as a header would hold them."""
    return {name: said if isinstance(said, str) else json.dumps(said) for name, said in metadata.items()}


def _layers(texts: _Texts) -> dict[str, Says]:
    if LAYERS not in texts.entries:
        return {}
    layers = _parsed(texts, LAYERS).get("layers")
    if not isinstance(layers, dict) or not all(isinstance(says, dict) for says in layers.values()):
        raise FileError(f"{texts.path}: {_where(texts, LAYERS)} has no layers that it describes")
    return layers


def _where(texts: _Texts, name: str) -> str:
    return f"the header's {name}" if texts.place == "the header" else f"its {name}"


def modules_of(part: Part) -> dict[str, list[str]]:
    """Return the paths of all layers and tensors of a component, by their last words."""
    names = [info.name for header in part.files for info in header.tensors.values()]
    found: dict[str, list[str]] = {}
    for module in {*names, *(name.rpartition(".")[0] for name in names)}:
        found.setdefault(module.rpartition(".")[2], []).append(module)
    return found


def _meant(name: str, modules: Mapping[str, list[str]]) -> list[str]:
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


def _parsed(texts: _Texts, name: str) -> dict[str, object]:
    said = _object(texts.entries[name])
    if said is None:
        where = _where(texts, name)
        raise FileError(f"{texts.path}: {where} says how weights are stored, and is no JSON object")
    return said


def _json(text: str) -> object:
    """Return what a text says in JSON, None where it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return None


def _object(text: str) -> dict[str, object] | None:
    said = _json(text)
    return said if isinstance(said, dict) else None


def _holders(texts: _Texts) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield what of a file's texts may hold statements about a whole model: its key, and what holds it."""
    for name, text in texts.entries.items():
        if name in MODEL_KEYS or name in LOOSE:
            said = _json(text)
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
    found: dict[str, object] = {name: _json(metadata[name]) or metadata[name] for name in named if name in metadata}
    for name, text in metadata.items():
        if name not in found and _may_say(name, text):
            found |= {f"{name}: {path}": says for path, says in _search(_object(text), "")}
    return found


def _in_texts(texts: _Texts) -> Iterator[Statement]:
    for _, said in _holders(texts):
        yield from (Statement(_of(texts.place, path), says) for path, says in _search(said, ""))


def _of(place: str, path: str) -> str:
    return f"{place}'s {path}" if path else place


def _files(beside: Beside, folder: str) -> Iterator[tuple[str, str]]:
    """Yield the paths and the names of the files in a component's folder."""
    places = ((str(PurePosixPath(folder, name)), name) for name in FILES)
    return ((place, name) for place, name in places if place in beside)


def _in_file(said: Says, name: str, way: str) -> Iterator[Statement]:
    if way == "quanto":
        kinds = {str(each.get("weights")) if isinstance(each, dict) else "" for each in said.values()}
        yield Statement(name, {"quant_method": way, **dict.fromkeys(kinds - QUANTO_TYPES, True)})
    elif way and not any(key in said for key in MODEL_KEYS):
        yield Statement(name, _named(said, way))
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
            found = _statements(key, value)
            yield from ((path + key, _named(says, way)) for says in found)
            if not found and key not in LOOSE:
                yield from _search(value, way, f"{path}{key}.")


def _statements(key: str, value: object) -> list[dict[str, object]]:
    """Return what an entry says of how weights are stored: an object, or several, or either written as a string."""
    if key not in MODEL_KEYS or not value:
        return []
    if isinstance(value, list):
        return [says for each in value for says in _statements(key, each)]
    if isinstance(value, str):
        said = _json(value)
        if isinstance(said, (dict, list)):
            return _statements(key, said)
        return [{"quant_method": value}] if key in MODEL_KEYS[:2] else []
    return [value] if isinstance(value, dict) and _is_statement(key, value) else []


def _is_statement(key: str, says: Says) -> bool:
    """Tell whether an object of this name says how weights are stored: vector quantisers have other words."""
    if key in MODEL_KEYS[:2] or TELLING & says.keys():
        return True
    return any(says.values()) and not any(OF_VALUES.search(option) for option in says)


def _named(says: Says, way: str) -> Says:
    """Say by its usual names what a statement says, its way among it."""
    found = says.get("quant_method") or says.get("method") or way
    if not found:
        found = next((name for key, name in SIGNS.items() if says.get(key)), "")
    name = str(found).lower()
    others = OTHER_NAMES.get(name, {})
    renamed = {other: says[key] for key, other in others.items() if key in says and other not in says}
    return {**says, **renamed, "quant_method": name}


# -- what is understood ----------------------------------------------------------------------------------


def fault(statement: Statement) -> str | None:
    """Return what of a statement about a whole model is not understood, as it stands there; None where all is."""
    way = statement.says.get("quant_method")
    if way is not None and way not in METHODS:
        unknown = next(_unknown(statement.says, ""), "no quant_method") if not way else ""
        return unknown or f"quant_method: {way}"
    return next(_unknown(statement.says, str(way)), None)


def _unknown(says: Says, way: str) -> Iterator[str]:
    for option, value in says.items():
        if not value or value in ALLOWED.get(option, ()) or option == "quant_method":
            continue
        if option == "sparsity_config" and isinstance(value, dict):
            if value.get("format", "dense") != "dense":
                yield f"{option}: {_short(value)}"
            structure = {name: each for name, each in value.items() if name == "sparsity_structure"}
            yield from (f"{option}.{each}" for each in _unknown(structure, way))
        elif option not in SILENT:
            yield f"{option}: {_short(value)}"
        else:
            yield from (f"{option}: {each}" for each in _unknown_below(option, value))
    for one, other in OTHER_NAMES.get(way, {}).items():
        if says.get(one, says.get(other)) != says.get(other):
            yield f"{one}: {_short(says[one])}, and {other}: {_short(says[other])}"


def _unknown_below(option: str, value: object) -> Iterator[str]:
    """Yield what stands below an option without a say and may have one, by its path from there."""
    depth, known = BELOW.get(option, (0, None))
    if isinstance(value, list):
        depth = 0
    for path, names, inner in _walked(value):
        is_option, said = len(names) > depth, {option, *names[depth:-1]}
        if not inner or not said.isdisjoint(FLOWING) or names[-1] in FLOWING:
            continue
        is_unknown = is_option and known is not None and said.isdisjoint(MADE) and names[-1] not in known
        if is_unknown or (is_option and TURNING.search(names[-1])):
            yield f"{path}: {_short(inner)}"


def _walked(value: object, path: str = "", names: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str], object]]:
    """Yield the entries of nested objects, with their paths and the names on the way; lists add to paths alone."""
    if isinstance(value, list):
        for each in value:
            yield from _walked(each, path, names)
    elif isinstance(value, dict):
        for name, inner in value.items():
            here = f"{path}.{name}" if path else name
            yield here, [*names, name], inner
            yield from _walked(inner, here, (*names, name))


def read_options(statements: Iterable[Statement]) -> dict[str, object] | str:
    """Return what statements about one model say of the options that formats look at; where two differ, say so."""
    return merged(statements, ("quant_method", *sorted(frozenset().union(*(codec.options for codec in codecs())))))


def merged(statements: Iterable[Statement], options: Iterable[str]) -> dict[str, object] | str:
    """Return what several statements about one model say of some options; where two differ, say so."""
    found: dict[str, tuple[object, str]] = {}
    for statement in statements:
        for option in options:
            value = statement.says.get(option)
            if value in (None, ""):
                continue
            other, place = found.setdefault(option, (value, statement.place))
            if other != value:
                return f"of which {place} and {statement.place} say different things: {option}"
    return {option: value for option, (value, _) in found.items()}


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


# -- kept true -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """Say which layers of a component become plain, by their paths in it, and whether others stay stored."""

    plain: tuple[str, ...]
    is_partial: bool


def said_of_layers(texts: Iterable[str], plain: Iterable[str], modules: Mapping[str, list[str]]) -> str | None:
    """Join what the headers of several files say of layers, but for those that become plain; None if nothing is left.

    `modules` are all of the component, by `modules_of`. One text of which nothing goes stays as it is, byte for byte.
    """
    texts, gone = list(texts), {*plain}
    said: dict[str, object] = {}
    layers: dict[str, object] = {}
    for text in texts:
        each = json.loads(text)
        said |= each
        layers |= {name: says for name, says in each["layers"].items() if gone.isdisjoint(_meant(name, modules))}
    is_whole = all(layers.keys() >= json.loads(text)["layers"].keys() for text in texts)
    if len({*texts}) == 1 and is_whole:
        return texts[0]
    return json.dumps(said | {"layers": layers}) if layers else None


def said_in_header(header: Header, change: Change) -> dict[str, str | None]:
    """Return what becomes of a header's statements about a whole model: new texts, None for what goes."""
    return _said_in(_of_header(header), change)


def said_in_index(part: Part, change: Change) -> dict[str, str]:
    """Return what stays true of the statements in the index of a component's shards, each as text."""
    found: dict[str, str] = {}
    for texts in _of_index(part):
        said = _said_in(texts, change)
        names = {LAYERS, *(name for name, _ in _holders(texts))} & texts.entries.keys()
        found = {name: kept for name in sorted(names) if (kept := said.get(name, texts.entries[name])) is not None}
        if LAYERS in found:
            layers = said_of_layers([found.pop(LAYERS)], change.plain, modules_of(part))
            found |= {LAYERS: layers} if layers else {}
    return found


def index_form(part: Part, said: Mapping[str, str]) -> dict[str, object]:
    """Return what is said as the index of a component's shards has it: as text, or as JSON where it was none."""
    before = part.index_metadata
    return {name: text if isinstance(before.get(name, ""), str) else _json(text) for name, text in said.items()}


def _said_in(texts: _Texts, change: Change) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, said in _holders(texts) if change.plain else ():
        kept = _true(said, change, texts.place)
        if kept != said:
            left = kept.get(name) if name in (*MODEL_KEYS, *LOOSE) else kept
            found[name] = json.dumps(left) if left is not None else None
    return found


def said_in_files(beside: Beside, folder: str, change: Change) -> dict[str, dict[str, object] | None]:
    """Return what becomes of the files beside a component's weights: new objects, None for files that go."""
    found: dict[str, dict[str, object] | None] = {}
    for place, name in _files(beside, folder) if change.plain else ():
        said, way = beside[place], FILES[name]
        if way and not change.is_partial:
            found[place] = None
        elif way == "quanto":
            found[place] = {layer: says for layer, says in said.items() if layer not in change.plain}
        elif way and not any(key in said for key in MODEL_KEYS):
            found[place] = _listed(said, _named(said, way), change, place)
        elif (kept := _true(said, change, place)) != said:
            found[place] = kept
    return found


def _true(said: Says, change: Change, place: str) -> dict[str, object]:
    """Take the statements out of a JSON object, or name in them what becomes plain where other weights do not."""
    kept: dict[str, object] = {}
    for key, value in said.items():
        if key in LOOSE or _statements(key, value):
            if change.is_partial or not value:
                kept[key] = value if key in LOOSE else _renewed(key, value, change, place)
        else:
            kept[key] = _below(value, change, place)
    return kept


def _below(value: object, change: Change, place: str) -> object:
    if isinstance(value, list):
        return [_below(each, change, place) for each in value]
    return _true(value, change, place) if isinstance(value, dict) else value


def _renewed(key: str, value: object, change: Change, place: str) -> object:
    """Name what becomes plain in an entry's statements, in whichever form it holds them."""
    if isinstance(value, list):
        return [_renewed(key, each, change, place) if _statements(key, each) else each for each in value]
    if isinstance(value, str) and (said := _json(value)) is not None:
        return json.dumps(_renewed(key, said, change, place))
    (says,) = _statements(key, value)
    return _listed(says, _named(says, FILES.get(place.rpartition("/")[2], "")), change, place)


def _listed(said: Says, named: Says, change: Change, place: str) -> dict[str, object]:
    """Add the layers that become plain to the list that a statement has of such."""
    way = str(named["quant_method"])
    option = METHODS[way].plain if way in METHODS else ""
    aliases = ("ignored_layers", "exclude_modules")
    option = next((name for name in (option, *aliases) if name and name in said), option)
    if not option:
        title = METHODS[way].title if way in METHODS else way
        raise TargetError(
            f"{place}: {len(change.plain)} weights would become plain ({change.plain[0]} …), and others cannot be "
            f"decoded",
            f"{title} has no list of plain ones, so that no program could tell them apart. Leave out "
            "output.dtype, or use a base that is stored in one way.",
        )
    before = said.get(option)
    names = [str(each) for each in before] if isinstance(before, list) else []
    return {**said, option: names + [name for name in change.plain if name not in names]}


def is_under(key: str, marker: str) -> bool:
    """Tell whether a marker such as `model.diffusion_model.scaled_fp8` speaks of a tensor."""
    return key.startswith(re.sub(r"[^./]*\Z", "", marker))
