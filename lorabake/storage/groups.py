"""Put the tensors of a checkpoint together by the weight that they stand for, each with its role, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod

from lorabake.codecs.bitsandbytes import ROLES as BITSANDBYTES
from lorabake.codecs.codec import FLOWING, NOTE, NOTES, Group
from lorabake.codecs.scaled import SCALES
from lorabake.codecs.scales import EXPONENTS
from lorabake.storage.options import read_options
from lorabake.storage.statements import Statements
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import TensorInfo

CODES = {
    "qweight": "", "weight_packed": "", "trellis": "", "Qidxs": "", "dqweight": "", "W_q": "scale",
    "q_weight": "q_scale", "codes": "codebooks", "indices": "centroids.weight", "dense_weights": "row_offsets",
}  # fmt: skip
"""Leaves of tensors, of any dtype, that stand in a weight's place: all else in the module helps to read them.

Some mean it only beside another, which is given.
"""

MARKS = {
    *SCALES, NOTE, "weight_scale_2", "weight_global_scale", "weight_zero_point", "weight_zeros", "weight_g_idx",
    "weight_s_rel", "weight_s_channel", "weight_codebook", "weight_proj_down", "weight_proj_up",
    "weight_smooth_factor", "wscales", "pre_quant_scale", "smooth_factor", "smooth_scale", "qscale_weight", "svd_up",
    "svd_down", "input_rotation", "forward_hadamard_matrix", "backward_hadamard_matrix",
}  # fmt: skip
"""Leaves beside a weight of any dtype that say that its values are not the weight itself."""

DEEP_MARKS = ("input_quantizer._pre_quant_scale", "weight_quantizer._scale", "weight_fake_quant.scale")
"""The same, where they lie deeper in the module."""

OWN = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
"""Leaves that modules of plain parameters have together."""

SCALING = re.compile(r"scal(?:es?|ing)|amax|absmax|quant|zero|(?<![a-z])zp(?![a-z])|(?<![a-z])scb(?![a-z])", re.I)
"""Words of tensors that may say what the values of another are worth."""

ELSEWHERE = "a scale elsewhere"
"""The role of a tensor that may hold the scales of a weight, though it does not stand beside it."""

FILLING = {
    "weight", "w", "inv", "fp8", "float8", "f8", "meta", "max", "point", "points", "per", "channel", "tensor", "row",
}  # fmt: skip
"""Words that stand beside these."""

FLOW = re.compile(r"(?<![a-z])(?:input|output|act|activation|kv)s?(?![a-z])", re.I)
"""Words of tensors about what goes through a layer."""

BEHIND = re.compile(
    r"(?P<weight>(?:.*[./])?weight)\.(?P<role>absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+"
    r"|_data|_data\._data|_scale|_shift|compressed|bitmask|shape|row_offsets|scale|zero_point)"
)
"""Parts that stand behind a weight's own name: fc.weight.absmax."""

TORCHAO = re.compile(r"(?P<module>.+)\._weight_(?P<role>\w+)")
"""Parts of torchao's tensors: fc._weight_qdata."""

ENDS = (*(f".{leaf}" for leaf in (*CODES, *MARKS, *BITSANDBYTES)), *DEEP_MARKS)
"""How keys end that tell of weights whatever their dtype."""

AFTER = re.compile(
    r"(?P<weight>.+?)_(?P<role>blocks|(?:weight_|input_)?(?:(?:global_)?scales?(?:_inv|_2)?|zero_points?|packed|shape))"
)
"""Parts of a parameter that is no module of its own: experts.gate_up_proj_scale."""

AFTER_CODES = ("blocks", "packed", "weight_packed")
"""Those of them that are codes."""


def place_by_name(key: str) -> tuple[str, str] | None:
    """Return the weight that a tensor helps to read, by its name, and its role; None for a tensor of its own."""
    module, _, leaf = key.rpartition(".")
    if leaf in MARKS or leaf in FLOWING or CODES.get(leaf) == "":
        return f"{module}.weight", leaf
    if match := BEHIND.fullmatch(key):
        return match["weight"], match["role"]
    if match := TORCHAO.fullmatch(key):
        return f"{match['module']}.weight", match["role"]
    if key.endswith(DEEP_MARKS):
        mark = next(mark for mark in DEEP_MARKS if key.endswith(mark))
        return f"{key.removesuffix(mark)}weight", mark
    return None


def place_after(key: str) -> tuple[str, str] | None:
    """Return the parameter, no module of its own, behind whose name a tensor's goes on, and its role; else None."""
    match = AFTER.fullmatch(key)
    return (match["weight"], match["role"]) if match else None


def is_float8(info: TensorInfo) -> bool:
    """Tell whether a tensor holds float8 of a form into which weights are scaled."""
    return info.dtype in DTYPES and DTYPES[info.dtype].takes_scale and DTYPES[info.dtype].floating


def is_coded(info: TensorInfo) -> bool:
    """Tell whether a tensor's dtype is none in which networks keep plain parameters, float8 aside."""
    return info.dtype in ("U8", "I8", "I16", "U16", "I32", "U32") or info.dtype.startswith(("F4", "F6", "F8"))


def groups_of(checkpoint: Checkpoint, statements: Statements) -> Iterator[Group]:
    """Put the tensors together that stand for one weight, where there is more than a plain one."""
    tensors = checkpoint.tensors
    coded = {key for key, info in tensors.items() if is_coded(info)}
    convolved = {key.rpartition("/")[0] for key, info in tensors.items() if len(info.shape) == 4}
    is_told = coded or any(key.endswith(ENDS) for key in tensors)
    groups = _groups(tensors, coded) if is_told else {}
    for module in statements.layers:
        weight = next((key for key in (f"{module}.weight", module) if key in tensors), f"{module}.weight")
        groups.setdefault(weight, {})
    options = {folder: read_options(said) for folder, said in statements.models.items()}
    for key, parts in groups.items():
        if key in tensors:
            parts = {"": tensors[key], **parts}
        elif not any(role in CODES or info.key in coded for role, info in parts.items() if role not in NOTES):
            continue  # what a scale is called, beside no weight
        module, folder = key.removesuffix(".weight"), key.rpartition("/")[0]
        bias = tensors.get(f"{module}.bias")
        yield Group(
            key=key,
            parts=parts,
            notes=statements.layers.get(module, ()),
            options=said if isinstance(said := options.get(folder, {}), dict) else {},
            model=statements.models.get(folder, ()) if isinstance(options.get(folder), dict) else (),
            rows=bias.shape[0] if bias is not None and len(bias.shape) == 1 else None,
            is_linear=folder not in convolved,
        )


def _groups(tensors: Mapping[str, TensorInfo], coded: set[str]) -> dict[str, dict[str, TensorInfo]]:
    """Return the tensors that help to read a weight, by its key and their roles."""
    groups: dict[str, dict[str, TensorInfo]] = {}
    modules = {
        module
        for module, _, leaf in (key.rpartition(".") for key in tensors)
        if leaf in CODES and (not CODES[leaf] or f"{module}.{CODES[leaf]}" in tensors)
    }
    for key, info in tensors.items():
        inside, named = _inside(key, modules), place_by_name(key)
        place = inside or named or _beside(key, coded) or place_after(key)
        if place is None:
            continue
        weight, role = place
        if weight not in tensors and weight.removesuffix(".weight") in tensors:
            weight = weight.removesuffix(".weight")
        is_read = weight in coded or any(f"{weight}_{role}" in coded for role in AFTER_CODES)
        if inside or is_read or (named and (weight not in tensors or key.endswith(ENDS))):
            groups.setdefault(weight, {})[role] = info  # else two parameters, such as layer and layer_scale
    for weight, key in _scaled_from_afar(tensors, groups):
        parts = groups.setdefault(weight, {})
        parts[f"{len(parts)} more" if ELSEWHERE in parts else ELSEWHERE] = tensors[key]
    return groups


def _scaled_from_afar(
    tensors: Mapping[str, TensorInfo], groups: Mapping[str, Mapping[str, TensorInfo]]
) -> list[tuple[str, str]]:
    """Pair plain weights in float8 with what may be their scales, though it stands elsewhere or has another name.

    It is small, and its name is the weight's but for words of scales and, maybe, modules on the way to it:
    `q_proj_scale`, `q_proj.quantizer.amax` and `layers.0.scales.q_proj` for `layers.0.self_attn.q_proj.weight`.
    """
    plain = {
        key
        for key, info in tensors.items()
        if is_float8(info) and len(info.shape) > 1 and groups.get(key, {}).keys() <= {*NOTES}
    }
    if not plain:
        return []
    taken = plain.union(info.key for weight, parts in groups.items() if weight in tensors for info in parts.values())
    by_end: dict[tuple[str, ...], list[str]] = {}
    for key in plain:
        by_end.setdefault(_end(key), []).append(key)
    found = []
    for key, info in tensors.items():
        if key in taken or not SCALING.search(key) or key.endswith("bias"):
            continue
        near = dict.fromkeys((*by_end.get(_end(key), ()), *_around(key, plain)))
        found += [(weight, key) for weight in near if _may_scale(info, tensors[weight])]
    return found


def _around(key: str, plain: set[str]) -> Iterator[str]:
    """Yield the weights of the modules in which a tensor lies."""
    module = key.rpartition(".")[0]
    while module:
        yield from (weight for weight in (f"{module}.weight", module) if weight in plain)
        module = module.rpartition(".")[0]


def _may_scale(info: TensorInfo, weight: TensorInfo) -> bool:
    """Tell whether a tensor is small enough for a weight's scales, and called as if it held them."""
    key, module = info.key, weight.key.removesuffix(".weight")
    size, most = prod(info.shape), prod(weight.shape)
    is_float = DTYPES[info.dtype].floating or info.dtype in EXPONENTS
    more = SCALING.findall(key)[len(SCALING.findall(module)) :]
    if not more or not is_float or not (size == 1 or size in weight.shape or size * 8 <= most):
        return False
    if key.startswith(f"{module}."):
        return not FLOW.search(key.removeprefix(module))
    words, whole = _words(key), _words(module)
    if words == whole:
        return True
    name = _words(".".join(module.split(".")[-2 if module.rpartition(".")[2].isdigit() else -1 :]))
    rest = iter(whole)
    return words[-len(name) :] == name and all(word in rest for word in words) and not key.endswith(".weight")


def _end(key: str) -> tuple[str, ...]:
    """Return what the names of a weight and its scales have in common in any case: numbers, and the last word."""
    words = _words(key)
    return (*(word for word in words if word.isdigit()), words[-1])


def _words(name: str) -> list[str]:
    """Split a tensor's name, without what only says that it is a weight or a scale."""
    words = re.split(r"[./_]+", name)
    return [word for word in words if word not in FILLING and not SCALING.search(word)] or words


def _inside(key: str, modules: set[str]) -> tuple[str, str] | None:
    """Place a tensor that lies anywhere in a module of codes."""
    if not modules:
        return None
    at = key.find(".")
    while at >= 0:
        module, role = key[:at], key[at + 1 :]
        if module in modules and role not in ("bias", "weight"):
            return f"{module}.weight", role
        at = key.find(".", at + 1)
    return None


def _beside(key: str, coded: set[str]) -> tuple[str, str] | None:
    """Place a tensor of no known name that stands beside, or behind the name of, a weight of codes."""
    module, _, leaf = key.rpartition(".")
    for weight in (f"{module}.weight", module):
        if weight in coded and weight != key and leaf not in OWN:
            return weight, leaf
    return None
