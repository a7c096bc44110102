"""The report for the test tabs of GitHub, GitLab and Jenkins: junit.xml.

Each stage that ran is a suite, and each finding a case. The format has no warnings, so a warning is a passed case
with a text. Some readers show a failure's message, others its text, so both say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from lorabake.report.wording import by_stage, by_status, encode, sentence
from lorabake.verification.findings import Finding, Status
from lorabake.visible import visible

if TYPE_CHECKING:
    from lorabake.batch import Outcome
    from lorabake.verification.findings import Verification
    from lorabake.verification.many import VerifiedBatch


def render(verification: Verification) -> bytes:
    """Write one XML document."""
    root = _element("testsuites", {"name": "lorabake verify", **_totals(verification.findings)})
    root.set("time", f"{sum(verification.seconds.values()):.3f}")
    for stage, findings in by_stage(verification).items():
        if findings:
            suite = _element("testsuite", {"name": stage, **_totals(findings)}, inside=root)
            suite.set("time", f"{verification.seconds.get(stage, 0):.3f}")
            for finding in findings:
                _add_case(suite, finding)
    return _document(root)


def _add_case(suite: ElementTree.Element, finding: Finding) -> None:
    names = {"classname": f"lorabake.{finding.check}", "name": finding.subject or finding.check, "time": "0"}
    case = _element("testcase", names, inside=suite)
    said = sentence(finding)
    match finding.status:
        case Status.FAIL:
            _element("failure", {"message": said, "type": finding.check}, said, inside=case)
        case Status.ERROR:
            _element("error", {"message": said, "type": finding.check}, said, inside=case)
        case Status.SKIP:
            _element("skipped", {"message": said}, inside=case)
        case Status.WARN:
            _element("system-out", {}, f"warning: {said}", inside=case)


def render_all(batch: VerifiedBatch) -> bytes:
    """Write what verifying several outputs brought: a suite for each, and its findings as cases.

    An output that could not be looked at has one case, an error.
    """
    findings = [finding for output in batch.outputs for finding in output.findings]
    missing = sum(output.error is not None for output in batch.outputs)
    totals = _totals(findings)
    totals |= {name: str(int(totals[name]) + missing) for name in ("tests", "errors")}
    root = _element("testsuites", {"name": "lorabake verify", **totals, "time": f"{batch.seconds:.3f}"})
    for output in batch.outputs:
        own = _totals(output.findings)
        if output.error is not None:
            own |= {name: str(int(own[name]) + 1) for name in ("tests", "errors")}
        seconds = f"{sum(output.seconds.values()):.3f}"
        suite = _element("testsuite", {"name": output.name, **own, "time": seconds}, inside=root)
        for finding in output.findings:
            _add_case(suite, finding)
        if output.error is not None:
            case = _element(
                "testcase", {"classname": "lorabake.verify", "name": output.name, "time": "0"}, inside=suite
            )
            told = {"message": output.error.lines[0], "type": type(output.error).__name__}
            _element("error", told, "; ".join(output.error.lines), inside=case)
    return _document(root)


def render_batch(outcomes: Sequence[Outcome]) -> bytes:
    """Write what became of the recipes of a batch: a case for each."""
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    left = sum(outcome.status == "left" for outcome in outcomes)
    totals = {"tests": str(len(outcomes)), "failures": str(failed), "errors": "0", "skipped": str(left)}
    root = _element("testsuites", {"name": "lorabake batch", **totals})
    suite = _element("testsuite", {"name": "batch", **totals}, inside=root)
    for outcome in outcomes:
        seconds = outcome.result.seconds if outcome.result else 0
        names = {"classname": "lorabake.batch", "name": outcome.name, "time": f"{seconds:.3f}"}
        case = _element("testcase", names, inside=suite)
        if outcome.error is not None:
            said = "; ".join(outcome.error.lines)
            failure = {"message": outcome.error.lines[0], "type": type(outcome.error).__name__}
            _element("failure", failure, said, inside=case)
        elif outcome.status == "left":
            _element("skipped", {"message": "not begun: another recipe had failed"}, inside=case)
    return _document(root)


def _document(root: ElementTree.Element) -> bytes:
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return encode(f"<?xml version='1.0' encoding='utf-8'?>\n{text}\n")


def _totals(findings: Iterable[Finding]) -> dict[str, str]:
    counts = by_status(findings)
    totals = {"tests": sum(counts.values()), "failures": counts[Status.FAIL], "errors": counts[Status.ERROR]}
    return {name: str(count) for name, count in (totals | {"skipped": counts[Status.SKIP]}).items()}


def _element(
    name: str, attributes: Mapping[str, str], text: str | None = None, *, inside: ElementTree.Element | None = None
) -> ElementTree.Element:
    clean = {key: visible(value) for key, value in attributes.items()}
    made = ElementTree.Element(name, clean) if inside is None else ElementTree.SubElement(inside, name, clean)
    made.text = text and visible(text)
    return made
