"""Recognise how each weight is stored: by the tensors beside it, and by what the checkpoint says of it.

A format recognises a weight if it understands all of its tensors and statements; what none recognises is `Strange`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from lorabake.codecs import codecs, comfy
from lorabake.codecs.codec import FLOWING, LAYOUT, NOTES, Group, Stored, Strange
from lorabake.codecs.scaled import SCALES
from lorabake.keymap.view import reordered, seen
from lorabake.storage.advice import OTHER_SCALES, UNDECODED, UNKNOWN
from lorabake.storage.doubts import doubted, mapped, misnamed
from lorabake.storage.groups import CODES, ELSEWHERE, groups_of, is_coded, place_after, place_by_name
from lorabake.storage.packing import Packing
from lorabake.storage.statements import Beside, gather
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.dtypes import DTYPES
from lorabake.visible import visible

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
"""Titles of formats, by roles and dtypes that no other format has; the first match counts."""

COMFY_NAMES = {
    "nvfp4": "NVFP4", "mxfp8": "MXFP8", "svdquant_w4a4": "SVDQuant (ComfyUI)", "awq_w4a16": "AWQ (ComfyUI)",
    "asym_w4a8_int8": "ComfyUI's W4A8",
}  # fmt: skip
"""What its other formats are called here."""


def find_packing(
    checkpoint: Checkpoint, beside: Beside, orders: Mapping[str, tuple[range, ...]] | None = None
) -> Packing:
    """Find how each weight is stored; `beside` holds the files beside the checkpoint's weights.

    `orders` say of tensors which of their rows comes when, where that is not as they lie. Raise FileError for a
    statement that is there and cannot be read.
    """
    tensors = checkpoint.tensors
    packed = {key: seen(info) for key, info in tensors.items() if info.by_columns or info.dtype not in DTYPES}
    packed |= {key: reordered(seen(tensors[key]), rows) for key, rows in (orders or {}).items()}
    if packed:
        return Packing({key: packed[key] for key in tensors if key in packed})  # the file says it all
    statements = gather(checkpoint, beside)
    scaled: dict[str, Stored] = {}
    strange: dict[str, Strange] = {}
    for group in groups_of(checkpoint, statements):
        weight = recognised(group)
        if isinstance(weight, Strange):
            strange[group.key] = weight
        elif weight is not None:
            (scaled if weight.codec.encodes else packed)[group.key] = weight
    taken = {*packed, *scaled, *strange}
    strange |= mapped(checkpoint, {key: info for key, info in tensors.items() if key not in taken})
    strange |= misnamed(checkpoint, statements, packed | scaled)
    for part in checkpoint.parts:
        infos = {info.key: info for header in part.files for info in header.tensors.values()}
        weights = [*packed.values(), *(weight for key, weight in scaled.items() if key not in strange)]
        strange |= doubted(infos, statements.models.get(part.folder, ()), weights, strange)
    if not (packed or scaled or strange):
        return Packing()
    scaled = {key: weight for key, weight in scaled.items() if key not in strange}
    aside = frozenset(key for key in tensors if key.rpartition(".")[2] in FLOWING)
    return Packing(packed, scaled, strange, aside)


def way_of(keys: Iterable[str]) -> str | None:
    """Tell by names alone who packed a base's weights, if anyone did."""
    found: dict[str, set[str]] = {}
    for key in keys:
        if (place := place_by_name(key) or place_after(key)) is not None:
            found.setdefault(place[0], set()).add(place[1])
    return next((title for roles in found.values() if (title := _title(roles, "U8"))), None)


def recognised(group: Group) -> Stored | Strange | None:
    """Describe how a weight is stored; None for a plain one."""
    if not group.roles - {""} and not group.notes and LAYOUT not in group.parts:
        return None
    said = {json.dumps(comfy.meaning(note.says), sort_keys=True) for note in group.notes}
    if len(said) > 1:
        places = " and ".join(dict.fromkeys(note.place for note in group.notes))
        return _strange(group, f"of which {visible(places)} say different things\n{UNKNOWN}")
    claims = [weight for codec in codecs() if (weight := codec.recognise(group)) is not None]
    known_better = frozenset().union(*(weight.codec.before for weight in claims))
    claims = [weight for weight in claims if weight.codec.name not in known_better]
    if len(claims) == 1:
        return claims[0]
    if claims:
        titles = " and ".join(sorted(weight.title for weight in claims))
        return _strange(group, f"which may be stored as {titles}\n{UNKNOWN}")
    return _strange(group, _reason(group))


def _reason(group: Group) -> str:
    others = [info.key for role, info in group.parts.items() if role and role not in NOTES]
    own = group.parts.get("")
    if group.notes:
        note = group.notes[0]
        said = json.dumps(note.says) if note.says else "nothing that can be read"
        return f"of which {visible(note.place)} says {said}\n{UNKNOWN}"
    if contradiction := next((said for codec in codecs() if (said := codec.contradiction(group))), ""):
        return f"{contradiction}\n{UNKNOWN}"
    title = _title(group.roles, own.dtype if own else "")
    if title or own is None:
        return f"which is stored as {title or 'codes'} ({visible((others or [group.key])[0])})\n{UNDECODED}"
    if (far := next((info.key for role, info in group.parts.items() if role == ELSEWHERE), None)) is not None:
        return f"which {visible(far)} may scale\n{OTHER_SCALES}"
    scales = [group.parts[role].key for role in SCALES if role in group.parts] or others
    if "scale" in scales[0].rpartition(".")[2] or DTYPES[own.dtype].takes_scale:
        return f"which is scaled by {visible(scales[0])}\n{OTHER_SCALES}"
    return f"beside which stands {visible(scales[0])}\n{UNKNOWN}"


def _strange(group: Group, why: str) -> Strange:
    named = str(group.notes[0].says.get("format")) if group.notes else ""
    own = group.parts.get("")
    dtype = own.dtype if own else "codes"
    title = _title(group.roles, dtype) or COMFY_NAMES.get(named, named)
    title = (
        title or f"{DTYPES[dtype].title if dtype in DTYPES else dtype} with {', '.join(sorted(group.roles - {''}))}"
    )
    has_codes = any(role in CODES or is_coded(info) for role, info in group.parts.items() if role not in NOTES)
    return Strange(title, why, frozenset(info.key for info in group.parts.values()), has_codes)


def _title(roles: Iterable[str], dtype: str) -> str:
    there = {*roles, dtype}
    return next((title for needed, title in TITLES if needed <= there), "")
