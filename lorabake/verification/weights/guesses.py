"""Explain a wrong tensor by what is known to go wrong in merges, one LoRA at a time, or describe what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lorabake.adapters.dora import MAGNITUDES
from lorabake.matching.patches import Patch
from lorabake.planning import Plan
from lorabake.reference.formulas import FORMULAS
from lorabake.reference.formulas.formula import PlaceOf
from lorabake.reference.formulas.products import PRODUCTS
from lorabake.reference.recompute import Recomputation
from lorabake.verification.weights.causes import Cause, Diagnosis
from lorabake.verification.weights.limits import NOISE
from lorabake.verification.weights.scene import Scene, dot, where

if TYPE_CHECKING:
    Matrix = NDArray[np.float32]

SHIFTS = (1, -1, 2, -2)
SKETCH = 160
"""Columns of the random sketch that estimates the rank of an unknown change."""


class Guesses:
    """Hold the LoRAs' modules by shape, since one may have been applied in another's place."""

    def __init__(self, plan: Plan, recomputation: Recomputation) -> None:
        self.plan, self.patches = plan, recomputation.patches
        self._by_shape: dict[tuple[int, int], list[Patch]] = {}
        for patch in plan.patches:
            if patch.kind.name in PRODUCTS:
                self._by_shape.setdefault((patch.view.rows, patch.view.columns), []).append(patch)

    def explain(self, key: str, scene: Scene, energy: float) -> Diagnosis:
        """Try the known faults of merges, one patch at a time, and describe what none of them explains."""
        expected = sum((patch.share * delta for patch, delta in scene.own), np.zeros_like(scene.found))
        for shift in SHIFTS if scene.own else ():
            if len(expected) > 2 * abs(shift) and _explains(scene.found, np.roll(expected, shift, axis=0), scene):
                detail = f"{abs(shift)} {'down' if shift > 0 else 'up'}{where(scene)}"
                return Diagnosis(key, Cause.SHIFTED, scene.own[0][0].lora, scene.own[0][0].module, detail=detail)
        for patch, delta in scene.own:
            rest = scene.found - (expected - patch.share * delta)
            for cause, other, detail in self._variants(patch, delta, scene):
                if _explains(rest, other, scene):
                    return Diagnosis(key, cause, patch.lora, patch.module, detail=detail + where(scene))
            if (stranger := self._stranger(rest, patch, scene)) is not None:
                name = self.plan.sources.loras[stranger.lora].name
                detail = f"it holds the change of {stranger.module}" + (
                    f" of {name}" if stranger.lora != patch.lora else ""
                )
                return Diagnosis(key, Cause.OTHER_MODULE, patch.lora, patch.module, detail=detail)
        if not scene.own and (stranger := self._stranger(scene.found, None, scene)) is not None:
            return Diagnosis(
                key, Cause.OTHER_MODULE, stranger.lora, stranger.module, detail="a tensor that no LoRA has a part in"
            )
        return _unknown(key, scene, scene.found - expected, energy)

    def _variants(self, patch: Patch, delta: Matrix, scene: Scene) -> Iterator[tuple[Cause, Matrix, str]]:
        if scene.vectors is not None:
            return
        whole = len(scene.rows) == scene.total_rows
        if patch.has_dora and (plain := self._plain(patch)) is not None and len(patch.view.regions) == 1:
            first = patch.view.regions[0].start
            inside = (scene.rows >= first) & (scene.rows < first + len(plain))
            other = np.zeros_like(delta)
            other[inside] = plain[scene.rows[inside] - first]
            yield Cause.DORA, other, ""
        if whole and delta.shape[0] == delta.shape[1]:
            yield Cause.EXCHANGED, np.ascontiguousarray(delta.T), ""

    def _plain(self, patch: Patch) -> Matrix | None:
        """Return a patch's scaled delta without its DoRA magnitude."""
        if patch.view.transpose:
            return None
        tensors = {slot: array for slot, array in self.patches.tensors(patch).items() if slot not in MAGNITUDES}
        place = PlaceOf(slice(0, patch.view.rows), patch.view.shape, patch.settings)
        weight = np.zeros((patch.view.rows, patch.view.columns))
        return FORMULAS[patch.kind.name](tensors, weight, place, self.patches.scale(patch)).astype(np.float32)

    def _factors(self, patch: Patch) -> tuple[Matrix, Matrix] | None:
        tensors = self.patches.tensors(patch)
        if "up" not in tensors or "mid" in tensors:
            return None
        up, down = tensors["up"], tensors["down"]
        left = up.reshape(len(up), -1) * self.patches.scale(patch)
        return left.astype(np.float32), down.reshape(len(down), -1).astype(np.float32)

    def _stranger(self, rest: Matrix, own: Patch | None, scene: Scene) -> Patch | None:
        """Find another module's change in E, by ⟨E, B·A⟩ = ⟨E·Aᵀ, B⟩; try the module's neighbours first."""
        if own is None and scene.rows[-1] - scene.rows[0] + 1 != len(scene.rows):
            return None
        if own is not None:
            regions = own.view.regions
            if len(regions) != 1 or own.view.transpose:
                return None
            inside = (scene.rows >= regions[0].start) & (scene.rows < regions[0].stop)
            if int(inside.sum()) != own.view.rows:
                return None
            rest = rest[inside]
        energy, columns = dot(rest, rest), rest.shape[1] if scene.vectors is None else len(scene.vectors)
        name = own.module if own else ""
        candidates = sorted(self._by_shape.get((len(rest), columns), []), key=lambda each: -_alike(each.module, name))
        for patch in candidates:
            if own is not None and (patch.lora, patch.module) == (own.lora, own.module):
                continue
            factors = self._factors(patch)
            if factors is None:
                continue
            up, down = factors
            if len(up) != len(rest):
                continue
            if scene.vectors is not None:
                other = up @ (down @ scene.vectors)
                inner, size = dot(rest, other), dot(other, other)
            else:
                inner, size = dot(rest @ down.T, up), dot(up.T @ up, down @ down.T)
            if _leaves_little(energy, inner, size, scene):
                return patch
        return None


def _explains(rest: Matrix, other: Matrix, scene: Scene) -> bool:
    return _leaves_little(dot(rest, rest), dot(rest, other), dot(other, other), scene)


def _leaves_little(energy: float, inner: float, size: float, scene: Scene) -> bool:
    """Tell whether little of a change is left without its part along another one.

    `energy` and `size` are their inner products with themselves, `inner` is that of one with the other.
    """
    return bool(size) and energy - inner * inner / size <= max(NOISE * scene.noise, 0.05 * energy)


def _unknown(key: str, scene: Scene, rest: Matrix, base_energy: float) -> Diagnosis:
    if scene.vectors is not None:
        return Diagnosis(key, Cause.VALUES, detail=f"a change that no LoRA of the recipe makes there{where(scene)}")
    energy = dot(rest, rest)
    rank, captured = _rank(rest, scene.noise)
    size = sqrt(energy / max(base_energy, 1e-300))
    if rank and captured > 0.9 and min(rest.shape) > 2 * rank:
        return Diagnosis(
            key, Cause.OTHER_LORA, detail=f"a change of rank {rank}, {size:.2g} of the base's norm{where(scene)}"
        )
    return Diagnosis(key, Cause.VALUES, detail=f"a change of {size:.2g} of the base's norm{where(scene)}")


def _rank(rest: Matrix, noise: float) -> tuple[int, float]:
    """Estimate the rank of a change above rounding noise, and the share of its energy within that rank."""
    generator = np.random.default_rng(0)
    columns = min(SKETCH, *rest.shape)
    basis, _ = np.linalg.qr(rest @ generator.standard_normal((rest.shape[1], columns)).astype(np.float32))
    values = np.linalg.svd(basis.T @ rest, compute_uv=False).astype(np.float64)
    floor = sqrt(noise / rest.size) * (sqrt(rest.shape[0]) + sqrt(rest.shape[1]))
    rank = int((values > 1.5 * floor).sum())
    energy = dot(rest, rest)
    return rank, float(np.square(values[:rank]).sum() / energy) if energy else 0.0


def _alike(one: str, other: str) -> int:
    """Count the characters that two names share at their beginning."""
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(other))
