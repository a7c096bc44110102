"""The words and numbers that all forms of the report share, so that no two forms differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from lorabake.verification import ORDER, STAGES
from lorabake.verification.findings import UNCOMPARED, Finding, SettingValue, Status, Verdict, Verification
from lorabake.verification.many import VerifiedBatch
from lorabake.visible import counted_as

MODELS = {"base": "base", "runtime": "run time", "floor": "rounded", "baked": "baked"}
"""What a reader sees for each model that was sampled, in the order of the report."""


MEANINGS = {
    Verdict.VERIFIED: "this file is what the recipe says",
    Verdict.MISMATCH: "this file is not what the recipe says",
    Verdict.NOT_FINISHED: "no difference was found, but a stage broke off",
    Verdict.NOT_CHECKED: "no check could be made",
}
"""What each verdict means, as a clause."""


def meaning_of(verification: Verification) -> str:
    """Say what a verdict means, and that weights were not compared where they were not."""
    is_partial = verification.verdict is Verdict.VERIFIED and not verification.has_compared_weights
    return MEANINGS[verification.verdict] + (f", {UNCOMPARED}" if is_partial else "")


def meaning_of_all(batch: VerifiedBatch) -> str:
    """Say what became of several outputs: 9 of 10 outputs are what their recipes say."""
    count = len(batch.outputs)
    right = sum(output.verdict is Verdict.VERIFIED for output in batch.outputs)
    caveat = f", {batch.caveat}" if batch.caveat else ""
    if right == count:
        said = (
            "the output is what its recipe says" if count == 1 else f"all {count} outputs are what their recipes say"
        )
    else:
        said = f"{right} of {counted_as(count, 'output')} {'is' if right == 1 else 'are'} what the recipe says"
    return said + caveat


def by_status(findings: Iterable[Finding]) -> dict[Status, int]:
    """Count findings by status, the most harmless first; every status has an entry."""
    counts = Counter(finding.status for finding in findings)
    return {status: counts[status] for status in Status}


def by_stage(verification: Verification) -> dict[str, tuple[Finding, ...]]:
    """Group findings by stage; a stage that was not run has an entry without findings."""
    run = {finding.stage for finding in verification.findings}
    names = [stage for stage in ORDER if stage in STAGES or stage in run]
    return {name: tuple(row for row in verification.findings if row.stage == name) for name in names}


def tally(findings: Iterable[Finding]) -> str:
    """Write counts in words: 1 failed, 12 passed; or "not run" for none."""
    words = {
        Status.FAIL: "failed",
        Status.ERROR: "broke off",
        Status.WARN: "warned",
        Status.SKIP: "skipped",
        Status.PASS: "passed",
    }
    counts = by_status(findings)
    return ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status]) or "not run"


def sentence(finding: Finding) -> str:
    """Say a finding in one line: its note, and what was measured against which limit."""
    figures = f"measured {finding.measured}" if finding.measured else ""
    if finding.limit:
        figures += f"{', ' if figures else ''}limit {finding.limit}"
    if not finding.note:
        return figures or finding.check
    return f"{finding.note.rstrip('.')}{f' ({figures})' if figures else ''}."


def setting(value: SettingValue) -> str:
    """Write a setting of the sampling; a pair is a picture's width and height."""
    match value:
        case (width, height):
            return f"{width} × {height}"
        case float():
            return f"{value:g}"
    return str(value)


def figure(value: float | None) -> str:
    """Write a measured number with four digits; ∞ and NaN as such, an en dash if nothing was measured."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return "NaN" if math.isnan(value) else f"{value:.4g}".replace("-", "−")


def largest(values: Iterable[float]) -> float | None:
    """Return the largest value; NaN if any value is NaN, None if there are no values."""
    seen = list(values)
    return next((value for value in seen if math.isnan(value)), max(seen, default=None))


def encode(text: str) -> bytes:
    """Encode as UTF-8; bytes of a file name that are not Unicode become question marks."""
    return text.encode("utf-8", errors="replace")
