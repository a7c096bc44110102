"""Sum a verification up for people in Python: in one line, and as a card for a notebook."""

from __future__ import annotations

from collections import Counter

from lorabake.verification.findings import Finding, Status, Verification
from lorabake.visible import at_a_glance


def line_of(verification: Verification) -> str:
    """Say the verdict and what it rests on: Verified 'out.safetensors': 14 pass, 1 warn."""
    return f"{verification.verdict.word} {at_a_glance(verification.baked.name)}: {_counts(verification)}"


def card_of(verification: Verification) -> str:
    """Show a verification as HTML: the verdict, what is wrong, and all other checks folded."""
    from lorabake.notebook import Table, card

    heads = ("status", "check", "subject", "measured", "limit", "note")
    ranked = sorted(verification.findings, key=lambda finding: -finding.status.severity)
    loud = [finding for finding in ranked if finding.status is not Status.PASS]
    tables = [
        Table(caption, heads, [_cells(finding) for finding in findings], is_folded)
        for caption, findings, is_folded in (
            ("What is not as it should be, and what was not checked", loud, False),
            (f"{len(ranked) - len(loud)} checks passed", ranked[len(loud) :], True),
        )
    ]
    return card(verification.verdict.word, f"{verification.baked.name}: {_counts(verification)}", tables)


def _counts(verification: Verification) -> str:
    counts = Counter(finding.status for finding in verification.findings)
    return ", ".join(f"{counts[status]} {status}" for status in Status if counts[status]) or "no checks"


def _cells(finding: Finding) -> tuple[str, ...]:
    return (finding.status, finding.check, finding.subject, finding.measured, finding.limit, finding.note)
