"""Recognise how each weight is stored: by the tensors beside it, and by what the checkpoint says of it.

Tensors are put together by the weight that they stand for, each with its role (`weight_scale`, `absmax`, …). A format
recognises a weight if it understands all of its tensors and statements; what none recognises is `Strange`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from lorabake.storage.statements import NOTE, Beside, Statement, Statements, fault, gather, merged, powers_of_two
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.packing import (
    Facts,
    PackedInfo,
    Packing,
    Strange,
    described,
    grid,
    read_facts,
    read_note,
    read_shape,
)
from lorabake.visible import visible

SCALES = ("scale_weight", "weight_scale", "weight_scale_inv", "SCB")
"""What the scales of a weight of 8 bits are called beside it; bitsandbytes' SCB is 127 times one."""

BITSANDBYTES = (
    "absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4",
    "quant_state.bitsandbytes__fp4",
)  # fmt: skip
"""What stands behind the name of a weight in bitsandbytes' 4 bits."""

FLOWING = {
    "input_scale", "scale_input", "output_scale", "input_global_scale", "input_zero_point", "output_zero_point",
    "q_scale", "k_scale", "v_scale", "k_zero_point", "v_zero_point", "prob_scale", "qscale_act",
}  # fmt: skip
"""Tensors about what goes through a layer: they have no say in its weight, and go when it becomes a plain one."""

NOTES = (NOTE, "weight_format", *sorted(FLOWING))
"""Short tensors beside a weight that its values do not need; they go when it becomes a plain one."""

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

MAP = re.compile(
    r"[._-](?:(?:fp8|float8|quant|dequant|weights?|scales?)[._-])?(?:map|scales?|amax|scale_inv)\.\w+", re.I
)
"""What stands behind the stem of a file's name in the name of one that holds its scales (HunyuanVideo)."""

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

TITLES: tuple[tuple[frozenset[str], str], ...] = tuple(
    (frozenset(roles.split()), title)
    for roles, title in (
        ("qweight wzeros", "AWQ (nunchaku)"),
        ("qweight wscales", "SVDQuant (nunchaku)"),
        ("weight_proj_down weight_proj_up", "SVDQuant (ComfyUI)"),
        ("qweight forward_hadamard_matrix", "FP-Quant"),
        ("qweight", "GPTQ or AWQ"),
        ("absmax", "bitsandbytes"),
        ("weight_packed weight_global_scale", "NVFP4 of compressed-tensors"),
        ("weight_packed", "compressed-tensors"),
        ("weight_scale_2 U8", "NVFP4"),
        ("blocks", "MXFP4"),
        ("_data", "quanto"),
        ("_data._data", "quanto"),
        ("qdata", "torchao"),
        ("W_q", "HQQ"),
        ("q_weight", "EXL2"),
        ("trellis", "EXL3"),
        ("Qidxs", "QuIP#"),
        ("codes codebooks", "AQLM"),
        ("indices centroids.weight", "VPTQ"),
        ("dense_weights", "SpQR"),
        ("weight_s_rel", "ComfyUI's W4A8"),
        ("svd_up svd_down", "SDNQ"),
        ("compressed bitmask", "sparse weights of compressed-tensors"),
        ("weight_scales I8", "EETQ"),
        ("scales biases U32", "MLX"),
        ("scales qbiases U32", "MLX"),
    )
)
"""What a way is called, by roles and the dtype under the weight's own key that no other has; the first counts."""

COMFY = {"I8": "int8_tensorwise", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""What ComfyUI calls the format of a weight times its scales, by dtype."""

COMFY_NAMES = {
    "nvfp4": "NVFP4", "mxfp8": "MXFP8", "svdquant_w4a4": "SVDQuant (ComfyUI)", "awq_w4a16": "AWQ (ComfyUI)",
    "asym_w4a8_int8": "ComfyUI's W4A8",
}  # fmt: skip
"""What its other formats are called here."""

COMFY_SILENT = {"full_precision_matrix_mult", "orig_dtype", "orig_shape", "per_row", "linear_dtype"}
"""What it says of a layer without a say in the stored values, given the tensors."""

FLOAT8 = {name + end: dtype for name, dtype in (("e4m3", "F8_E4M3"), ("e5m2", "F8_E5M2")) for end in ("", "fn")}
"""What statements call the forms of float8."""

SCALE_DTYPES = ("F32", "BF16", "F16")
EXPONENTS = ("U8", "F8_E8M0")
"""Dtypes of scales that are powers of two (E8M0)."""

EXPONENTS_OF = ("fp8", "mxfp8", "compressed-tensors")
"""The ways whose exponents lie in the order of the blocks; others put them into the order of one kernel."""

PLAIN_ONE = "Give it a base of plain weights (float32, float16, bfloat16 or float8)."
OTHER_SCALES = (
    "This version knows one scale, one a row, a column, a block of 128 by 128 or of one row, and no other scheme.\n"
    "Give it such a base, or a plain one."
)
UNDECODED = f"This version cannot decode it, or lacks what it takes to be certain. {PLAIN_ONE}"
UNKNOWN = f"This version does not know what the stored values stand for then.\n{PLAIN_ONE}"


@dataclass(frozen=True, slots=True)
class Stored:
    """Hold what stands for one weight: its tensors by role, "" for one under the weight's own key, and what is said.

    `notes` speak of this layer, `options` are what statements about the whole model say; `rows` are those of the
    bias, and `is_linear` tells that the network has no convolutions that could be stored as matrices.
    """

    key: str
    parts: Mapping[str, TensorInfo]
    notes: tuple[Statement, ...] = ()
    options: Facts = field(default_factory=dict)
    rows: int | None = None
    is_linear: bool = False

    @property
    def roles(self) -> set[str]:
        """Return the roles that have a say in the values."""
        return {role for role in self.parts if role not in NOTES}

    @property
    def beside(self) -> dict[str, TensorInfo]:
        """Return the short tensors that have none, or that speak through `notes`."""
        return {role: self.parts[role] for role in NOTES if role in self.parts}


def find_packing(checkpoint: Checkpoint, beside: Beside) -> Packing:
    """Find how each weight is stored; `beside` holds the files beside the checkpoint's weights.

    Raise FileError for a statement that is there and cannot be read.
    """
    tensors = checkpoint.tensors
    packed = {key: info for key, info in tensors.items() if isinstance(info, PackedInfo)}
    if packed:
        return Packing(packed)  # GGUF says it all
    statements = gather(checkpoint, beside)
    scaled: dict[str, PackedInfo] = {}
    strange: dict[str, Strange] = {}
    for stored in _stored(checkpoint, statements):
        found = recognised(stored)
        if isinstance(found, Strange):
            strange[stored.key] = found
        elif found is not None:
            (scaled if found.dtype.startswith("scaled") else packed)[stored.key] = found
    taken = {*packed, *scaled, *strange}
    strange.update(_mapped(checkpoint, {key: info for key, info in tensors.items() if key not in taken}))
    for key, each in _misnamed(checkpoint, statements, packed | scaled):
        scaled.pop(key, None)
        strange[key] = each
    for part in checkpoint.parts:
        if (doubt := next(_doubts(statements.models.get(part.folder, ())), None)) is not None:
            infos = {info.key: info for header in part.files for info in header.tensors.values()}
            _doubt(infos, doubt, packed, scaled, strange)
    if not (packed or scaled or strange):
        return Packing()
    aside = frozenset(key for key in tensors if key.rpartition(".")[2] in FLOWING)
    return Packing(packed, scaled, strange, aside)


def way_of(keys: Iterable[str]) -> str | None:
    """Tell by names alone who packed a base's weights, if anyone did."""
    found: dict[str, set[str]] = {}
    for key in keys:
        if (place := _place(key) or _after(key)) is not None:
            found.setdefault(place[0], set()).add(place[1])
    return next((title for roles in found.values() if (title := _title(roles, "U8"))), None)


# -- what stands for which weight ------------------------------------------------------------------------


def _place(key: str) -> tuple[str, str] | None:
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


def _after(key: str) -> tuple[str, str] | None:
    match = AFTER.fullmatch(key)
    return (match["weight"], match["role"]) if match else None


def _is_coded(info: TensorInfo) -> bool:
    """Tell whether a tensor's dtype is none in which networks keep plain parameters, float8 aside."""
    return info.dtype in ("U8", "I8", "I16", "U16", "I32", "U32") or info.dtype.startswith(("F4", "F6", "F8"))


def _stored(checkpoint: Checkpoint, statements: Statements) -> Iterator[Stored]:
    """Put the tensors together that stand for one weight, where there is more than a plain one."""
    tensors = checkpoint.tensors
    coded = {key for key, info in tensors.items() if _is_coded(info)}
    convolved = {key.rpartition("/")[0] for key, info in tensors.items() if len(info.shape) == 4}
    is_told = coded or any(key.endswith(ENDS) for key in tensors)
    groups = _groups(tensors, coded) if is_told else {}
    for module in statements.layers:
        weight = next((key for key in (f"{module}.weight", module) if key in tensors), f"{module}.weight")
        groups.setdefault(weight, {})
    options = {folder: _options(said) for folder, said in statements.models.items()}
    for key, parts in groups.items():
        if key in tensors:
            parts = {"": tensors[key], **parts}
        elif not any(role in CODES or info.key in coded for role, info in parts.items() if role not in NOTES):
            continue  # what a scale is called, beside no weight
        module, folder = key.removesuffix(".weight"), key.rpartition("/")[0]
        bias = tensors.get(f"{module}.bias")
        yield Stored(
            key=key,
            parts=parts,
            notes=statements.layers.get(module, ()),
            options=options.get(folder, {}),
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
        inside, named = _inside(key, modules), _place(key)
        place = inside or named or _beside(key, coded) or _after(key)
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
        if info.dtype in FLOAT8.values() and len(info.shape) > 1 and groups.get(key, {}).keys() <= {*NOTES}
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


READ = ("quant_method", "checkpoint_format", "version", "weight_block_size", "expert_dtype", "config_groups", "fmt")
"""The options of whole models that formats look at."""


def _options(said: tuple[Statement, ...]) -> dict[str, object]:
    """Return what a component's statements say of all its weights; where they differ, they are doubted below."""
    found = merged(said, READ)
    promised = any(powers_of_two(statement.says) for statement in said)
    return {} if isinstance(found, str) else {**found, "powers_of_two": promised}


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


# -- what it means ---------------------------------------------------------------------------------------


def recognised(stored: Stored) -> PackedInfo | Strange | None:
    """Describe how a weight is stored; None for a plain one."""
    if not stored.roles - {""} and not stored.notes and "weight_format" not in stored.parts:
        return None
    said = {json.dumps(_meaning(note.says), sort_keys=True) for note in stored.notes}
    if len(said) > 1:
        places = " and ".join(dict.fromkeys(note.place for note in stored.notes))
        return _strange(stored, f"of which {visible(places)} say different things\n{UNKNOWN}")
    for format_of in FORMATS:
        if (found := format_of(stored)) is not None:
            return found
    return _strange(stored, _reason(stored))


def _reason(stored: Stored) -> str:
    others = [info.key for role, info in stored.parts.items() if role and role not in NOTES]
    own = stored.parts.get("")
    if stored.notes:
        note = stored.notes[0]
        said = json.dumps(note.says) if note.says else "nothing that can be read"
        return f"of which {visible(note.place)} says {said}\n{UNKNOWN}"
    if own is not None and not _is_form(own, stored.options):
        fmt = visible(str(stored.options["fmt"]))
        return f"which is {DTYPES[own.dtype].title}, though it is said to be {fmt} (fmt)\n{UNKNOWN}"
    title = _title(stored.roles, own.dtype if own else "")
    if title or own is None:
        return f"which is stored as {title or 'codes'} ({visible((others or [stored.key])[0])})\n{UNDECODED}"
    if (far := next((info.key for role, info in stored.parts.items() if role == ELSEWHERE), None)) is not None:
        return f"which {visible(far)} may scale\n{OTHER_SCALES}"
    scales = [stored.parts[role].key for role in SCALES if role in stored.parts] or others
    if "scale" in scales[0].rpartition(".")[2] or DTYPES[own.dtype].takes_scale:
        return f"which is scaled by {visible(scales[0])}\n{OTHER_SCALES}"
    return f"beside which stands {visible(scales[0])}\n{UNKNOWN}"


def _strange(stored: Stored, why: str) -> Strange:
    named = str(stored.notes[0].says.get("format")) if stored.notes else ""
    own = stored.parts.get("")
    dtype = own.dtype if own else "codes"
    title = _title(stored.roles, dtype) or COMFY_NAMES.get(named, named)
    title = (
        title or f"{DTYPES[dtype].title if dtype in DTYPES else dtype} with {', '.join(sorted(stored.roles - {''}))}"
    )
    has_codes = any(role in CODES or _is_coded(info) for role, info in stored.parts.items() if role not in NOTES)
    return Strange(title, why, frozenset(info.key for info in stored.parts.values()), has_codes)


def _title(roles: Iterable[str], dtype: str) -> str:
    there = {*roles, dtype}
    return next((title for needed, title in TITLES if needed <= there), "")


def _meaning(says: Facts) -> dict[str, object]:
    """Return what a note says, without what says nothing; ComfyUI looks into `params`, too."""
    inner = says.get("params")
    whole = {**(inner if isinstance(inner, dict) else {}), **{key: says[key] for key in says if key != "params"}}
    if not whole.get("convrot") and whole.get("format") == "int8_tensorwise":
        whole = {key: value for key, value in whole.items() if not key.startswith("convrot")}
    elif whole.get("convrot"):
        whole = {"convrot_groupsize": 256, **whole}
    return {key: value for key, value in whole.items() if key not in COMFY_SILENT}


def _scaled(stored: Stored) -> PackedInfo | None:
    """Describe a weight times its scales."""
    names = stored.roles - {""}
    weight = stored.parts.get("")
    if weight is None or len(names) != 1 or not names <= {*SCALES} or not DTYPES[weight.dtype].takes_scale:
        return None
    scale = stored.parts[next(iter(names))]
    in_order = not stored.notes and stored.options.get("quant_method") in EXPONENTS_OF
    if scale.dtype not in SCALE_DTYPES and not (scale.dtype in EXPONENTS and in_order and weight.dtype != "I8"):
        return None
    if scale.key.endswith(".SCB") and (weight.dtype, scale.dtype) != ("I8", "F32"):
        return None
    found = grid(weight.shape, scale.shape)
    if found is None or not _is_said(found, weight.shape, stored.options):
        return None
    if not _is_form(weight, stored.options):
        return None
    if "weight_format" in stored.parts and read_note(stored.parts["weight_format"]).strip(b"\0"):
        return None  # bitsandbytes laid it out for one GPU
    if weight.dtype == "I8" and stored.options.get("expert_dtype", "fp8") != "fp8":
        return None  # two values of 4 bits each
    if any(bits != 8 for bits in _bits(stored.options, "int" if weight.dtype == "I8" else "float")):
        return None
    facts: dict[str, object] = {}
    if stored.notes:
        rotation = _rotation(_meaning(stored.notes[0].says), weight, found[0])
        if rotation is None:
            return None
        facts |= {"rotation": rotation} if rotation else {}
    if stored.options.get("powers_of_two") or scale.dtype in EXPONENTS:
        facts["powers_of_two"] = True
    parts = {"weight": weight, "scale": scale, **stored.beside}
    return described(f"scaled {weight.dtype}", weight.key, weight.shape, parts, facts)


def _is_form(weight: TensorInfo, options: Facts) -> bool:
    """Tell whether a weight in float8 is in the form that statements name, if they name one."""
    form = str(options.get("fmt")).removeprefix("float8_")
    return weight.dtype not in FLOAT8.values() or weight.dtype == FLOAT8.get(form, weight.dtype)


def _is_said(found: tuple[tuple[int, int], tuple[int, int]], shape: tuple[int, ...], options: Facts) -> bool:
    """Tell whether blocks, as shapes show them, are of a size that statements name, if they name any.

    One scale, one a row and one a column leave nothing to say. An axis with one scale tells no size of its own.
    """
    counts, sizes = found
    axes = list(zip(counts, sizes, shape, strict=False))
    if len(shape) != 2 or not any(1 < count < length for count, _, length in axes):
        return True
    said = [*_blocks(options)]

    def fits(block: int, count: int, size: int, length: int) -> bool:
        return block >= length if count == 1 else block == size

    return not said or any(all(fits(size, *axis) for size, axis in zip(each, axes, strict=True)) for each in said)


def _blocks(options: Facts) -> Iterator[tuple[int, int]]:
    """Yield the sizes of blocks, down and across, that statements name."""
    weights = [group.get("weights") for group in _config_groups(options)]
    blocks = [each.get("block_structure") for each in weights if isinstance(each, dict)]
    blocks += [[1, each.get("group_size")] for each in weights if isinstance(each, dict)]
    for block in (options.get("weight_block_size"), *blocks):
        sizes = block.split("x") if isinstance(block, str) else block
        if isinstance(sizes, (list, tuple)) and len(sizes) == 2 and all(str(size).isdigit() for size in sizes):
            yield int(sizes[0]), int(sizes[1])


def _rotation(meaning: Facts, weight: TensorInfo, scales: tuple[int, int]) -> int | None:
    """Return how many values ConvRot turns together, 0 for none; None where a note says anything else."""
    is_known = meaning.keys() <= {"format", "convrot", "convrot_groupsize"}
    if not is_known or meaning.get("format") != COMFY[weight.dtype]:
        return None
    if "convrot" not in meaning:
        return 0
    if weight.dtype != "I8" or len(weight.shape) != 2 or scales[1] != 1:
        return None
    return _group(meaning, weight.shape[1])


def _group(meaning: Facts, columns: int) -> int | None:
    """Return how many values ConvRot turns together: a power of 4, so many in a row."""
    group = meaning.get("convrot_groupsize", 256)
    is_power = type(group) is int and group in (4**power for power in range(1, 10))
    return group if isinstance(group, int) and is_power and columns % group == 0 else None


def _convrot(stored: Stored) -> PackedInfo | None:
    """Describe ComfyUI's `convrot_w4a4`: two values of 4 bits a byte, the first one below, times a scale a row."""
    if not stored.notes or stored.roles != {"", "weight_scale"}:
        return None
    meaning, codes, scale = _meaning(stored.notes[0].says), stored.parts[""], stored.parts["weight_scale"]
    if meaning.get("format") != "convrot_w4a4" or not meaning.keys() <= {"format", "convrot", "convrot_groupsize"}:
        return None
    if codes.dtype != "I8" or len(codes.shape) != 2 or scale.dtype not in SCALE_DTYPES:
        return None
    rows, columns = codes.shape[0], codes.shape[1] * 2
    group = _group(meaning, columns)
    if group is None or scale.shape not in ((rows,), (rows, 1)):
        return None
    parts = {"codes": codes, "scale": scale, **stored.beside}
    return described("ConvRot W4A4", stored.key, (rows, columns), parts, {"rotation": group})


def _config_groups(options: Facts) -> list[dict[str, object]]:
    """Return the groups that compressed-tensors tells apart, in an object or in a list."""
    groups = options.get("config_groups")
    each = [*groups.values()] if isinstance(groups, dict) else groups
    return [group for group in each if isinstance(group, dict)] if isinstance(each, list) else []


def _bits(options: Facts, kind: str) -> Iterator[object]:
    """Yield how many bits compressed-tensors says that weights of a kind have."""
    for group in _config_groups(options):
        weights = group.get("weights")
        if not isinstance(weights, dict) or "pack" in str(group.get("format")):
            continue
        if weights.get("type", "int") == kind:
            yield weights.get("num_bits", 8)


def _bitsandbytes(stored: Stored) -> PackedInfo | None:
    """bitsandbytes' 4 bits (Dettmers et al. 2023, arXiv 2305.14314): codes, a table of values, sizes of blocks."""
    parts = {role: stored.parts[role] for role in BITSANDBYTES if role in stored.parts}
    note = next((role for role in parts if role.startswith("quant_state")), None)
    codes = stored.parts.get("")
    if codes is None or note is None or not {"absmax", "quant_map"} <= parts.keys():
        return None
    codes = replace(
        codes, dtype="U8", shape=(codes.nbytes,)
    )  # kept in any dtype, for programs that move floats alone
    if stored.roles != {"", *parts} or stored.notes:
        return None
    said = read_facts(parts[note])
    shape, size = said.get("shape"), said.get("blocksize")
    nested = said.get("nested_blocksize") if "nested_absmax" in parts else None
    if not isinstance(shape, list) or type(size) is not int or codes.nbytes * 2 != prod(shape):
        return None
    if nested is not None and (type(nested) is not int or "nested_quant_map" not in parts):
        return None
    if parts["absmax"].dtype != ("U8" if nested else "F32"):
        return None
    facts = {"blocksize": size, "nested_blocksize": nested, "offset": said.get("nested_offset", 0.0)}
    title = f"bitsandbytes {said.get('quant_type', '4 bits')}"
    return described(title, stored.key, tuple(shape), {"codes": codes, **parts, **stored.beside}, facts)


def _by_groups(stored: Stored) -> PackedInfo | None:
    """Describe GPTQ (arXiv 2210.17323) packed along the inputs, and AWQ (arXiv 2306.00978) along the outputs.

    GPTQ's two formats differ in nothing but what they mean by a zero: a statement has to say which it is.
    """
    names = ("qweight", "qzeros", "scales", "g_idx")
    parts = {name: stored.parts[name] for name in names if name in stored.parts}
    if not {*names[:3]} <= parts.keys() or stored.roles != parts.keys() or stored.notes:
        return None
    weight, zeros, scales = (parts[name].shape for name in names[:3])
    if {len(shape) for shape in (weight, zeros, scales)} != {2} or parts["qweight"].dtype != "I32":
        return None
    (groups, out), options, whole = scales, stored.options, parts | stored.beside
    if weight[1] * 8 == out and zeros == (groups, weight[1]) and weight[0] % groups == 0 and "g_idx" not in parts:
        version = str(options.get("version", "gemm")).lower()
        return described("AWQ", stored.key, (out, weight[0]), whole, {"bits": 4}) if version == "gemm" else None
    bits = 32 * zeros[1] // out if out else 0
    if weight[1] != out or bits not in (2, 4, 8) or zeros != (groups, out * bits // 32):
        return None
    inputs = weight[0] * 32 // bits
    if ("g_idx" in parts and parts["g_idx"].shape != (inputs,)) or inputs % max(groups, 1):
        return None
    offset = {"gptq": 1, "gptq_v2": 0}.get(str(options.get("checkpoint_format", "gptq")))
    if options.get("quant_method") != "gptq" or offset is None:
        return None  # nothing says whether zeros are stored less one, or that it was not packed anew for one kernel
    return described("GPTQ", stored.key, (out, inputs), whole, {"bits": bits, "offset": offset})


def _compressed(stored: Stored) -> PackedInfo | None:
    """compressed-tensors' `pack-quantized`: 4 or 8 bits a value, half of the range below zero, scales by group."""
    if stored.roles != {"weight_packed", "weight_scale", "weight_shape"} or stored.notes:
        return None
    packed, scale, noted = (stored.parts[name] for name in ("weight_packed", "weight_scale", "weight_shape"))
    if noted.dtype not in ("I64", "I32") or noted.shape != (2,) or packed.dtype != "I32" or len(scale.shape) != 2:
        return None
    out, inputs = read_shape(noted)
    bits = next((bits for bits in (4, 8) if packed.shape == (out, -(-inputs * bits // 32))), 0)
    if not bits or scale.shape[0] != out or inputs % max(scale.shape[1], 1):
        return None
    parts = {"packed": packed, "scale": scale, "shape": noted, **stored.beside}
    return described("compressed-tensors", stored.key, (out, inputs), parts, {"bits": bits})


def _mxfp4(stored: Stored) -> PackedInfo | None:
    """Describe MXFP4 as gpt-oss stores experts: 32 values a block along the inputs, the weight transposed in use."""
    if stored.roles != {"blocks", "scales"} or stored.notes:
        return None
    blocks, scales = stored.parts["blocks"], stored.parts["scales"]
    if (blocks.dtype, scales.dtype) != ("U8", "U8") or scales.shape != blocks.shape[:3] or blocks.shape[3:] != (16,):
        return None
    experts, rows, groups, _ = blocks.shape
    return described("MXFP4", stored.key, (experts, groups * 32, rows), {"blocks": blocks, "scales": scales})


def _quanto(stored: Stored) -> PackedInfo | None:
    """Describe optimum-quanto's 8 bits: a weight in its own shape, times one scale or one a row (quanto 0.2)."""
    if stored.roles != {"_data", "_scale"} or stored.notes:
        return None
    data, scale = stored.parts["_data"], stored.parts["_scale"]
    rows = (data.shape[:1] or (1,)) + (1,) * (len(data.shape) - 1)
    if not DTYPES[data.dtype].takes_scale or scale.dtype not in SCALE_DTYPES or scale.shape not in ((), rows):
        return None
    kind = {"I8": "qint8", "F8_E4M3": "qfloat8", "F8_E5M2": "qfloat8_e5m2"}[data.dtype]
    parts = {"data": data, "scale": scale, **stored.beside}
    return described(f"quanto {kind}", stored.key, data.shape, parts)


def _quanto_bits(stored: Stored) -> PackedInfo | None:
    """Describe optimum-quanto's 2 and 4 bits: rows cut into groups, one half or quarter of the groups above the next.

    The shape is not stored: rows of 32 to 128 values may be groups of rows. It is certain where a bias tells how
    many rows there are, and no convolution may hide behind it.
    """
    if stored.roles != {"_data._data", "_scale", "_shift"} or stored.notes:
        return None
    data, scale, shift = (stored.parts[name] for name in ("_data._data", "_scale", "_shift"))
    if data.dtype != "U8" or len(data.shape) < 2 or scale.dtype not in SCALE_DTYPES or scale.shape != shift.shape:
        return None
    if shift.dtype not in (*SCALE_DTYPES, "I8", "U8") or scale.shape[1:] != (1,) * (len(data.shape) - 1):
        return None
    groups = scale.shape[0]
    bits = [bits for bits in (4, 2) if -(-groups * bits // 8) == data.shape[0]]
    size = prod(data.shape[1:])
    if len(bits) != 1:
        return None
    if len(data.shape) > 2 or size not in (32, 64, 96, 128):  # no groups
        shape = (groups, *data.shape[1:])
    elif stored.rows and stored.is_linear and groups % stored.rows == 0:
        shape = (stored.rows, groups // stored.rows * size)
        if size != _quanto_group(shape[1]):
            return None
    else:
        return None
    parts = {"data": data, "scale": scale, "shift": shift, **stored.beside}
    return described(f"quanto qint{bits[0]}", stored.key, shape, parts, {"bits": bits[0]})


def _quanto_group(columns: int) -> int:
    """Return how many values of a row share a scale: 128, or the largest of 96, 64 and 32 that fits; else the row."""
    fitting = (size for size in (128, 96, 64, 32) if columns % size == 0)
    return next(fitting, columns) if columns > 128 else columns


FORMATS = (_scaled, _convrot, _bitsandbytes, _by_groups, _compressed, _mxfp4, _quanto, _quanto_bits)
"""What recognises weights: each takes what stands for one, and describes it if it understands all of it."""


# -- doubts about a whole model --------------------------------------------------------------------------


def _doubts(statements: Iterable[Statement]) -> Iterator[str]:
    """Yield why the weights of a model cannot be trusted to be what their tensors say."""
    statements = tuple(statements)
    for statement in statements:
        if (what := fault(statement)) is not None:
            advice = f"If that has no say in stored values, take it out of a copy of the base's {statement.place}."
            yield f"of which {statement.place} says {visible(what)}\n{UNKNOWN}\n{advice}"
    if isinstance(options := merged(statements, READ), str):
        yield f"{options}\n{UNKNOWN}"


def _mapped(checkpoint: Checkpoint, infos: Mapping[str, TensorInfo]) -> Iterator[tuple[str, Strange]]:
    """Yield plain weights in float8 beside whose file another lies that may hold their scales."""
    for part in checkpoint.parts:
        root = (checkpoint.path if checkpoint.is_folder else checkpoint.path.parent) / part.folder
        maps: dict[str, str] | None = None
        for header in part.files:
            coded = [each for each in header.tensors.values() if each.key in infos and each.dtype in FLOAT8.values()]
            eights = [info for info in coded if len(info.shape) > 1]
            if eights and maps is None:
                maps = _maps_in(root)
            beside = maps.get(header.path.stem.lower()) if eights and maps else None
            for info in eights if beside else ():
                title = f"{DTYPES[info.dtype].title} beside {beside}"
                why = f"which {visible(str(beside))} beside its file may scale\n{OTHER_SCALES}"
                yield info.key, Strange(title, why, frozenset({info.key}), has_codes=True)


def _maps_in(folder: Path) -> dict[str, str]:
    """Map the stems of files, in small letters, to the names of those that may hold their scales."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # files in a folder can be read though it cannot be listed
        return {}
    found: dict[str, str] = {}
    for name in names:
        for cut in (match.start() for match in re.finditer(r"[._-]", name)):
            if MAP.fullmatch(name, cut):
                found.setdefault(name[:cut].lower(), name)
    return found


def _misnamed(
    checkpoint: Checkpoint, statements: Statements, stored: Mapping[str, PackedInfo]
) -> Iterator[tuple[str, Strange]]:
    """Yield weights of which nothing is said, where something is said of layers that are not there.

    Both may be the same layers by two names. What names a format that tensors show says nothing more than they do.
    """
    for part in checkpoint.parts:
        lost = statements.lost.get(part.folder, {})
        shown = [{"format": name} for name in COMFY.values()]
        name = next((name for name, each in lost.items() if _meaning(each.says) not in ({}, *shown)), None)
        if name is None:
            continue
        keys = {info.key for header in part.files for info in header.tensors.values()}
        for key, info in stored.items():
            parts = frozenset(part.key for part in info.parts.values())
            if keys & parts and key.removesuffix(".weight") not in statements.layers:
                why = f"which {lost[name].place} may mean by {visible(name)}, a layer that the base does not have"
                yield key, Strange(f"{info.title} {why}", f"{why}\n{UNKNOWN}", parts, has_codes=True)


def _doubt(
    infos: Mapping[str, TensorInfo],
    why: str,
    packed: Mapping[str, PackedInfo],
    scaled: dict[str, PackedInfo],
    strange: dict[str, Strange],
) -> None:
    """Make every weight of a component strange."""
    reason = why.partition("\n")[0]
    for key in (*packed, *scaled):
        found = packed.get(key) or scaled[key]
        keys = frozenset(part.key for part in found.parts.values())
        if keys & infos.keys():
            strange[key] = Strange(f"{found.title} {reason}", why, keys)
            scaled.pop(key, None)
    taken = frozenset().union(*(each.parts for each in strange.values()))
    for key, info in infos.items():
        if key not in taken and DTYPES[info.dtype].floating:
            strange[key] = Strange(f"floats {reason}", why, frozenset({key}))
