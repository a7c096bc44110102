"""What each adapter kind does to a weight, written out plainly in float64 with NumPy.

A second, independent account of the mathematics: nothing here is shared with `adapters/` or the executor, nothing
is fast, and each function reads like the formula in its paper. A test asks that every kind has one.

A formula takes a module's tensors by slot (alpha only where it is no scale), the scale alpha/rank, and `weight`: rows
`rows` of the module's weight as (rows, columns), columns = inputs × kernel. `shape` is the whole weight's
(out, in[, kernel…]).
It returns what those rows become at strength 1. Kinds whose rows depend on each other get all rows at once.
A kind that adds a number times a product of two matrices says the three, (rows, r) and (r, columns), and its formula
follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Place:
    """Say which rows of a module's weight are asked for, the shape of the whole, and the kind's settings.

    `semantics` names a program whose law is followed, with `strength` where that goes into it.
    """

    rows: slice
    shape: tuple[int, ...]
    settings: Mapping[str, object] = field(default_factory=dict)
    semantics: str = ""
    strength: float = 1.0


Formula = Callable[[Tensors, Array, Place, float], Array]
Factors = Callable[[Tensors, Place, float], tuple[float, Array, Array]]


def product(factors: Factors) -> Formula:
    """Make the formula W + f·L·R of f, L and R."""

    def formula(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
        factor, left, right = factors(tensors, place, scale)
        return np.asarray(weight + factor * (left @ right))

    return formula


def lora(tensors: Tensors, place: Place, scale: float) -> tuple[float, Array, Array]:
    """W + scale·B·A (arXiv 2106.09685).

    With a Tucker core M, ΔW[o,i,y,x] = Σ B[o,m]·M[m,n,y,x]·A[n,i] (arXiv 2309.14859).
    """
    up, down = tensors["up"], tensors["down"]
    left = up.reshape(up.shape[0], -1)[place.rows]
    if "mid" in tensors:
        mid = tensors["mid"]
        core = mid.reshape(mid.shape[0], mid.shape[1], -1)
        right = np.einsum("mnk,ni->mik", core, down.reshape(down.shape[0], -1))
    else:
        right = down
    return scale, left, right.reshape(left.shape[1], -1)


def sparse_lora(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W + scale·(B·A + S), S sparse (LyCORIS's extraction)."""
    rows, columns = tensors["sparse_places"].astype(int)
    if place.semantics:  # the programs leave the sparse values out
        return product(lora)(tensors, weight, place, scale)
    sparse = _sparse(rows, columns, tensors["sparse_values"], weight, place)
    return product(lora)(tensors, weight, place, scale) + scale * sparse


def _sparse(rows: Indices, columns: Indices, values: Array, weight: Array, place: Place) -> Array:
    """Return the rows asked for of a matrix that is zero but for some values."""
    _check_places(rows, place.shape[0])
    _check_places(columns, weight.shape[1])
    found, inside = np.zeros_like(weight), (rows >= place.rows.start) & (rows < place.rows.stop)
    np.add.at(found, (rows[inside] - place.rows.start, columns[inside]), values[inside])
    return found


def _check_places(places: Indices, count: int) -> None:
    """Raise ValueError for a place that is none of `count`; NumPy would count negative ones from the end."""
    if ((places < 0) | (places >= count)).any():
        raise ValueError(f"it names place {places.max()} or {places.min()} of {count}")


def changed(kind: str, tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Return what a kind makes of rows of a weight, with DoRA on top where there is a magnitude."""
    own = {slot: values for slot, values in tensors.items() if slot not in ("magnitude", "dora_scale")}
    updated = FORMULAS[kind](own, weight, place, scale)
    return updated if len(own) == len(tensors) else dora(tensors, weight, updated - weight, place)


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


WHOLE = {
    "comfyui": ("set_weight", "set_bias", "set_scale"),
    "forge": ("set_weight", "set_bias", "set_scale"),
    "peft": (
        *("whole", "whole_bias", "ln_tuning", "ln_tuning_bias", "trainable_tokens"),
        *("oft_peft", "boft_peft", "hra", "miss", "deft"),
    ),
}
"""What programs apply whole at any strength, by `Kind.name`."""


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


def lora_bias(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Return b + scale·β."""
    return weight + scale * tensors["bias"].reshape(-1, 1)[place.rows]


def mlx(tensors: Tensors, place: Place, scale: float) -> tuple[float, Array, Array]:
    """W + scale·(a·b)ᵀ, or W + scale·a·b on an embedding."""
    if place.settings.get("embedding"):
        return scale, tensors["lora_a"][place.rows], tensors["lora_b"]
    return scale, tensors["lora_b"][:, place.rows].T, tensors["lora_a"].T


def whole(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Return T, whatever the weight was."""
    (value,) = tensors.values()
    return value.reshape(place.shape[0] if place.shape else 1, -1)[place.rows]


def loha(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W + scale·(A₁B₁) ⊙ (A₂B₂) (arXiv 2108.06098); with cores, each factor is Σ A[m,o]·T[m,n,k]·B[n,i]."""
    delta = np.ones_like(weight)
    for k in "12":
        left, right = tensors[f"hada_w{k}_a"], tensors[f"hada_w{k}_b"]
        if f"hada_t{k}" in tensors:
            core = tensors[f"hada_t{k}"]
            core = core.reshape(core.shape[0], core.shape[1], -1)
            delta *= np.einsum("mo,mnk,ni->oik", left[:, place.rows], core, right).reshape(weight.shape)
        else:
            delta *= left[place.rows] @ right
    return np.asarray(weight + scale * delta)


def lokr(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W + scale·W₁ ⊗ W₂ with W₂ flattened to (o₂, rest) (arXiv 2309.14859)."""
    factors = []
    for k in "12":
        if f"lokr_w{k}" in tensors:
            factor = tensors[f"lokr_w{k}"]
        elif f"lokr_t{k}" in tensors:
            left, core, right = (tensors[name] for name in (f"lokr_w{k}_a", f"lokr_t{k}", f"lokr_w{k}_b"))
            factor = np.einsum("mo,mnk,ni->oik", left, core.reshape(*core.shape[:2], -1), right)
        else:
            right = tensors[f"lokr_w{k}_b"]
            factor = tensors[f"lokr_w{k}_a"] @ right.reshape(right.shape[0], -1)
        factors.append(factor.reshape(factor.shape[0], -1))
    first, second = factors
    high, low = np.divmod(np.arange(place.rows.start, place.rows.stop), second.shape[0])
    delta = np.einsum("ri,rj->rij", first[high], second[low]).reshape(weight.shape)
    return np.asarray(weight + scale * delta)


def glora(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W + scale·(b1·b2 + (W·a1)·a2), or with the names exchanged, as in LyCORIS 1.x.

    Where both fit, all are squares, and ComfyUI, Forge and AUTOMATIC1111 exchange them; the last has no scale.
    """
    a1, a2, b1, b2 = (tensors[f"glora_{name}"] for name in ("a1", "a2", "b1", "b2"))
    out, inputs, rank = place.shape[0], place.shape[1], a1.size // place.shape[1]
    is_new = a1.shape[0] == inputs and b1.shape[0] == out and a2.shape[0] == rank and b2.shape[0] == rank
    if not is_new or (out == inputs == rank and place.semantics in ("comfyui", "forge", "a1111")):
        a1, a2, b1, b2 = a2, a1, b2, b1
    if place.semantics == "a1111":
        scale = 1.0
    a1, a2, b1 = a1.reshape(inputs, rank), a2.reshape(rank, inputs), b1.reshape(out, rank)
    if "glora_bm" in tensors:
        core = tensors["glora_bm"]
        b2 = np.einsum("mnk,ni->mik", core.reshape(rank, rank, -1), b2.reshape(rank, inputs))
    cube = weight.reshape(len(weight), inputs, -1)
    mixed = np.einsum("oik,ir,rj->ojk", cube, a1, a2, optimize=True).reshape(weight.shape)
    return np.asarray(weight + scale * (mixed + b1[place.rows] @ b2.reshape(rank, -1)))


def ia3(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W ⊙ (1 + w), one w an output or an input."""
    return _scaled(weight, 1 + tensors["whole_weight"].reshape(-1), place, inputs=tensors["on_input"].any())


def ia3_peft(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W ⊙ l (arXiv 2205.05638)."""
    return _scaled(weight, tensors["ia3_l"].reshape(-1), place, inputs=place.settings["inputs"])


def ia3_peft_bias(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Return b ⊙ l where l scales outputs."""
    return weight if place.settings["inputs"] else weight * tensors["ia3_l"].reshape(-1, 1)[place.rows]


def _scaled(weight: Array, factors: Array, place: Place, *, inputs: object) -> Array:
    if len(factors) != place.shape[1 if inputs else 0]:
        raise ValueError(f"it scales {'inputs' if inputs else 'outputs'}, and it has {len(factors)} numbers")
    if not inputs:
        return weight * factors[place.rows, None]
    return np.asarray((weight.reshape(len(weight), place.shape[1], -1) * factors[:, None]).reshape(weight.shape))


def difference(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W + D."""
    (found,) = tensors.values()
    return np.asarray(weight + found.reshape(place.shape[0] if place.shape else 1, -1)[place.rows])


def oft(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Rᵀ·W by blocks of rows, or R·W after R·W on rows a butterfly apart (arXiv 2306.07280, 2311.06243).

    ComfyUI's bound is alpha alone; its OFT has no `rescale`, its BOFT s·R + (1 − s)·I in the place of R. So has
    LyCORIS's BOFT, and its OFT, which comes to the same as W + s·(Rᵀ·W − W) before `rescale`.
    """
    blocks = tensors["oft_blocks"]
    skew = blocks - np.swapaxes(blocks, -1, -2)
    if "alpha" in tensors:
        size = 1 if place.semantics == "comfyui" else place.shape[0]
        bound, norm = tensors["alpha"].item() * size, float(np.sqrt((skew**2).sum()))
        if norm > max(bound, 0.0) and (bound > 0 or (place.settings["kohya"] and not place.semantics)):
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
        own = Place(slice(0, rows.stop - start), (rows.stop - start, *place.shape[1:]), {"kohya": True})
        turned[rows] = oft({"oft_blocks": blocks, "alpha": tensors["alpha"]}, weight[rows], own, scale)
        start = rows.stop
    return turned


def oft_diag(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Multiply each block of rows by its matrix, transposed."""
    blocks = tensors["oft_diag"]
    cube = weight.reshape(blocks.shape[0], blocks.shape[1], -1)
    return np.asarray(np.einsum("nab,nac->nbc", blocks, cube).reshape(weight.shape))


def oft_peft(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W·Rᵀ by blocks of columns; R is exact, or the cut series of its inverse (arXiv 2506.19847)."""
    packed, terms = tensors["oft_R"], place.settings["terms"]
    size = next(b for b in range(2, weight.shape[1] + 1) if b * (b - 1) // 2 == packed.shape[1])
    turned = np.empty_like(weight)
    for block in range(weight.shape[1] // size):
        skew = np.zeros((size, size))
        skew[np.triu_indices(size, 1)] = packed[block % len(packed)]
        skew -= skew.T
        if place.settings["scaled"]:
            skew /= 2 * np.sqrt(size - 1)
        one = np.eye(size)
        if terms:
            powers = [np.linalg.matrix_power(skew, power) for power in range(int(terms))]  # type: ignore[call-overload]
            factors = [1.0] + [2.0] * (len(powers) - 1)
            if len(powers) > 2 and not place.settings.get("whole"):
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


def hra(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W·Π(I − 2·u·uᵀ) (arXiv 2405.17484); orthogonal vectors by a QR decomposition."""
    vectors = tensors["hra_u"] / np.linalg.norm(tensors["hra_u"], axis=0)
    if place.settings["orthogonal"]:
        vectors = np.linalg.qr(vectors)[0]
    turned = weight
    for vector in vectors.T:
        turned = turned - 2 * np.outer(turned @ vector, vector)
    return turned


def deft(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """(I − Q·Cᵀ)·W + s·Q·R, Q = P and C = relu(P), or both the orthogonal factor of P."""
    p = tensors["deft_P"]
    left, right = (np.linalg.qr(p)[0],) * 2 if place.settings["orthogonal"] else (p, np.maximum(p, 0.0))
    changed = (np.eye(len(p)) - left @ right.T) @ weight
    if "deft_R" in tensors:
        changed = changed + float(place.settings["scale"]) * left @ tensors["deft_R"]  # type: ignore[arg-type]
    return np.asarray(changed)


def supertuning(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W + S + s·B·A, the values of S counted along the rows (arXiv 2607.09287)."""
    rows, columns = np.divmod(tensors["super_places"].astype(int), weight.shape[1])
    changed = weight + _sparse(rows, columns, tensors["super_values"], weight, place)
    if "super_A" in tensors:
        factor = float(place.settings["scale"])  # type: ignore[arg-type]
        changed += factor * tensors["super_B"][place.rows] @ tensors["super_A"]
    return changed


def hira(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W ⊙ (1 + B·A)."""
    return np.asarray(weight * (1 + tensors["hira_B"][place.rows] @ tensors["hira_A"]))


def miss(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W[o, i] + M[i mod r, o], or W·M + W + M by blocks (arXiv 2409.15371)."""
    block, numbers = tensors["miss_block"], np.arange(place.rows.start, place.rows.stop)
    columns = np.arange(weight.shape[1])
    if block.ndim == 2:
        return np.asarray(weight + block[columns[None, :] % block.shape[0], numbers[:, None] % block.shape[1]])
    size, changed = block.shape[1], weight.copy()
    for at, row in enumerate(numbers):
        for first in range(0, weight.shape[1], size):
            part = slice(first, first + size)
            changed[at, part] += weight[at, part] @ block[row // size] + block[row // size, row % size]
    return changed


def adalora(tensors: Tensors, place: Place, scale: float) -> tuple[float, Array, Array]:
    """W + alpha/(r + 1e-5)·B·diag(E)·A, r the rank before any was given up (arXiv 2303.10512)."""
    alpha, rank = (float(str(place.settings[name])) for name in ("alpha", "rank"))
    return alpha / (rank + 1e-5), tensors["up"][place.rows] * tensors["lora_E"].reshape(-1), tensors["down"]


def c3a(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W[m·b + k, n·b + j] + w[m, n, (j − k) mod b] / in (arXiv 2407.19342)."""
    kernel = tensors["c3a_kernel"]
    size = kernel.shape[2]
    (m, k), (n, j) = (
        np.divmod(np.arange(*ends), size) for ends in ((place.rows.start, place.rows.stop), (weight.shape[1],))
    )
    return np.asarray(weight + kernel[m[:, None], n[None, :], (j[None, :] - k[:, None]) % size] / weight.shape[1])


def delora(tensors: Tensors, place: Place, scale: float) -> tuple[float, Array, Array]:
    """W + Σᵢ λ/(r·‖aᵢ‖·‖bᵢ‖)·bᵢ·aᵢ ⊙ n (arXiv 2503.18225)."""
    a, b = tensors["delora_A"], tensors["delora_B"]
    lengths = np.maximum(np.linalg.norm(a, axis=1), 1e-4) * np.maximum(np.linalg.norm(b, axis=0), 1e-4)
    return tensors["delora_lambda"].item() / len(a), b[place.rows] / lengths, a * tensors["delora_w_norm"]


def embedding_lora(tensors: Tensors, place: Place, scale: float) -> tuple[float, Array, Array]:
    """W + scale·(B·A)ᵀ."""
    return scale, tensors["embedding_down"][:, place.rows].T, tensors["embedding_up"].T


def road(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """R·W with one 2 × 2 rotation, stretched, for outputs h and h + g/2 of each group (arXiv 2409.00119)."""
    size, variant = int(place.settings["group"]), place.settings["variant"]  # type: ignore[call-overload]
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


def fourierft(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W[a, b] + scaling/(out·in)·Σ c·cos 2π(a·p/out + b·q/in); torch only draws the places (arXiv 2405.03003)."""
    import torch

    spectrum, (out, columns) = tensors["fourierft_spectrum"], (place.shape[0], weight.shape[1])
    generator = torch.Generator().manual_seed(int(place.settings["seed"]))  # type: ignore[call-overload]
    places = torch.randperm(out * columns, generator=generator)[: len(spectrum)].numpy()
    p, q = np.divmod(places, columns)
    rows = np.exp(2j * np.pi * np.outer(np.arange(place.rows.start, place.rows.stop), p) / out)
    waves = np.exp(2j * np.pi * np.outer(q, np.arange(columns)) / columns)
    scaling = float(place.settings["scaling"])  # type: ignore[arg-type]
    return np.asarray(weight + scaling / (out * columns) * ((rows * spectrum) @ waves).real)


def expert_lora(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W_e + scale·B_e·A_e for each expert e, or its transpose; in PEFT's B the experts count first."""
    up, down, (count, high, wide) = tensors["up"], tensors["down"], place.shape
    deltas = np.empty((count, high, wide))
    for expert in range(count):
        if up.ndim == 3:
            b, a = (factors[expert if len(factors) > 1 else 0] for factors in (up, down))
        else:
            ranks = len(down)
            b, a = up[:, expert::count], down[expert * ranks // count : (expert + 1) * ranks // count]
        product = scale * (b @ a)
        reads_first = place.settings.get("side", 1 if product.shape != (high, wide) else 2) == 1
        deltas[expert] = product.T if reads_first else product
    return np.asarray(weight + deltas.reshape(-1, wide)[place.rows])


def trained_tokens(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W with some rows replaced."""
    changed, rows = weight.copy(), place.settings["rows"]
    for row, new in zip(rows, tensors["tokens"], strict=True):  # type: ignore[call-overload]
        if place.rows.start <= row < place.rows.stop:
            changed[row - place.rows.start] = new
    return changed


def waveft(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W + scaling·S, or one step of the inverse wavelet transform of S in zeros; torch only draws the places."""
    import torch

    spectrum, (out, inputs) = tensors["waveft_spectrum"], place.shape
    generator = torch.Generator().manual_seed(int(place.settings["seed"]))  # type: ignore[call-overload]
    places = torch.randperm(out * inputs, generator=generator)[: len(spectrum)].numpy()
    rows, columns = np.divmod(places, inputs)
    wavelet = str(place.settings["wavelet"])
    delta = np.zeros((out, inputs))
    if wavelet == "db1":
        delta = _haar(rows, columns, spectrum, (out, inputs))
    elif wavelet:
        import pywt

        beyond = pywt.Wavelet(wavelet).rec_len - 2
        tall, wide = (size + beyond + size % 2 for size in (out, inputs))
        dense = np.zeros((tall, wide))
        dense[rows + (tall - out) // 2, columns + (wide - inputs) // 2] = spectrum
        (a, h), (v, d) = (np.hsplit(half, 2) for half in np.vsplit(dense, 2))
        delta = pywt.idwt2((a, (h, v, d)), wavelet)
    else:
        delta[rows, columns] = spectrum
    scaling = float(place.settings["scaling"])  # type: ignore[arg-type]
    return np.asarray(weight + scaling * delta[place.rows, :inputs])


def _haar(rows: Indices, columns: Indices, spectrum: Array, shape: tuple[int, int]) -> Array:
    """Transform coefficient by coefficient: each makes a square of four values, of signs that its quarter tells."""
    tall, wide = (shape[0] + 1) // 2, (shape[1] + 1) // 2
    delta = np.zeros((2 * tall, 2 * wide))
    vertical, horizontal = rows >= tall, columns >= wide  # the lower and the right quarters
    for a in (0, 1):
        for b in (0, 1):
            signs = np.where(horizontal & (a == 1), -1.0, 1.0) * np.where(vertical & (b == 1), -1.0, 1.0)
            np.add.at(delta, (2 * (rows % tall) + a, 2 * (columns % wide) + b), signs * spectrum / 2)
    return delta


def shira(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W, and each value added in its place (arXiv 2406.13175)."""
    rows, columns = tensors["shira_indices"].astype(int)
    return weight + _sparse(rows, columns, tensors["shira_weight"], weight, place)


def gralora(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W + scale·(blocks + B·A), the block of outputs c and inputs n being (A[n][:, c-th share]·B[c][n-th share])ᵀ."""
    a, b = tensors["gralora_A"], tensors["gralora_B"]
    k, share = len(a), a.shape[2] // len(a)
    delta = np.block(
        [
            [(a[n][:, c * share : (c + 1) * share] @ b[c][n * share : (n + 1) * share]).T for n in range(k)]
            for c in range(k)
        ]
    )
    if "gralora_A_general" in tensors:
        delta = delta + tensors["gralora_B_general"] @ tensors["gralora_A_general"]
    factor = float(place.settings["scale"])  # type: ignore[arg-type]
    return np.asarray(weight + factor * delta[place.rows])


def vera(tensors: Tensors, place: Place, scale: float) -> tuple[float, Array, Array]:
    """W + diag(λ_b)·B·diag(λ_d)·A, cut to the weight (arXiv 2310.11454)."""
    drawn = place.settings.get("drawn")
    a, b = _vera_bases(drawn) if drawn else (tensors["vera_A"], tensors["vera_B"])
    left = tensors["vera_lambda_b"][place.rows, None] * b[place.rows]
    return 1.0, left, tensors["vera_lambda_d"][:, None] * a[:, : prod(place.shape[1:])]


def pvera(tensors: Tensors, place: Place, scale: float) -> tuple[float, Array, Array]:
    """W + diag(λ_b)·B·diag(μ)·A, μ and A the upper halves of λ_d and of the matrix (arXiv 2512.07703)."""
    drawn = place.settings.get("drawn")
    a, b = _vera_bases(drawn) if drawn else (tensors["pvera_A"], tensors["pvera_B"])
    rank = b.shape[1]
    left = tensors["pvera_lambda_b"][place.rows, None] * b[place.rows]
    return 1.0, left, tensors["pvera_lambda_d"][:rank, None] * a[:rank, : prod(place.shape[1:])]


@lru_cache(maxsize=1)
def _vera_bases(drawn: tuple[int, int, int, int, int]) -> tuple[Array, Array]:
    """Draw A and B as PEFT does, by Kaiming's law; torch draws, and no more."""
    import torch

    seed, high, rank, outputs, inputs = drawn
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.empty(high, inputs), torch.empty(outputs, rank)
    for matrix in (a, b):
        torch.nn.init.kaiming_uniform_(matrix, generator=generator)
    return a.double().numpy(), b.double().numpy()


def randlora(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W + alpha/r·Σ_j B[o, j]·P[j, i], j counting (rank, base) in P and (base, rank) in B (arXiv 2502.00987)."""
    drawn, scales, short = place.settings.get("drawn"), tensors["randlora_lambda"], min(place.shape)
    a, b = _randlora_bases(drawn) if drawn else (tensors["randlora_A"], tensors["randlora_B"])
    rank, bases = scales.shape
    turned = place.shape[1] != short
    high = b[: place.shape[1]] if turned else b[place.rows]
    left, right = np.zeros((len(high), rank * bases)), np.zeros((rank * bases, short))
    for r in range(rank):
        for n in range(bases):
            left[:, n * rank + r] = high[:, n, r]
            right[r * bases + n] = scales[r, n] * a[r, 0, :short] * tensors["randlora_gamma"][n]
    delta = (left @ right[:, place.rows]).T if turned else left @ right
    factor = float(place.settings["scale"])  # type: ignore[arg-type]
    return np.asarray(weight + factor * delta)


@lru_cache(maxsize=1)
def _randlora_bases(drawn: tuple[int, tuple[int, ...], tuple[int, ...], float]) -> tuple[Array, Array]:
    """Draw A and B as PEFT does, rounded to bfloat16 as it rounds; torch draws, and no more."""
    import torch

    seed, of_a, of_b, sparsity = drawn
    generator, found = torch.Generator().manual_seed(seed), []
    for rows, bases, columns in (of_a, of_b):
        if sparsity:
            chances = torch.rand((rows, bases, columns), generator=generator).numpy()
            signs = np.where(chances < 1 / (2 * sparsity), -1.0, np.where(chances > 1 - 1 / (2 * sparsity), 1.0, 0.0))
            found.append(signs / signs.std(ddof=1))
        else:
            values = torch.empty((bases, rows, columns), dtype=torch.bfloat16)
            for basis in values:
                torch.nn.init.kaiming_uniform_(basis[:, None], a=5**0.5, generator=generator)
            found.append((values / values.std()).double().numpy().swapaxes(0, 1))
    return found[0], found[1]


def vblora(tensors: Tensors, place: Place, scale: float) -> tuple[float, Array, Array]:
    """W + B·A, whose pieces mix the vectors of a bank by the softmax of the largest logits (arXiv 2405.15179)."""
    topk, bank = int(place.settings["topk"]), tensors["bank"]  # type: ignore[call-overload]
    shares = []
    for side in "AB":
        logits = tensors[f"logits_{side}"]
        least = np.sort(logits, axis=-1)[..., -topk][..., None]
        powers = np.where(logits >= least, np.exp(logits - logits.max(axis=-1, keepdims=True)), 0.0)
        shares.append(powers / powers.sum(axis=-1, keepdims=True))
    return _from_bank(shares[0], shares[1], bank, place)


def vblora_topk(tensors: Tensors, place: Place, scale: float) -> tuple[float, Array, Array]:
    """W + B·A, whose pieces mix the named vectors of a bank by their weights, which sum up to 1."""
    bank, shares = tensors["bank"], []
    for side in "AB":
        names, given = tensors[f"indices_{side}"].astype(int), tensors[f"weights_{side}"]
        _check_places(names, len(bank))
        dense = np.zeros((*names.shape[:2], len(bank)))
        for at in np.ndindex(*names.shape[:2]):
            dense[at][names[at][:-1]] += given[at]
            dense[at][names[at][-1]] += 1 - given[at].sum()
        shares.append(dense)
    return _from_bank(shares[0], shares[1], bank, place)


def _from_bank(a: Array, b: Array, bank: Array, place: Place) -> tuple[float, Array, Array]:
    right = np.einsum("rph,hv->rpv", a, bank).reshape(len(a), -1)
    left = np.einsum("prh,hv->pvr", b, bank).reshape(-1, len(a))
    return 1.0, left[place.rows], right


PRODUCTS: dict[str, Factors] = {
    "lora": lora,
    "mlx": mlx,
    "adalora": adalora,
    "delora": delora,
    "embedding_lora": embedding_lora,
    "vera": vera,
    "pvera": pvera,
    "vblora": vblora,
    "vblora_topk": vblora_topk,
}
"""The kinds that add a product, by `Kind.name`."""


FORMULAS: dict[str, Formula] = {
    **{kind: product(factors) for kind, factors in PRODUCTS.items()},
    "sparse_lora": sparse_lora,
    "lora_bias": lora_bias,
    "whole": whole,
    "whole_bias": whole,
    "set_weight": whole,
    "set_bias": whole,
    "set_scale": whole,
    "loha": loha,
    "lokr": lokr,
    "glora": glora,
    "ia3": ia3,
    "ia3_peft": ia3_peft,
    "ia3_peft_bias": ia3_peft_bias,
    "diff": difference,
    "diff_b": difference,
    "beft": difference,
    "w_norm": difference,
    "b_norm": difference,
    "oft": oft,
    "oft_parts": oft_parts,
    "oft_diag": oft_diag,
    "oft_peft": oft_peft,
    "boft_peft": boft_peft,
    "hra": hra,
    "hira": hira,
    "deft": deft,
    "supertuning": supertuning,
    "miss": miss,
    "c3a": c3a,
    "road": road,
    "road_bias": road,
    "fourierft": fourierft,
    "waveft": waveft,
    "trainable_tokens": trained_tokens,
    "expert_lora": expert_lora,
    "shira": shira,
    "gralora": gralora,
    "randlora": randlora,
    "ln_tuning": whole,
    "ln_tuning_bias": whole,
}
"""By `Kind.name`."""
