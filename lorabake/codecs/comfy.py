"""Read what ComfyUI says of a layer, in a note beside its weight or in the header."""

from __future__ import annotations

from lorabake.codecs.codec import Group, Says

NAMES = {"I8": "int8_tensorwise", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""ComfyUI's names of formats that multiply a weight by scales, by dtype."""

SILENT = {"full_precision_matrix_mult", "orig_dtype", "orig_shape", "per_row", "linear_dtype"}
"""Fields about a layer that do not affect its stored values."""

ROTATING = {"format", "convrot", "convrot_groupsize"}
"""Fields about a layer whose weight may be rotated."""


def meaning(says: Says) -> dict[str, object]:
    """Return the meaningful fields of a note; ComfyUI also reads those in `params`."""
    inner = says.get("params")
    whole = {**(inner if isinstance(inner, dict) else {}), **{key: says[key] for key in says if key != "params"}}
    if not whole.get("convrot") and whole.get("format") == "int8_tensorwise":
        whole = {key: value for key, value in whole.items() if not key.startswith("convrot")}
    elif whole.get("convrot"):
        whole = {"convrot_groupsize": 256, **whole}
    return {key: value for key, value in whole.items() if key not in SILENT}


def said(group: Group) -> dict[str, object]:
    """Return what the notes of a weight say; they all say the same, and without notes it is empty."""
    return meaning(group.notes[0].says) if group.notes else {}


def rotated_values(says: Says, columns: int) -> int | None:
    """Return how many values of a row ConvRot turns together: a power of 4 that divides the row; None otherwise."""
    count = says.get("convrot_groupsize", 256)
    is_power = type(count) is int and count in (4**power for power in range(1, 10))
    return count if isinstance(count, int) and is_power and columns % count == 0 else None
