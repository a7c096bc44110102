"""Name what a tensor holds instead of the due values, and put it into a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Name the cause of a wrong tensor; the value is the check's name after `weights.`."""

    MISSING = "missing"
    SIGN = "sign"
    TWICE = "twice"
    ALPHA = "alpha"
    RSLORA = "rslora"
    STRENGTH = "strength"
    EXCHANGED = "exchanged"
    OTHER_MODULE = "other_module"
    SHIFTED = "shifted"
    DORA = "dora"
    ROUNDING = "rounding"
    DRAWS = "draws"
    NUDGED = "nudged"
    NONFINITE = "nonfinite"
    OTHER_LORA = "other_lora"
    VALUES = "values"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Say what one tensor holds instead of the due values.

    `lora` and `module` name the patch that is at fault, or are None if no patch explains it. `factor` is the strength
    found divided by the due one. `also` lists causes that would look the same. `detail` completes the sentence.
    """

    key: str
    cause: Cause
    lora: int | None = None
    module: str = ""
    factor: float | None = None
    also: frozenset[Cause] = frozenset()
    detail: str = ""


SENTENCES = {
    Cause.MISSING: "is not applied",
    Cause.SIGN: "is applied with its sign flipped",
    Cause.ALPHA: "is applied without its alpha: the scale alpha/rank was left out",
    Cause.RSLORA: "is scaled by the wrong one of alpha/rank and alpha/√rank (rsLoRA)",
    Cause.TWICE: "is applied twice",
    Cause.STRENGTH: "is applied at another strength",
    Cause.EXCHANGED: "has up and down exchanged",
    Cause.OTHER_MODULE: "is applied to the wrong tensor",
    Cause.SHIFTED: "lies on the wrong rows",
    Cause.DORA: "is added without DoRA's norm",
    Cause.ROUNDING: "was rounded more than once on the way, or changed in its last places",
    Cause.DRAWS: "is rounded otherwise than the recipe's seed draws: by another seed, or to nearest",
    Cause.NUDGED: "is off in its last places",
    Cause.NONFINITE: "holds NaN or infinity",
    Cause.OTHER_LORA: "holds a low-rank change that no LoRA of the recipe makes there: another LoRA?",
    Cause.VALUES: "holds other values",
}
"""The sentence that each cause makes with its subject, a LoRA or a tensor."""

FACTORS = (Cause.MISSING, Cause.SIGN, Cause.ALPHA, Cause.TWICE, Cause.RSLORA)
"""Causes that multiply a strength by a fixed factor, the likeliest first."""
