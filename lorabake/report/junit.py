"""The report for the test tabs of GitHub, GitLab and Jenkins: junit.xml.

Each stage that ran is a suite, and each finding a case. The format has no warnings, so a warning is a passed case
with a text. Some readers show a failure's message, others its text, so both say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from lorabake.report.wording import by_stage, by_status, encode, sentence
from lorabake.verification.findings import Finding, Status
from lorabake.visible import visible

if TYPE_CHECKING:
    from lorabake.verification.findings import Verification


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
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return encode(f"<?xml version='1.0' encoding='utf-8'?>\n{text}\n")


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
