"""Projections that trainers join: diffusers' `fuse_qkv_projections`, SimpleTuner; vLLM's and Phi's language models.

A fused projection has the rows of its parts one after the other, even if keys and values have fewer heads than
queries. If a layout stores it fused, the family's table has a row for it. If the base stores the parts, the fused
names here lead to all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lorabake.keymap.view import View, join

if TYPE_CHECKING:
    from lorabake.keymap.module import Module

_QKV, _ADDED_QKV = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
FUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "to_v": {"to_qkv": _QKV, "to_kv": _QKV[1:]},
    "add_v_proj": {"to_added_qkv": _ADDED_QKV, "add_qkv_proj": _ADDED_QKV, "to_added_kv": _ADDED_QKV[1:]},
    "v_proj": {"qkv_proj": ("q_proj", "k_proj", "v_proj")},
    "up_proj": {"gate_up_proj": ("gate_proj", "up_proj")},
}
"""The last part's name -> the fused names that end with it -> the names of all parts, in order."""


def fused(modules: Mapping[str, Module]) -> Iterator[tuple[str, list[Module]]]:
    """Yield the name and the parts of each projection that a trainer could have joined."""
    for path in modules:
        stem, dot, last = path.rpartition(".")
        for name, parts in FUSED.get(last, {}).items():
            present = [modules[f"{stem}{dot}{part}"] for part in parts if f"{stem}{dot}{part}" in modules]
            if len(present) == len(parts):
                yield f"{stem}{dot}{name}", present


def joined(parts: list[Module]) -> dict[str, View]:
    """Stack the parts' weights, and their biases; return {} if the weights do not go together.

    Queries with other inputs than keys and values, for example, cannot be fused with them.
    """
    views = ((parameter, join([part.views.get(parameter) for part in parts])) for parameter in ("weight", "bias"))
    whole = {parameter: view for parameter, view in views if view is not None}
    return whole if "weight" in whole else {}
