"""Prepare a patch's effect from its own tensors: read once for a step, shared by all rows."""

from __future__ import annotations

from functools import partial

from lorabake.adapters.effect import Effect
from lorabake.adapters.programs import SCALE_OF_ALPHA_0
from lorabake.adapters.settings import TermsOf
from lorabake.errors import MatchError, first_line
from lorabake.execution.parts import shaped
from lorabake.execution.reading import Loader
from lorabake.matching.patches import Patch
from lorabake.planning.cautions import no_scale
from lorabake.tensors.dtypes import decode_scalar


def effect_of(patch: Patch, lora: str, loader: Loader) -> tuple[Effect, float]:
    """Read a patch's tensors, and compute what all rows share; return the effect and its scale.

    `lora` is the LoRA's name, for messages.
    """
    kind, scale = patch.kind, _scale_of(patch, lora, loader)
    tensors = {
        slot: loader.integers(weight) if slot in kind.integers else loader.whole(weight)
        for slot, weight in kind.operands(patch.tensors).items()
    }
    terms = TermsOf(patch.view.shape, scale, patch.settings)
    try:
        return kind.effect(tensors, terms, partial(shaped, patch), patch.lengths), scale
    except ValueError as error:
        raise MatchError(f"LoRA {lora!r}: {patch.module}: {first_line(error, None)}") from None


def _scale_of(patch: Patch, lora: str, loader: Loader) -> float:
    if patch.scale is not None:
        return patch.scale
    weight = patch.kind.alpha_of(patch.tensors)
    if weight is None:
        return 1.0
    alpha = decode_scalar(weight.dtype, loader.raw(weight.first))
    if not alpha and patch.semantics in SCALE_OF_ALPHA_0:
        return patch.kind.scale(SCALE_OF_ALPHA_0[patch.semantics] * patch.kind.rank(patch.shapes), patch.shapes)
    if not alpha or alpha - alpha:
        raise no_scale(lora, weight.name, alpha)
    return patch.kind.scale(alpha, patch.shapes) * patch.parts
