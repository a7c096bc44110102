"""Kinds that add something else than one product, that scale a weight, or that take its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lorabake.reference.formulas.draws import randlora_bases
from lorabake.reference.formulas.formula import Array, Formula, Place, PlaceOf, Tensors, product, sparse_rows
from lorabake.reference.formulas.products import lora

if TYPE_CHECKING:
    from lorabake.adapters.experts import ExpertSettings
    from lorabake.adapters.gralora import GraLoraSettings
    from lorabake.adapters.ia3 import PeftIa3Settings
    from lorabake.adapters.randlora import RandLoraSettings
    from lorabake.adapters.supertuning import SupertuningSettings
    from lorabake.adapters.tokens import TokenSettings


def sparse_lora(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W + scale·(B·A + S), S sparse (LyCORIS's extraction)."""
    rows, columns = tensors["sparse_places"].astype(int)
    if place.semantics:  # the programs leave the sparse values out
        return product(lora)(tensors, weight, place, scale)
    sparse = sparse_rows(rows, columns, tensors["sparse_values"], weight, place)
    return product(lora)(tensors, weight, place, scale) + scale * sparse


def lora_bias(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """Return b + scale·β."""
    return weight + scale * tensors["bias"].reshape(-1, 1)[place.rows]


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


def ia3_peft(tensors: Tensors, weight: Array, place: PlaceOf[PeftIa3Settings], scale: float) -> Array:
    """W ⊙ l (arXiv 2205.05638)."""
    return _scaled(weight, tensors["ia3_l"].reshape(-1), place, inputs=place.settings.inputs)


def ia3_peft_bias(tensors: Tensors, weight: Array, place: PlaceOf[PeftIa3Settings], scale: float) -> Array:
    """Return b ⊙ l where l scales outputs."""
    return weight if place.settings.inputs else weight * tensors["ia3_l"].reshape(-1, 1)[place.rows]


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


def supertuning(tensors: Tensors, weight: Array, place: PlaceOf[SupertuningSettings], scale: float) -> Array:
    """W + S + s·B·A, the values of S counted along the rows (arXiv 2607.09287)."""
    rows, columns = np.divmod(tensors["super_places"].astype(int), weight.shape[1])
    changed = weight + sparse_rows(rows, columns, tensors["super_values"], weight, place)
    if "super_A" in tensors:
        factor = place.settings.scale
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


def expert_lora(tensors: Tensors, weight: Array, place: PlaceOf[ExpertSettings], scale: float) -> Array:
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
        reads_first = (place.settings.side or (1 if product.shape != (high, wide) else 2)) == 1
        deltas[expert] = product.T if reads_first else product
    return np.asarray(weight + deltas.reshape(-1, wide)[place.rows])


def trained_tokens(tensors: Tensors, weight: Array, place: PlaceOf[TokenSettings], scale: float) -> Array:
    """W with some rows replaced."""
    changed, rows = weight.copy(), place.settings.rows
    for row, new in zip(rows, tensors["tokens"], strict=True):
        if place.rows.start <= row < place.rows.stop:
            changed[row - place.rows.start] = new
    return changed


def shira(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W, and each value added in its place (arXiv 2406.13175)."""
    rows, columns = tensors["shira_indices"].astype(int)
    return weight + sparse_rows(rows, columns, tensors["shira_weight"], weight, place)


def gralora(tensors: Tensors, weight: Array, place: PlaceOf[GraLoraSettings], scale: float) -> Array:
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
    factor = place.settings.scale
    return np.asarray(weight + factor * delta[place.rows])


def randlora(tensors: Tensors, weight: Array, place: PlaceOf[RandLoraSettings], scale: float) -> Array:
    """W + alpha/r·Σ_j B[o, j]·P[j, i], j counting (rank, base) in P and (base, rank) in B (arXiv 2502.00987)."""
    drawn, scales, short = place.settings.drawn, tensors["randlora_lambda"], min(place.shape)
    a, b = randlora_bases(drawn) if drawn else (tensors["randlora_A"], tensors["randlora_B"])
    rank, bases = scales.shape
    turned = place.shape[1] != short
    high = b[: place.shape[1]] if turned else b[place.rows]
    left, right = np.zeros((len(high), rank * bases)), np.zeros((rank * bases, short))
    for r in range(rank):
        for n in range(bases):
            left[:, n * rank + r] = high[:, n, r]
            right[r * bases + n] = scales[r, n] * a[r, 0, :short] * tensors["randlora_gamma"][n]
    delta = (left @ right[:, place.rows]).T if turned else left @ right
    factor = place.settings.scale
    return np.asarray(weight + factor * delta)


DELTAS: dict[str, Formula] = {
    "sparse_lora": sparse_lora,
    "lora_bias": lora_bias,
    "whole": whole,
    "whole_bias": whole,
    "set_weight": whole,
    "set_bias": whole,
    "set_scale": whole,
    "ln_tuning": whole,
    "ln_tuning_bias": whole,
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
    "hira": hira,
    "supertuning": supertuning,
    "miss": miss,
    "trainable_tokens": trained_tokens,
    "expert_lora": expert_lora,
    "shira": shira,
    "gralora": gralora,
    "randlora": randlora,
}
"""By `Kind.name`."""
