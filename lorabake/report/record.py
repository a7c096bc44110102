"""The report for programs, report.json: a verification as the document that `lorabake schema verify` describes."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lorabake.documents import document
from lorabake.documents.bake import FileDigest
from lorabake.documents.batch import Chosen
from lorabake.documents.records import PackageVersion
from lorabake.documents.verify import (
    EffectRecord,
    EnvironmentRecord,
    FailureRecord,
    Found,
    GridRecord,
    IdentityRecord,
    Likenesses,
    LikenessRecord,
    ModelLogits,
    ModelTexts,
    PictureRecord,
    Program,
    RecipeRecord,
    SampleSettings,
    SamplesRecord,
    Stage,
    StatusCount,
    TensorRecord,
    TextRecord,
    VerifiedStage,
    VerifyDocument,
)
from lorabake.documents.verify_batch import VerdictCount, VerifiedOutputRecord, VerifyBatchDocument
from lorabake.planning.record import record_of
from lorabake.report import grid
from lorabake.report.pictures import gain
from lorabake.report.wording import by_status, sentence
from lorabake.verification.findings import programs_of
from lorabake.visible import visible_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lorabake.verification.findings import (
        Environment,
        Finding,
        Identity,
        Likeness,
        Samples,
        SettingValue,
        Verification,
    )
    from lorabake.verification.many import VerifiedBatch, VerifiedOutput

NOTES = ("pictures", "names", "run_time")
"""Settings that are sentences."""


def render(verification: Verification) -> bytes:
    """Write the record as indented JSON."""
    return (visible_json(compose(verification)) + "\n").encode()


def render_all(batch: VerifiedBatch) -> bytes:
    """Write the record of several outputs as indented JSON."""
    return (visible_json(compose_all(batch)) + "\n").encode()


def compose_all(batch: VerifiedBatch) -> dict[str, object]:
    """Return the document on several outputs as plain values that JSON can hold."""
    record = VerifyBatchDocument(
        verdict=batch.verdict.value,
        exit_code=batch.exit_code,
        counts=tuple(VerdictCount(verdict, count) for verdict, count in batch.counts_by_name.items()),
        outputs=tuple(map(_output, batch.outputs)),
        environment=_environment(replace(batch.environment, output=None)) if batch.environment else None,
        seconds=round(batch.seconds, 3),
    )
    return document("verify_batch", record)


def _output(output: VerifiedOutput) -> VerifiedOutputRecord:
    recipe = output.recipe
    return VerifiedOutputRecord(
        name=output.name,
        recipe=_told_from_here(recipe.file) if recipe and recipe.file else None,
        path=recipe.output.path if recipe else None,
        choices=tuple(Chosen(*choice) for choice in output.choices.items()),
        verdict=output.name_of_verdict,
        exit_code=output.exit_code,
        counts=tuple(StatusCount(status.value, count) for status, count in by_status(output.findings).items()),
        stages=tuple(VerifiedStage(_stage(name), round(seconds, 3)) for name, seconds in output.seconds.items()),
        findings=tuple(map(_found, output.findings)),
        page=output.page,
        error=output.error.lines if output.error else (),
    )


def _told_from_here(path: Path) -> str:
    """Tell a path from the current folder where it lies below, else by its name."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def compose(verification: Verification) -> dict[str, object]:
    """Return the document as plain values that JSON can hold."""
    plan, samples = verification.plan, verification.samples
    record = VerifyDocument(
        verdict=verification.verdict.value,
        exit_code=verification.exit_code,
        environment=_environment(verification.environment) if verification.environment else None,
        baked=str(verification.baked),
        counts=tuple(StatusCount(status.value, count) for status, count in by_status(verification.findings).items()),
        stages=tuple(
            VerifiedStage(_stage(name), round(seconds, 3)) for name, seconds in verification.seconds.items()
        ),
        findings=tuple(map(_found, verification.findings)),
        effects=tuple(
            EffectRecord(effect.lora, effect.component, effect.block, effect.relative)
            for effect in verification.effects
        ),
        tensors=tuple(
            TensorRecord(tensor.lora, tensor.module, tensor.key, tensor.what, tensor.factor)
            for tensor in verification.tensors
        ),
        samples=_samples(samples) if samples else None,
        plan=record_of(plan) if plan else None,
        recipe=RecipeRecord(verification.recipe, plan.sources.recipe.normal_form() if plan else None),
        digests=tuple(FileDigest(path, sha256) for path, sha256 in verification.digests.items()),
        failures=tuple(
            FailureRecord(_stage(failure.stage), failure.exit_code, failure.traceback)
            for failure in verification.failures
        ),
        grid=_grid(samples) if samples and samples.pictures else None,
    )
    return document("verify", record)


def _environment(environment: Environment) -> EnvironmentRecord:
    return EnvironmentRecord(
        command=environment.command or None,
        date=environment.date or None,
        versions=tuple(PackageVersion(package, version) for package, version in environment.versions.items()),
        system=environment.system,
        device=environment.device,
        baked_on=environment.baked_on or None,
        base=_identity(environment.base),
        output=_identity(environment.output) if environment.output else None,
    )


def _identity(model: Identity) -> IdentityRecord:
    digests = tuple(FileDigest(name, sha256) for name, sha256 in model.digests.items())
    return IdentityRecord(model.path, "files" if model.is_whole else "headers", digests)


def _stage(name: str) -> Stage:
    return cast("Stage", name)


def _found(finding: Finding) -> Found:
    figures = finding.figures
    return Found(
        check=finding.check,
        status=finding.status.value,
        subject=finding.subject if figures.count is None else None,
        count=figures.count,
        measured=figures.measured,
        limit=figures.limit,
        unit=figures.unit,
        message=sentence(finding),
    )


def _samples(samples: Samples) -> SamplesRecord:
    return SamplesRecord(
        reference=cast("tuple[Program, ...]", programs_of(samples.reference)),
        reference_title=samples.reference,
        settings=_settings(samples.settings),
        pictures=tuple(
            PictureRecord(
                sample.prompt,
                sample.seed,
                Likenesses(**{model: _likeness(likeness) for model, likeness in sample.likeness.items()}),
            )
            for sample in samples.pictures
        ),
        texts=tuple(
            TextRecord(sample.prompt, ModelTexts(**sample.texts), ModelLogits(**sample.logits))
            for sample in samples.texts
        ),
    )


def _settings(settings: Mapping[str, SettingValue]) -> SampleSettings:
    own = {field.name for field in fields(SampleSettings)}
    values = cast("dict[str, Any]", {name: value for name, value in settings.items() if name in own})
    return SampleSettings(**values, notes=tuple(str(settings[name]) for name in NOTES if name in settings))


def _likeness(likeness: Likeness) -> LikenessRecord:
    return LikenessRecord(likeness.latents, likeness.psnr, likeness.ssim)


def _grid(samples: Samples) -> GridRecord:
    return GridRecord(grid.FILE, tuple(grid.COLUMNS), gain(samples.pictures))
