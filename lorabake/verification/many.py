"""What verifying many outputs brings: of each its verdict, its findings and small pictures; the base's once for all.

Plain data. Plans and whole pictures are let go with each output, so memory does not grow with their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from lorabake.documents.names import AnyVerdict
from lorabake.errors import LorabakeError
from lorabake.recipe import Recipe
from lorabake.verification.findings import UNCOMPARED, Environment, Failure, Finding, Status, Verdict
from lorabake.visible import at_a_glance, counted_as, short_repr

FAILED = "failed"
"""What is said of an output that could not be looked at, in place of a verdict."""


RANKS = (Verdict.MISMATCH, None, Verdict.NOT_FINISHED, Verdict.NOT_CHECKED, Verdict.VERIFIED)
"""Verdicts, the worst first; None is an output that could not be looked at."""


@dataclass(frozen=True, slots=True)
class SmallPicture:
    """Hold a picture as a page shows it: the bytes of a file of this form, and its sides in pixels."""

    __repr__ = short_repr

    data: bytes
    form: Literal["png", "jpeg"]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class KeptSample:
    """Hold what one model made of a prompt: a small picture, or the beginning of a text.

    `model` is "baked", or the base's path as its recipe writes it. `seed` is None for a text. `settings` say how it
    was made.
    """

    __repr__ = short_repr

    model: str
    prompt: str
    seed: int | None
    settings: str
    picture: SmallPicture | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class VerifiedOutput:
    """Tell what verifying one output of several brought.

    `name` is the output's, or the file's of a recipe that cannot be read. `verdict` is None where it could not be
    looked at; then `error` says why. `samples` are what the output made of each prompt, and `bases` the places of the
    base's samples of the same prompts in `VerifiedBatch.bases`. `page` is its own report, told from the report's
    folder; None without one. `failures` say why stages broke off.
    """

    name: str
    recipe: Recipe | None = None
    verdict: Verdict | None = None
    exit_code: int = 0
    findings: tuple[Finding, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[KeptSample, ...] = ()
    bases: tuple[int, ...] = ()
    page: str | None = None
    failures: tuple[Failure, ...] = ()
    error: LorabakeError | None = None

    @classmethod
    def failed(cls, name: str, error: LorabakeError, recipe: Recipe | None = None) -> VerifiedOutput:
        """Tell of an output that could not be looked at; what the error's frames held is let go."""
        return cls(name, recipe, exit_code=error.exit_code, error=error.without_frames())

    def __repr__(self) -> str:
        return f"<VerifiedOutput {at_a_glance(self.name)}: {self.word}>"

    @property
    def word(self) -> str:
        """Return the verdict in words: verified, mismatch, not finished, not checked, or failed."""
        return FAILED if self.verdict is None else self.verdict.word.lower()

    @property
    def name_of_verdict(self) -> AnyVerdict:
        """Return the verdict as documents name it: not_finished."""
        return cast("AnyVerdict", self.word.replace(" ", "_"))

    @property
    def choices(self) -> Mapping[str, str]:
        """Return the name of its value on each axis of its recipe's matrix."""
        return self.recipe.choices if self.recipe else {}

    @property
    def loud(self) -> tuple[Finding, ...]:
        """Return the findings that are not as they should be, the worst first."""
        ranked = sorted(self.findings, key=lambda finding: -finding.status.severity)
        return tuple(each for each in ranked if each.status in (Status.FAIL, Status.ERROR, Status.WARN))

    @property
    def why(self) -> str:
        """Say in a sentence what is the matter; empty for an output that is what its recipe says."""
        if self.error is not None:
            return self.error.lines[0]
        if self.verdict is Verdict.VERIFIED:
            return ""
        rows = [*self.loud, *(each for each in self.findings if each.status is Status.SKIP)]
        return f"{rows[0].subject}: {rows[0].note or rows[0].measured}" if rows else "no check could be made"

    @property
    def advice(self) -> tuple[str, ...]:
        """Return what the error says below its first line."""
        return self.error.lines[1:] if self.error is not None else ()

    @property
    def has_compared_weights(self) -> bool:
        """Tell whether values were compared with what is due, all or some of them."""
        return any(row.stage in ("weights", "quick") and row.status is not Status.SKIP for row in self.findings)


@dataclass(frozen=True, slots=True)
class VerifiedBatch:
    """Hold what verifying several outputs brought, in the order of the recipes.

    `bases` are the samples of bases, each once; `environment` says what verified them.
    """

    outputs: tuple[VerifiedOutput, ...]
    bases: tuple[KeptSample, ...] = ()
    seconds: float = 0.0
    environment: Environment | None = None

    def __repr__(self) -> str:
        return f"<VerifiedBatch of {counted_as(len(self.outputs), 'output')}: {self.tally}>"

    @property
    def verdict(self) -> Verdict:
        """Return the worst verdict; an output that could not be looked at means that the whole is not finished."""
        held = [output.verdict for output in self.outputs]
        worst = next((verdict for verdict in RANKS if verdict in held), Verdict.NOT_CHECKED)
        return worst or Verdict.NOT_FINISHED

    @property
    def is_true(self) -> bool:
        """Tell whether every output was looked at, and none differs."""
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """Return 1 if an output is not what its recipe says; else the largest code of any of them."""
        codes = [output.exit_code for output in self.outputs]
        return 1 if Verdict.MISMATCH in (output.verdict for output in self.outputs) else max(codes, default=2)

    @property
    def counts(self) -> dict[str, int]:
        """Count outputs by verdict in words, the best first; verdicts that none has are left out."""
        counted = Counter(output.word for output in self.outputs)
        words = [FAILED if verdict is None else verdict.word.lower() for verdict in reversed(RANKS)]
        return {word: counted[word] for word in words if counted[word]}

    @property
    def counts_by_name(self) -> dict[AnyVerdict, int]:
        """Return the counts by the verdicts' names in documents."""
        names = {output.word: output.name_of_verdict for output in self.outputs}
        return {names[word]: count for word, count in self.counts.items()}

    @property
    def tally(self) -> str:
        """Write the counts: 9 verified, 1 mismatch."""
        return ", ".join(f"{count} {word}" for word, count in self.counts.items()) or "no outputs"

    @property
    def caveat(self) -> str:
        """Say that no weights were compared where every verdict rests on less; else empty."""
        looked_at = [output for output in self.outputs if output.verdict is Verdict.VERIFIED]
        return UNCOMPARED if looked_at and not any(output.has_compared_weights for output in looked_at) else ""
