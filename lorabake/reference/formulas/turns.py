"""Kinds that turn the rows or the columns of a weight: OFT and its kin, and rotations one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lorabake.reference.formulas.formula import Array, Formula, Place, PlaceOf, Tensors

if TYPE_CHECKING:
    from lorabake.adapters.deft import DeftSettings
    from lorabake.adapters.hra import HraSettings
    from lorabake.adapters.oft import OftSettings
    from lorabake.adapters.oft_peft import PeftOftSettings
    from lorabake.adapters.road import RoadSettings


def oft(tensors: Tensors, weight: Array, place: PlaceOf[OftSettings], scale: float) -> Array:
    """Rᵀ·W by blocks of rows, or R·W after R·W on rows a butterfly apart (arXiv 2306.07280, 2311.06243).

    ComfyUI's bound is alpha alone; its OFT has no `rescale`, its BOFT s·R + (1 − s)·I in the place of R. So has
    LyCORIS's BOFT, and its OFT, which comes to the same as W + s·(Rᵀ·W − W) before `rescale`.
    """
    return _turned(tensors, weight, place, is_kohya=place.settings.kohya)


def _turned(tensors: Tensors, weight: Array, place: Place, *, is_kohya: bool) -> Array:
    blocks = tensors["oft_blocks"]
    skew = blocks - np.swapaxes(blocks, -1, -2)
    if "alpha" in tensors:
        size = 1 if place.semantics == "comfyui" else place.shape[0]
        bound, norm = tensors["alpha"].item() * size, float(np.sqrt((skew**2).sum()))
        if norm > max(bound, 0.0) and (bound > 0 or (is_kohya and not place.semantics)):
            skew = skew * (bound / norm)
    one = np.eye(blocks.shape[-1])
    turns = (one + skew) @ np.linalg.inv(one - skew)
    inside = {"comfyui": blocks.ndim == 4, "lycoris": blocks.ndim == 4 or "rescale" in tensors}
    if inside.get(place.semantics):
        turns = place.strength * turns + (1 - place.strength) * one
    size, turned = blocks.shape[-1], weight.copy()
    if blocks.ndim == 3:
        for block, turn in enumerate(turns):
            rows = slice(block * size, (block + 1) * size)
            turned[rows] = turn.T @ weight[rows]
    else:
        for level, matrices in enumerate(turns):
            order = np.arange(len(weight)).reshape(-1, 2, 2**level * size // 2).swapaxes(1, 2).reshape(-1)
            for block, turn in enumerate(matrices):
                mixed = order[block * size : (block + 1) * size]
                turned[mixed] = turn @ turned[mixed]
    rescales = "rescale" in tensors and (place.semantics != "comfyui" or blocks.ndim == 4)
    return turned * tensors["rescale"].reshape(-1, 1) if rescales else turned


def oft_parts(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Rᵀ·W by blocks of rows, each part of the rows bounded by alpha times their number (kohya's OFT for Flux)."""
    turned, start = np.empty_like(weight), 0
    for slot in sorted(slot for slot in tensors if slot != "alpha"):
        blocks = tensors[slot]
        rows = slice(start, start + blocks.shape[0] * blocks.shape[1])
        own = PlaceOf(slice(0, rows.stop - start), (rows.stop - start, *place.shape[1:]), place.settings)
        part = {"oft_blocks": blocks, "alpha": tensors["alpha"]}
        turned[rows] = _turned(part, weight[rows], own, is_kohya=True)
        start = rows.stop
    return turned


def oft_diag(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Multiply each block of rows by its matrix, transposed."""
    blocks = tensors["oft_diag"]
    cube = weight.reshape(blocks.shape[0], blocks.shape[1], -1)
    return np.asarray(np.einsum("nab,nac->nbc", blocks, cube).reshape(weight.shape))


def oft_peft(tensors: Tensors, weight: Array, place: PlaceOf[PeftOftSettings], scale: float) -> Array:
    """W·Rᵀ by blocks of columns; R is exact, or the cut series of its inverse (arXiv 2506.19847)."""
    packed, terms = tensors["oft_R"], place.settings.terms
    size = next(b for b in range(2, weight.shape[1] + 1) if b * (b - 1) // 2 == packed.shape[1])
    turned = np.empty_like(weight)
    for block in range(weight.shape[1] // size):
        skew = np.zeros((size, size))
        skew[np.triu_indices(size, 1)] = packed[block % len(packed)]
        skew -= skew.T
        if place.settings.is_scaled:
            skew /= 2 * np.sqrt(size - 1)
        one = np.eye(size)
        if terms:
            powers = [np.linalg.matrix_power(skew, power) for power in range(terms)]
            factors = [1.0] + [2.0] * (len(powers) - 1)
            if len(powers) > 2 and not place.settings.is_whole:
                factors[-1] = 1.0
            turn = sum((factor * power for factor, power in zip(factors, powers, strict=True)), np.zeros_like(one))
        else:
            turn = (one - skew) @ np.linalg.inv(one + skew)
        columns = slice(block * size, (block + 1) * size)
        turned[:, columns] = weight[:, columns] @ turn.T
    return turned


def boft_peft(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """(W·Mᵀ) ⊙ s; in round i a block turns two halves of a block's columns, 2^i halves apart (arXiv 2311.06243)."""
    size, turned = tensors["boft_R"].shape[-1], weight.copy()
    for level, blocks in enumerate(tensors["boft_R"]):
        for block, values in enumerate(blocks):
            group, pair = divmod(block, 2**level)
            near = group * 2 ** (level + 1) + pair
            halves = (range(half * size // 2, (half + 1) * size // 2) for half in (near, near + 2**level))
            columns = [column for half in halves for column in half]
            skew, one = (values - values.T) / 2, np.eye(size)
            turned[:, columns] = turned[:, columns] @ ((one - skew) @ np.linalg.inv(one + skew)).T
    return turned * tensors["boft_s"].reshape(-1, 1)[place.rows]


def hra(tensors: Tensors, weight: Array, place: PlaceOf[HraSettings], scale: float) -> Array:
    """W·Π(I − 2·u·uᵀ) (arXiv 2405.17484); orthogonal vectors by a QR decomposition."""
    vectors = tensors["hra_u"] / np.linalg.norm(tensors["hra_u"], axis=0)
    if place.settings.orthogonal:
        vectors = np.linalg.qr(vectors)[0]
    turned = weight
    for vector in vectors.T:
        turned = turned - 2 * np.outer(turned @ vector, vector)
    return turned


def deft(tensors: Tensors, weight: Array, place: PlaceOf[DeftSettings], scale: float) -> Array:
    """(I − Q·Cᵀ)·W + s·Q·R, Q = P and C = relu(P), or both the orthogonal factor of P."""
    p = tensors["deft_P"]
    left, right = (np.linalg.qr(p)[0],) * 2 if place.settings.orthogonal else (p, np.maximum(p, 0.0))
    changed = (np.eye(len(p)) - left @ right.T) @ weight
    if "deft_R" in tensors:
        changed = changed + place.settings.scale * left @ tensors["deft_R"]
    return np.asarray(changed)


def road(tensors: Tensors, weight: Array, place: PlaceOf[RoadSettings], scale: float) -> Array:
    """R·W with one 2 × 2 rotation, stretched, for outputs h and h + g/2 of each group (arXiv 2409.00119)."""
    size, variant = place.settings.group, place.settings.variant
    theta, alpha = tensors["road_theta"].reshape(-1), tensors["road_alpha"].reshape(-1)
    outputs = np.arange(len(weight))
    group, inside = np.divmod(outputs, size)
    if variant == "road_1":
        first = second = group * (size // 2) + inside % (size // 2)
    elif variant == "road_2":
        first = second = outputs
    else:
        first, second = 2 * size * group + inside, 2 * size * group + size + inside
    upper = inside < size // 2
    partner = np.where(upper, outputs + size // 2, outputs - size // 2)
    straight, across = alpha[first] * np.cos(theta[first]), alpha[second] * np.sin(theta[second])
    return np.asarray(straight[:, None] * weight + np.where(upper, -across, across)[:, None] * weight[partner])


TURNS: dict[str, Formula] = {
    "oft": oft,
    "oft_parts": oft_parts,
    "oft_diag": oft_diag,
    "oft_peft": oft_peft,
    "boft_peft": boft_peft,
    "hra": hra,
    "deft": deft,
    "road": road,
    "road_bias": road,
}
"""By `Kind.name`."""
