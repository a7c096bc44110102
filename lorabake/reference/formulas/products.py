"""Kinds that add a number times a product of two matrices."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from lorabake.reference.formulas.draws import vera_bases
from lorabake.reference.formulas.formula import Array, Factors, Place, PlaceOf, Tensors, check_places

if TYPE_CHECKING:
    from lorabake.adapters.adalora import AdaLoraSettings
    from lorabake.adapters.mlx import MlxSettings
    from lorabake.adapters.vblora import VbLoraSettings
    from lorabake.adapters.vera import VeraSettings


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


def mlx(tensors: Tensors, place: PlaceOf[MlxSettings], scale: float) -> tuple[float, Array, Array]:
    """W + scale·(a·b)ᵀ, or W + scale·a·b on an embedding."""
    if place.settings.is_embedding:
        return scale, tensors["lora_a"][place.rows], tensors["lora_b"]
    return scale, tensors["lora_b"][:, place.rows].T, tensors["lora_a"].T


def adalora(tensors: Tensors, place: PlaceOf[AdaLoraSettings], scale: float) -> tuple[float, Array, Array]:
    """W + alpha/(r + 1e-5)·B·diag(E)·A, r the rank before any was given up (arXiv 2303.10512)."""
    alpha, rank = place.settings.alpha, place.settings.rank
    return alpha / (rank + 1e-5), tensors["up"][place.rows] * tensors["lora_E"].reshape(-1), tensors["down"]


def delora(tensors: Tensors, place: Place, scale: float) -> tuple[float, Array, Array]:
    """W + Σᵢ λ/(r·‖aᵢ‖·‖bᵢ‖)·bᵢ·aᵢ ⊙ n (arXiv 2503.18225)."""
    a, b = tensors["delora_A"], tensors["delora_B"]
    lengths = np.maximum(np.linalg.norm(a, axis=1), 1e-4) * np.maximum(np.linalg.norm(b, axis=0), 1e-4)
    return tensors["delora_lambda"].item() / len(a), b[place.rows] / lengths, a * tensors["delora_w_norm"]


def embedding_lora(tensors: Tensors, place: Place, scale: float) -> tuple[float, Array, Array]:
    """W + scale·(B·A)ᵀ."""
    return scale, tensors["embedding_down"][:, place.rows].T, tensors["embedding_up"].T


def vera(tensors: Tensors, place: PlaceOf[VeraSettings], scale: float) -> tuple[float, Array, Array]:
    """W + diag(λ_b)·B·diag(λ_d)·A, cut to the weight (arXiv 2310.11454)."""
    drawn = place.settings.drawn
    a, b = vera_bases(drawn) if drawn else (tensors["vera_A"], tensors["vera_B"])
    left = tensors["vera_lambda_b"][place.rows, None] * b[place.rows]
    return 1.0, left, tensors["vera_lambda_d"][:, None] * a[:, : prod(place.shape[1:])]


def pvera(tensors: Tensors, place: PlaceOf[VeraSettings], scale: float) -> tuple[float, Array, Array]:
    """W + diag(λ_b)·B·diag(μ)·A, μ and A the upper halves of λ_d and of the matrix (arXiv 2512.07703)."""
    drawn = place.settings.drawn
    a, b = vera_bases(drawn) if drawn else (tensors["pvera_A"], tensors["pvera_B"])
    rank = b.shape[1]
    left = tensors["pvera_lambda_b"][place.rows, None] * b[place.rows]
    return 1.0, left, tensors["pvera_lambda_d"][:rank, None] * a[:rank, : prod(place.shape[1:])]


def vblora(tensors: Tensors, place: PlaceOf[VbLoraSettings], scale: float) -> tuple[float, Array, Array]:
    """W + B·A, whose pieces mix the vectors of a bank by the softmax of the largest logits (arXiv 2405.15179)."""
    topk, bank = place.settings.topk, tensors["bank"]
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
        check_places(names, len(bank))
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
"""By `Kind.name`."""
