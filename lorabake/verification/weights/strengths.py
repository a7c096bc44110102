"""Explain a wrong tensor by other strengths of its LoRAs: least squares over each LoRA's change."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isclose, sqrt

import numpy as np

from lorabake.matching.patches import Patch
from lorabake.reference.recompute import Recomputation
from lorabake.verification.weights.causes import Cause, Diagnosis
from lorabake.verification.weights.limits import NOISE
from lorabake.verification.weights.scene import Scene, dot, where


def by_strengths(recomputation: Recomputation, key: str, scene: Scene) -> list[Diagnosis] | None:
    """Explain E by other strengths of the tensor's own patches; None if that leaves more than noise."""
    if not scene.own:
        return None
    deltas = [delta.ravel() for _, delta in scene.own]
    gram = np.array([[dot(one, other) for other in deltas] for one in deltas])
    found = np.linalg.lstsq(gram, np.array([dot(each, scene.found.ravel()) for each in deltas]), rcond=1e-9)[0]
    due = np.linalg.lstsq(gram, np.array([dot(each, scene.due.ravel()) for each in deltas]), rcond=1e-9)[0]
    rest = scene.found.ravel() - sum(weight * delta for weight, delta in zip(found, deltas, strict=True))
    if dot(rest, rest) > NOISE * scene.noise:
        return None
    spread = scene.noise / scene.found.size * np.diag(np.linalg.pinv(gram))
    diagnoses = []
    for (patch, _), there, wanted, variance in zip(scene.own, found, due, spread, strict=True):
        if not wanted:
            continue
        factor, tolerance = float(there / wanted), 4 * sqrt(variance) / abs(wanted) + 0.004
        if abs(factor - 1) > tolerance:
            causes = list(_causes(patch, recomputation.patches.scale(patch), factor, tolerance))
            cause = causes[0] if causes else Cause.STRENGTH
            also = frozenset(causes[1:])
            detail = where(scene)
            diagnoses.append(Diagnosis(key, cause, patch.lora, patch.module, factor, also, detail))
    return diagnoses


def _causes(patch: Patch, scale: float, factor: float, tolerance: float) -> Iterator[Cause]:
    rank = patch.kind.rank(patch.shapes)
    known = {
        Cause.MISSING: 0.0,
        Cause.SIGN: -1.0,
        Cause.ALPHA: 1 / scale if scale else inf,
        Cause.TWICE: 2.0,
        Cause.RSLORA: sqrt(rank),
    }
    for cause, value in known.items():
        if isclose(factor, value, abs_tol=max(tolerance, 0.02 * abs(value))):
            yield cause
    if isclose(factor, 1 / sqrt(rank), rel_tol=0.02) and rank > 1:
        yield Cause.RSLORA
