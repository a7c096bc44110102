"""Laws that hold for many kinds: the strength, an alpha of 0, and DoRA, as the definition or a program has them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from lorabake.reference.formulas.formula import Array, Place, Tensors

WHOLE = {
    "comfyui": ("set_weight", "set_bias", "set_scale"),
    "forge": ("set_weight", "set_bias", "set_scale"),
    "peft": (
        *("whole", "whole_bias", "ln_tuning", "ln_tuning_bias", "trainable_tokens"),
        *("oft_peft", "boft_peft", "hra", "miss", "deft"),
    ),
}
"""What programs apply whole at any strength, by `Kind.name`."""


def share(kind: str, tensors: Tensors, place: Place) -> float:
    """Return what the difference that `changed` makes is multiplied by: the strength, but for programs with a law.

    PEFT and LyCORIS have the strength inside DoRA, LyCORIS also inside BOFT's rounds and under `rescale`; ComfyUI
    takes it twice for OFT. ComfyUI and Forge replace whatever it is, and so does PEFT, which has none for rotations.
    """
    if {"magnitude", "dora_scale"} & tensors.keys():
        return 1.0 if place.semantics in ("peft", "lycoris") else place.strength
    if kind in WHOLE.get(place.semantics, ()):
        return 1.0
    if kind == "oft" and place.semantics == "lycoris" and (tensors["oft_blocks"].ndim == 4 or "rescale" in tensors):
        return 1.0
    if kind == "oft" and place.semantics == "comfyui" and tensors["oft_blocks"].ndim == 3:
        return place.strength**2
    return place.strength


def scale_of(kind: str, alpha: float, rank: int, slots: Collection[str]) -> float:
    """Return alpha/rank; LoKr ignores alpha where both of its factors are whole."""
    is_whole = kind == "lokr" and not {"lokr_w1_b", "lokr_w2_b"} & set(slots)
    return 1.0 if is_whole else alpha / rank


def scale_of_alpha_0(semantics: str) -> float | None:
    """Return what stands for alpha/rank where alpha is 0, None if nothing does: LyCORIS puts the rank for it."""
    return {"lycoris": 1.0, "comfyui": 0.0, "forge": 0.0, "a1111": 0.0}.get(semantics)


def dora(tensors: Tensors, weight: Array, delta: Array, place: Place) -> Array:
    """V·d/‖V‖ with V = W + ΔW, by rows or by columns (arXiv 2402.09353); PEFT's on an embedding are by columns.

    PEFT has s·ΔW in V; LyCORIS V·(1 + s·(d/‖V‖ − 1)); ComfyUI and Forge, by rows, ‖W‖; AUTOMATIC1111 always norms of
    columns.
    """
    given = tensors.get("magnitude", tensors.get("dora_scale"))
    assert given is not None
    by_row = given.shape[0] == place.shape[0] and given.size == place.shape[0]
    if "magnitude" in tensors:
        by_row = "embedding_up" not in tensors
    updated = weight + (place.strength if place.semantics == "peft" else 1.0) * delta
    measured = weight if place.semantics in ("comfyui", "forge") and by_row else updated
    cube = measured.reshape(len(measured), place.shape[1], -1)
    if by_row and place.semantics != "a1111":
        norms = np.sqrt((cube**2).sum(axis=(1, 2), keepdims=True))
    else:
        norms = np.sqrt((cube**2).sum(axis=(0, 2), keepdims=True))
    lengths = given.reshape(-1)[place.rows][:, None, None] if by_row else given.reshape(1, -1, 1)
    ratio = lengths / norms
    if place.semantics == "lycoris":
        ratio = 1 + place.strength * (ratio - 1)
    return np.asarray((updated.reshape(cube.shape) * ratio).reshape(updated.shape))
