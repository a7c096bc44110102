"""What options of a statement mean: which ways there are, and which options have a say in what stored values mean.

What is not known here is told by name, and then the weights are refused. `lorabake.storage.statements` finds the
statements.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from lorabake.codecs import codecs
from lorabake.codecs.codec import Says, Statement


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
"""Options that contain other options.

The number counts the levels of names of layers or groups that come first. The set lists the known options below.
"""

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
"""Other names that GPTQModel gives to an option, by method."""


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
"""The method that an option reveals, where no `quant_method` is given."""


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
    if not (statements := tuple(statements)):
        return {}  # formats are imported where there is something to ask them
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
