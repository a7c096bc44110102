"""What `lorabake verify --json` prints and `--report FOLDER` writes as report.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorabake.documents.bake import FileDigest
from lorabake.documents.names import Number, Unit, Value
from lorabake.documents.plan import PlanRecord
from lorabake.documents.records import STRICT, PackageVersion

Verdict = Literal["verified", "mismatch", "not_finished", "not_checked"]
Status = Literal["pass", "skip", "warn", "error", "fail"]
Program = Literal["diffusers", "peft", "lorabake"]
Stage = Literal["structure", "provenance", "quick", "weights", "samples"]


@dataclass(frozen=True, slots=True)
class IdentityRecord:
    """Which model this is."""

    __pydantic_config__ = STRICT
    path: str
    """Its path as the recipe writes it, or its name."""
    of: Literal["files", "headers"]
    """What the digests are of. Models of one layout have the same headers: only whole files tell them apart."""
    digests: tuple[FileDigest, ...]
    """A digest for each of its files with weights."""


@dataclass(frozen=True, slots=True)
class EnvironmentRecord:
    """What verified what: all that it takes to do it again."""

    __pydantic_config__ = STRICT
    command: str | None
    """The command line; null where Python asked."""
    date: str | None
    """The date that was given; null without one."""
    versions: tuple[PackageVersion, ...]
    """The versions of lorabake, Python and the packages that computed."""
    system: str
    """The operating system and the processor's kind, such as Linux x86_64."""
    device: str
    """The device that computed."""
    baked_on: str | None
    """The classes of device that baked the checkpoint, as its header says; null where it says nothing."""
    base: IdentityRecord
    """The base."""
    output: IdentityRecord | None
    """The checkpoint; null where it could not be read."""


@dataclass(frozen=True, slots=True)
class StatusCount:
    """How many findings have a status."""

    __pydantic_config__ = STRICT
    status: Status
    """The status; error is a stage that broke off."""
    count: int
    """How many."""


@dataclass(frozen=True, slots=True)
class VerifiedStage:
    """The time of one stage that ran."""

    __pydantic_config__ = STRICT
    stage: Stage
    """Its name."""
    seconds: float
    """How long it took."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one check found."""

    __pydantic_config__ = STRICT
    check: str
    """The check's name, which begins with its stage: weights.strength."""
    status: Status
    """How it ended; error is a stage that broke off."""
    subject: str | None
    """What was looked at: a file, a tensor, a LoRA, a component, a prompt; null for several tensors."""
    count: int | None
    """How many tensors were looked at, where they are several."""
    measured: Value
    """What was measured, in `unit`."""
    limit: Value
    """What is right, or as far as it may go."""
    unit: Unit | None
    """The unit of `measured` and `limit`."""
    message: str
    """The finding for people, with its figures."""


@dataclass(frozen=True, slots=True)
class EffectRecord:
    """How much one LoRA changes one block of the model."""

    __pydantic_config__ = STRICT
    lora: str
    """The LoRA's path as the recipe writes it."""
    component: str
    """The component, such as unet."""
    block: str
    """The block, such as down_blocks.1.attentions.0."""
    relative: Number
    """The size of the change over the size of the weights: Frobenius norms."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What became of one LoRA's change of one tensor."""

    __pydantic_config__ = STRICT
    lora: str
    """The LoRA's path as the recipe writes it."""
    module: str
    """The LoRA's module."""
    key: str
    """The tensor."""
    what: str
    """applied, or the cause of the difference, which is also the last part of a check's name."""
    factor: Number | None
    """The strength found over the one that was due; null where it cannot be told."""


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """How samples were made; a setting that does not apply is null."""

    __pydantic_config__ = STRICT
    device: str | None = None
    """The device that ran the models."""
    precision: str | None = None
    """The dtype in which they ran."""
    pipeline: str | None = None
    """The class of diffusers' pipeline."""
    scheduler: str | None = None
    """The scheduler."""
    prediction: str | None = None
    """What the model predicts, such as epsilon or v_prediction."""
    steps: int | None = None
    """Denoising steps."""
    size: tuple[int, int] | None = None
    """The pictures' width and height."""
    guidance: float | None = None
    """The guidance scale."""
    decoding: str | None = None
    """How tokens are chosen, such as greedy."""
    tokens: int | None = None
    """How many tokens are written at most."""
    notes: tuple[str, ...] = ()
    """What else there is to know, for people."""


@dataclass(frozen=True, slots=True)
class LikenessRecord:
    """How like two pictures are that were made from the same noise."""

    __pydantic_config__ = STRICT
    latents: Number
    """The distance of the final latents, relative to their size."""
    psnr: Number
    """The pictures' PSNR in decibels; "Infinity" for equal pictures."""
    ssim: Number
    """The pictures' SSIM, at most 1."""


@dataclass(frozen=True, slots=True)
class Likenesses:
    """Pictures of three models, compared with that of the base with the LoRAs at run time."""

    __pydantic_config__ = STRICT
    base: LikenessRecord | None = None
    """The base alone: the ceiling."""
    floor: LikenessRecord | None = None
    """The run-time weights, rounded to the output's dtypes."""
    baked: LikenessRecord | None = None
    """The checkpoint."""


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """What the models drew for one prompt."""

    __pydantic_config__ = STRICT
    prompt: str
    """The prompt."""
    seed: int
    """The seed of the first noise."""
    likeness: Likenesses
    """How like the pictures are."""


@dataclass(frozen=True, slots=True)
class ModelTexts:
    """One text of each model."""

    __pydantic_config__ = STRICT
    base: str | None = None
    """The base alone."""
    runtime: str | None = None
    """The base with the LoRAs at run time."""
    floor: str | None = None
    """The run-time weights, rounded to the output's dtypes."""
    baked: str | None = None
    """The checkpoint."""


@dataclass(frozen=True, slots=True)
class ModelLogits:
    """The largest difference from the run-time model's logits, at each position of its text."""

    __pydantic_config__ = STRICT
    base: tuple[Number, ...] = ()
    """The base alone."""
    floor: tuple[Number, ...] = ()
    """The run-time weights, rounded to the output's dtypes."""
    baked: tuple[Number, ...] = ()
    """The checkpoint."""


@dataclass(frozen=True, slots=True)
class TextRecord:
    """What the models say to one prompt."""

    __pydantic_config__ = STRICT
    prompt: str
    """The prompt."""
    texts: ModelTexts
    """What they say."""
    logits: ModelLogits
    """How far their logits differ."""


@dataclass(frozen=True, slots=True)
class SamplesRecord:
    """What models made of prompts: of the base, of the base with LoRAs at run time, and of the checkpoint."""

    __pydantic_config__ = STRICT
    reference: tuple[Program, ...]
    """Who applied the LoRAs at run time; lorabake where its formulas did."""
    reference_title: str
    """The same, for people."""
    settings: SampleSettings
    """How the samples were made."""
    pictures: tuple[PictureRecord, ...]
    """The pictures, in the order of the rows of `grid`."""
    texts: tuple[TextRecord, ...]
    """The texts of language models."""


@dataclass(frozen=True, slots=True)
class RecipeRecord:
    """The recipe that the checkpoint was compared with."""

    __pydantic_config__ = STRICT
    text: str
    """The recipe as it was given."""
    normal: Mapping[str, Any] | None
    """The same, reduced to what may change the bytes; null without a plan."""


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """A stage that broke off."""

    __pydantic_config__ = STRICT
    stage: Stage
    """Its name."""
    exit_code: int
    """The exit code of the command for it: 2 the input is at fault, 3 the machine, 4 lorabake."""
    traceback: str
    """Where it happened, for who mends it."""


@dataclass(frozen=True, slots=True)
class GridRecord:
    """The file of pictures: a row for each prompt."""

    __pydantic_config__ = STRICT
    file: str
    """Its name in the report's folder."""
    columns: tuple[str, ...]
    """What the columns show."""
    difference_factor: int
    """How much the last column's differences are amplified."""


@dataclass(frozen=True, slots=True)
class VerifyDocument:
    """Whether a checkpoint is what its recipe says."""

    __pydantic_config__ = STRICT
    verdict: Verdict
    """not_finished: no difference was found, but a stage broke off. not_checked: no check could be made."""
    exit_code: int
    """The command's exit code."""
    environment: EnvironmentRecord | None
    """What verified what; null for a record that was not made by verifying."""
    baked: str
    """The checkpoint, told from the recipe's folder."""
    counts: tuple[StatusCount, ...]
    """How many findings have each status; every status is there."""
    stages: tuple[VerifiedStage, ...]
    """The stages that ran."""
    findings: tuple[Found, ...]
    """What was found, check by check."""
    effects: tuple[EffectRecord, ...]
    """How much each LoRA changes each block."""
    tensors: tuple[TensorRecord, ...]
    """What became of each LoRA's change of each tensor."""
    samples: SamplesRecord | None
    """What the models made; null where nothing was sampled."""
    plan: PlanRecord | None
    """What a bake of the recipe does; null where the checkpoint could not be read."""
    recipe: RecipeRecord
    """The recipe."""
    digests: tuple[FileDigest, ...]
    """The digests that were taken."""
    failures: tuple[FailureRecord, ...]
    """The stages that broke off."""
    grid: GridRecord | None
    """The file of pictures; null where there is none."""
