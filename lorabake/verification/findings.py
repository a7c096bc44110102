"""What verification finds: rows of a verdict, and the figures and pictures behind them.

Plain data, no torch: the stages write it, the report shows it, the command line takes its exit code from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorabake import arguments
from lorabake.documents.names import NO_FIGURES, Figures
from lorabake.progress import unseen
from lorabake.visible import named_fields, short_repr

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lorabake.planning import Plan

    Pixels = NDArray[np.uint8]


SettingValue = str | int | float | tuple[int, int]
"""A setting of the sampling; a pair is a picture's width and height."""


class Status(StrEnum):
    """Rank findings. The verdict is the worst of them; only FAIL means that the checkpoint differs.

    ERROR means a stage that broke off: it says nothing about the checkpoint.
    """

    PASS = "pass"
    SKIP = "skip"
    WARN = "warn"
    ERROR = "error"
    FAIL = "fail"

    @property
    def severity(self) -> int:
        """Return the rank, 0 for the most harmless."""
        return list(Status).index(self)


FORMULAS_APPLIED = "lorabake's formulas"

PROGRAMS = {"diffusers": "diffusers", "PEFT": "peft", FORMULAS_APPLIED: "lorabake"}
"""Who may apply LoRAs at run time, in words and by name."""


def programs_of(reference: str) -> tuple[str, ...]:
    """Return the names of the programs that a text names."""
    return tuple(name for words, name in PROGRAMS.items() if words in reference)


UNCOMPARED = "as far as was looked at: no weights were compared"
"""What is said of a verdict that rests on headers or samples alone."""


class Verdict(StrEnum):
    """Sum up a verification. Programs read the value ("not_finished"), people the `word` ("Not finished")."""

    VERIFIED = "verified"
    MISMATCH = "mismatch"
    NOT_FINISHED = "not_finished"
    NOT_CHECKED = "not_checked"

    @property
    def word(self) -> str:
        """Return the verdict as the command line and the report show it."""
        return self.value.replace("_", " ").capitalize()


@dataclass(frozen=True, slots=True)
class Finding:
    """State one row of the verdict.

    `check` is a dotted name that starts with its stage ("weights.strength"), `subject` what was looked at (a tensor,
    a LoRA, a picture), `measured` and `limit` figures as text, or empty; `note` says it in a sentence. `figures` are
    the same for programs.
    """

    check: str
    status: Status
    subject: str
    measured: str = ""
    limit: str = ""
    note: str = ""
    figures: Figures = NO_FIGURES

    def __repr__(self) -> str:
        return named_fields(self, ("check", "status", "subject", "measured", "limit", "note"), letters=120)

    @property
    def stage(self) -> str:
        """Name the stage: structure, weights, quick or samples."""
        return self.check.split(".")[0]


@dataclass(frozen=True, slots=True)
class Effect:
    """Say how much one LoRA changes one block: ‖ΔW‖/‖W‖, Frobenius norms over all its baked weights there.

    `block` is a module path shortened to its block (down_blocks.1.attentions.0), in the model's order within its
    `component`.
    """

    __repr__ = short_repr

    lora: str
    component: str
    block: str
    relative: float


@dataclass(frozen=True, slots=True)
class TensorVerdict:
    """Say what one LoRA did to one tensor: `what` is "applied" or the cause of a difference, `factor` its strength
    there over the one due, None where it could not be told.
    """

    __repr__ = short_repr

    lora: str
    module: str
    key: str
    what: str
    factor: float | None


@dataclass(frozen=True, slots=True)
class Likeness:
    """Compare two results under the same noise: of the final latents (relative L2) and of the pictures.

    `psnr` is in dB (infinite for equal pictures), `ssim` in [-1, 1], after Wang et al. 2004.
    """

    latents: float
    psnr: float
    ssim: float


@arguments.well_made
@dataclass(frozen=True, slots=True)
class SampleOptions:
    """Say what to sample; None means the recipe's value, or else the family's default.

    `size` is (width, height) in pixels, or one number for both. A sweep is drawn of `strengths`, which are factors on
    all strengths of the recipe. `progress` is told the steps done, the steps in all, and what is being made.

    Raise ArgumentError for a value of another type, or out of its range.
    """

    __repr__ = short_repr

    prompts: Sequence[str] | None = None
    seed: int | None = None
    steps: int | None = None
    size: int | Sequence[int] | None = None
    guidance: float | None = None
    device: str | None = None
    strengths: Sequence[float] = ()
    progress: Callable[[int, int, str], None] = unseen

    def __post_init__(self) -> None:
        checks: dict[str, Callable[[object, str], object]] = {
            "prompts": arguments.texts,
            "seed": partial(arguments.whole, least=0),
            "steps": partial(arguments.whole, least=1),
            "size": arguments.size,
            "guidance": partial(arguments.number, least=0),
            "device": arguments.device_name,
            "strengths": arguments.rising,
            "progress": partial(arguments.called, example="lambda done, total, label: None"),
        }
        for name, check in checks.items():
            value = getattr(self, name)
            if value is not None or name in ("strengths", "progress"):
                object.__setattr__(self, name, check(value, name))

    @property
    def sides(self) -> tuple[int, int] | None:
        """Return the width and the height of a picture."""
        return None if self.size is None else arguments.size(self.size, "size")


@dataclass(frozen=True, slots=True)
class PromptSample:
    """Hold what the models made of one prompt.

    `pictures` by model: base, runtime (base + LoRAs at run time), floor (run-time weights rounded to the output's
    dtypes), baked. `likeness` compares with the run-time picture: base (the ceiling), floor, baked.
    """

    __repr__ = short_repr

    prompt: str
    seed: int
    pictures: Mapping[str, Pixels]
    likeness: Mapping[str, Likeness]


@dataclass(frozen=True, slots=True)
class SweepSample:
    """Hold one prompt's run-time pictures at several factors on all strengths, in rising order."""

    __repr__ = short_repr

    prompt: str
    seed: int
    strengths: tuple[float, ...]
    pictures: tuple[Pixels, ...]


@dataclass(frozen=True, slots=True)
class TextSample:
    """Hold what three language models say to one prompt.

    `texts` by model: base, runtime, floor, baked. `logits` gives, by model, the largest absolute logit difference
    from the run-time model at each position of the run-time model's text.
    """

    __repr__ = short_repr

    prompt: str
    texts: Mapping[str, str]
    logits: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Samples:
    """Hold the third stage's pictures or texts and how they were made.

    `reference` tells who applied the LoRAs at run time (diffusers, PEFT, lorabake's formulas), `settings` the
    sampling's facts (scheduler, steps, size, guidance, device).
    """

    __repr__ = short_repr

    reference: str
    settings: Mapping[str, SettingValue]
    pictures: tuple[PromptSample, ...] = ()
    sweep: tuple[SweepSample, ...] = ()
    texts: tuple[TextSample, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Say why a stage broke off: `exit_code` is for the command; `traceback` shows where it happened."""

    __repr__ = short_repr

    stage: str
    exit_code: int
    traceback: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Tell which model this is: the SHA-256 of each of its files by name, or of their headers if not `is_whole`.

    Two models of one size and layout have the same headers, so only whole files tell them apart.
    """

    path: str
    digests: Mapping[str, str]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Environment:
    """Say what verified what: all that somebody else needs to do it again.

    `versions` are by package, Python included; `device` computed, and `baked_on` is what the checkpoint's header says
    of the bake. `command` is empty where Python asked, `date` where none was given. `output` is None for a checkpoint
    that could not be read.
    """

    versions: Mapping[str, str]
    system: str
    device: str
    baked_on: str
    base: Identity
    output: Identity | None
    command: str = ""
    date: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """Hold everything that verifying one checkpoint brought: the verdict, and what the report shows.

    `plan` is None where the baked file could not be read far enough to make one; `seconds` is by stage.
    """

    baked: Path
    recipe: str
    findings: tuple[Finding, ...]
    seconds: Mapping[str, float]
    plan: Plan | None = None
    effects: tuple[Effect, ...] = ()
    tensors: tuple[TensorVerdict, ...] = ()
    samples: Samples | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    environment: Environment | None = None

    def __repr__(self) -> str:
        from lorabake.verification.summary import line_of

        return f"<Verification {line_of(self)}>"

    def _repr_html_(self) -> str:
        from lorabake.verification.summary import card_of

        return card_of(self)

    @property
    def status(self) -> Status:
        """Return the worst status; skipped checks do not count."""
        answers = (finding.status for finding in self.findings if finding.status is not Status.SKIP)
        return max(answers, key=lambda status: status.severity, default=Status.SKIP)

    @property
    def is_true(self) -> bool:
        """Tell whether no check found a difference and every stage finished."""
        return self.status not in (Status.FAIL, Status.ERROR)

    @property
    def verdict(self) -> Verdict:
        """Return the answer: is the checkpoint what the recipe says? A skipped check answers nothing."""
        if self.status is Status.FAIL:
            return Verdict.MISMATCH
        if self.status is Status.ERROR:
            return Verdict.NOT_FINISHED
        checked = any(finding.status in (Status.PASS, Status.WARN) for finding in self.findings)
        return Verdict.VERIFIED if checked else Verdict.NOT_CHECKED

    @property
    def has_compared_weights(self) -> bool:
        """Tell whether the checkpoint's values were compared with what is due, all or some of them."""
        return any(row.stage in ("weights", "quick") and row.status is not Status.SKIP for row in self.findings)

    @property
    def exit_code(self) -> int:
        """Return 0 for a checkpoint that is what the recipe says, 1 for one that is not, 2 if nothing was checked.

        If a stage broke off and none found a difference, return that stage's code: 2, 3 or 4.
        """
        if self.status is Status.FAIL:
            return 1
        if self.failures:
            return max(failure.exit_code for failure in self.failures)
        return 2 if all(finding.status is Status.SKIP for finding in self.findings) else 0
