"""The report for people: one HTML page that carries its style, script and pictures in itself.

The page's policy allows the one style sheet and the one script, by digest, and pictures inside the page: nothing
that a prompt or a file name holds can run, and the page loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lorabake.report import plots
from lorabake.report.pictures import amplified, data_uri, distance, gain
from lorabake.report.wording import (
    MODELS,
    by_stage,
    by_status,
    encode,
    figure,
    largest,
    meaning_of,
    sentence,
    setting,
    tally,
)
from lorabake.verification.findings import Effect, Finding, Status
from lorabake.visible import counted, visible

if TYPE_CHECKING:
    from lorabake.verification.findings import Pixels, Samples, Verification

COMPARED = {"floor": "floor", "baked": "baked", "base": "ceiling"}
"""Models that are compared with the run-time model, from the floor to the ceiling, as tables name them."""

MOST_WITHOUT_INDEX = 6
"""More prompts than this are listed before their pictures or texts."""

SHARP = 256
"""Pictures narrower than this are enlarged with square pixels."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Hold one picture as the page shows it: `model` of the sampled ones, or "difference"."""

    model: str
    caption: str
    alt: str
    source: str
    size: tuple[int, int]

    @property
    def is_small(self) -> bool:
        """Tell whether single pixels should be visible."""
        return self.size[0] < SHARP


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one prompt's pictures."""

    prompt: str
    seed: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """Hold the findings of one check; the `passed` ones are kept apart, because the page folds them away."""

    name: str
    counts: dict[Status, int]
    loud: tuple[Finding, ...]
    passed: tuple[Finding, ...]


def render(verification: Verification, overview: str = "") -> bytes:
    """Fill the page; `overview` is the address of the page on all outputs that this one is of, if there is one."""
    samples = verification.samples
    return filled(
        "page.html.j2",
        ("style.css",),
        overview=overview,
        verification=verification,
        plan=verification.plan and verification.plan.report(),
        ledgers=verification.plan.ledgers if verification.plan else (),
        meaning=meaning_of(verification),
        counts=by_status(verification.findings),
        stages=by_stage(verification),
        loud=[
            [finding for finding in verification.findings if finding.status is status]
            for status in (Status.FAIL, Status.ERROR, Status.WARN)
        ],
        rows=list(_rows(samples)) if samples else [],
        sweep=list(_sweep(samples)) if samples else [],
        gain=gain(samples.pictures) if samples else 1,
        effects=_by_component(verification.effects),
        found=_found(verification),
        checks=list(_checks(verification.findings)),
    )


def filled(template: str, styles: Iterable[str], **values: object) -> bytes:
    """Fill a template of this folder, with its style sheets, the script, and the policy that allows just these."""
    loader = PackageLoader("lorabake.report", "page")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {
        "figure": figure,
        "sentence": sentence,
        "setting": setting,
        "tally": tally,
        "counted": counted,
        "lines": _lines,
    }
    environment.globals |= {
        "MODELS": MODELS,
        "COMPARED": COMPARED,
        "MOST_WITHOUT_INDEX": MOST_WITHOUT_INDEX,
        "plots": plots,
        "split": _split,
        "largest": largest,
    }
    style = Markup("").join(Markup(loader.get_source(environment, name)[0]) for name in styles)
    script = Markup(loader.get_source(environment, "script.js")[0])
    page = environment.get_template(template).render(
        style=style,
        script=script,
        policy="default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'",
        **values,
    )
    return encode(page)


def _shown(value: object) -> object:
    """Make every character visible in a text that the page shows; leave the template's own parts as they are."""
    return value if isinstance(value, (Markup, int, float)) else visible(str(value))


def _lines(text: str) -> Markup:
    """Show a text of several lines and keep its line breaks."""
    return Markup("\n").join(map(visible, re.split("\r?\n", text)))


def _digest(text: str) -> str:
    """Name a text as a content security policy does (CSP level 3, section 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _split(text: str, reference: str) -> tuple[str, str]:
    """Split a text at the first character where it differs from another one."""
    pairs = enumerate(zip(text, reference, strict=False))
    shared = next((at for at, (one, other) in pairs if one != other), min(len(text), len(reference)))
    return text[:shared], text[shared:]


# -- pictures ------------------------------------------------------------------------------------------


def _rows(samples: Samples) -> Iterator[Row]:
    factor = gain(samples.pictures)
    for sample in samples.pictures:
        pictures = [
            _picture(model, MODELS[model], f"{MODELS[model]}: {sample.prompt}", sample.pictures[model])
            for model in MODELS
            if model in sample.pictures
        ]
        most = int(distance(sample.pictures["baked"], sample.pictures["runtime"]).max())
        caption = f"difference ×{factor}" if most else "no difference"
        alt = f"baked minus run time, amplified {factor} times; the largest difference is {most} of 255"
        pictures.append(_picture("difference", caption, alt, amplified(sample, factor)))
        yield Row(sample.prompt, sample.seed, tuple(pictures))


def _sweep(samples: Samples) -> Iterator[Row]:
    for sample in samples.sweep:
        pictures = (
            _picture("runtime", f"×{strength:g}", f"all strengths times {strength:g}: {sample.prompt}", pixels)
            for strength, pixels in zip(sample.strengths, sample.pictures, strict=True)
        )
        yield Row(sample.prompt, sample.seed, tuple(pictures))


def _picture(model: str, caption: str, alt: str, pixels: Pixels) -> Picture:
    height, width, _ = pixels.shape
    return Picture(model, caption, alt, data_uri(pixels), (width, height))


# -- tables --------------------------------------------------------------------------------------------


def _checks(findings: Iterable[Finding]) -> Iterator[Check]:
    """Group findings by check, in the order in which they were found."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.check, []).append(finding)
    for name, group in groups.items():
        group.sort(key=lambda finding: -finding.status.severity)
        loud = tuple(finding for finding in group if finding.status is not Status.PASS)
        yield Check(name, by_status(group), loud, tuple(group[len(loud) :]))


def _by_component(effects: Iterable[Effect]) -> dict[str, list[Effect]]:
    groups: dict[str, list[Effect]] = {}
    for effect in effects:
        groups.setdefault(effect.component, []).append(effect)
    return groups


def _found(verification: Verification) -> dict[str, Counter[str]]:
    """Count by LoRA what was found in the tensors that it should have changed."""
    counts: dict[str, Counter[str]] = {}
    for tensor in verification.tensors:
        counts.setdefault(tensor.lora, Counter())[tensor.what] += 1
    return counts
