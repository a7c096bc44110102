"""The report for a CI job's page ($GITHUB_STEP_SUMMARY): summary.md, in GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lorabake.report import grid
from lorabake.report.pictures import gain
from lorabake.report.wording import (
    MODELS,
    by_stage,
    encode,
    figure,
    largest,
    meaning_of,
    meaning_of_all,
    sentence,
    tally,
)
from lorabake.verification.findings import Finding, Status, Verdict
from lorabake.verification.many import RANKS
from lorabake.visible import in_markdown as escaped

if TYPE_CHECKING:
    from lorabake.verification.findings import Environment, Identity, Likeness, Samples, Verification
    from lorabake.verification.many import VerifiedBatch

MOST_ROWS = 50
"""GitHub refuses a summary above 1 MiB; the HTML page has the rest."""

SIGN_OF_FAILED = "💥"
VERDICT_SIGNS = {Verdict.VERIFIED: "✅", Verdict.MISMATCH: "❌", Verdict.NOT_FINISHED: "💥", Verdict.NOT_CHECKED: "⏭️"}
SIGNS = {Status.FAIL: "❌ fail", Status.ERROR: "💥 error", Status.WARN: "🟡 warn"}


def render(verification: Verification) -> bytes:
    """Write the verdict, what failed or warned, counts by stage and the samples' figures."""
    verdict = verification.verdict
    lines = [f"## {VERDICT_SIGNS[verdict]} {verdict.word}: {meaning_of(verification)}", ""]
    lines += [f"`lorabake verify`: {escaped(str(verification.baked))}", ""]
    if verification.environment:
        lines += [*_environment(verification.environment), ""]
    lines += [*_counts(verification), ""]
    loud = [finding for finding in verification.findings if finding.status in SIGNS]
    if loud:
        loud.sort(key=lambda finding: -finding.status.severity)
        lines += ["### Findings", "", *_findings(loud), ""]
    if verification.samples:
        lines += _figures(verification.samples)
    return encode("\n".join(lines).rstrip() + "\n")


def render_all(batch: VerifiedBatch) -> bytes:
    """Write the verdict on several outputs and a table of them, what is wrong first."""
    lines = [f"## {VERDICT_SIGNS[batch.verdict]} {batch.verdict.word}: {meaning_of_all(batch)}", ""]
    if batch.environment:
        lines += [*_environment(replace(batch.environment, output=None)), ""]
    ranked = sorted(batch.outputs, key=lambda output: RANKS.index(output.verdict))
    rows = (
        [
            f"{SIGN_OF_FAILED if output.verdict is None else VERDICT_SIGNS[output.verdict]} {output.word}",
            output.name,
            tally(output.findings) if output.findings else "–",
            output.why or "–",
        ]
        for output in ranked[:MOST_ROWS]
    )
    lines += _table(["", "output", "findings", "what is the matter"], rows)
    if len(ranked) > MOST_ROWS:
        lines += ["", f"{len(ranked) - MOST_ROWS} more are in the report."]
    if any(sample.picture for output in batch.outputs for sample in output.samples):
        lines += ["", f"The pictures are in `{grid.FILE}`."]
    return encode("\n".join(lines).rstrip() + "\n")


def _environment(environment: Environment) -> Iterator[str]:
    facts = {
        "command": environment.command,
        "date": environment.date,
        "versions": ", ".join(f"{package} {version}" for package, version in environment.versions.items()),
        "device": f"{environment.device}, {environment.system}",
        "baked on": environment.baked_on,
        "base": _identity(environment.base),
        "output": _identity(environment.output) if environment.output else "",
    }
    yield from _table(["environment", ""], ([name, fact] for name, fact in facts.items() if fact))


def _identity(model: Identity) -> str:
    """Name a model by its one digest; the page has those of several files."""
    of = "file" if model.is_whole else "header alone"
    digests = [*model.digests.values()]
    return f"{model.path}, {f'SHA-256 of the {of} {digests[0]}' if len(digests) == 1 else f'{len(digests)} files'}"


def _counts(verification: Verification) -> Iterator[str]:
    yield from _table(
        ["stage", "findings", "seconds"],
        (
            [stage, tally(findings), f"{verification.seconds[stage]:.1f}" if stage in verification.seconds else "–"]
            for stage, findings in by_stage(verification).items()
        ),
    )


def _findings(loud: list[Finding]) -> Iterator[str]:
    yield from _table(
        ["", "check", "what", "finding"],
        ([SIGNS[finding.status], finding.check, finding.subject, sentence(finding)] for finding in loud[:MOST_ROWS]),
    )
    if len(loud) > MOST_ROWS:
        yield f"\n{len(loud) - MOST_ROWS} more are in the report."


def _figures(samples: Samples) -> list[str]:
    lines = []
    if samples.pictures:
        lines += [
            "### Pictures",
            "",
            f"Likeness to the run-time pictures ({escaped(samples.reference)}): *rounded* is the floor, what "
            "rounding alone changes; *base* the ceiling.",
            "",
            *_table(
                ["prompt", "seed", "model", "latents, relative L2", "PSNR, dB", "SSIM"],
                (
                    [sample.prompt, str(sample.seed), MODELS[model], *_likeness(sample.likeness[model])]
                    for sample in samples.pictures
                    for model in ("floor", "baked", "base")
                    if model in sample.likeness
                ),
            ),
            "",
            f"The pictures are in `{grid.FILE}`, a row for each prompt: base, run time, baked, and the difference "
            f"between the last two ×{gain(samples.pictures)}.",
            "",
        ]
    if samples.texts:
        lines += [
            "### Texts",
            "",
            f"Largest logit difference from the run-time model ({escaped(samples.reference)}).",
            "",
            *_table(
                ["prompt", "rounded", "baked", "base"],
                (
                    [
                        sample.prompt,
                        *(figure(largest(sample.logits.get(model, ()))) for model in ("floor", "baked", "base")),
                    ]
                    for sample in samples.texts
                ),
            ),
            "",
        ]
    return lines


def _likeness(likeness: Likeness) -> list[str]:
    return [figure(likeness.latents), figure(likeness.psnr), figure(likeness.ssim)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(escaped(cell) for cell in row)} |"
