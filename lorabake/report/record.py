"""The report for programs: report.json.

    version       1; it rises when a key changes its meaning or goes away
    verdict       "verified", "mismatch", "not_finished" (a stage broke off) or "not_checked"
    exit_code     the command's
    baked         the file's path
    counts        findings by status: pass, skip, warn, fail; error where a stage broke off
    seconds       by stage
    findings      [{check, status, subject, measured, limit, note}]
    effects       [{lora, component, block, relative}]: ‖ΔW‖/‖W‖
    tensors       [{lora, module, key, what, factor}]: "applied", or why not; the strength found over the one due
    samples       null, or {reference, settings, pictures, texts}
      pictures    [{prompt, seed, likeness: {model: {latents, psnr, ssim}}}], models: base, floor, baked
      texts       [{prompt, texts: {model: text}, logits: {model: [largest difference at each position]}}]
    plan          null, or what `lorabake plan --json` prints
    recipe        {text, normal}: as it was given; reduced to what may change the bytes (null without a plan)
    digests       SHA-256 by name
    failures      [{stage, exit_code, traceback}]: the stages that broke off
    grid          null, or {file, columns, difference_factor}: one row for each entry of samples.pictures

What JSON has no number for is the string "Infinity", "-Infinity" or "NaN": equal pictures have an infinite psnr.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from lorabake.report import grid
from lorabake.report.pictures import gain
from lorabake.report.wording import by_status
from lorabake.verification.findings import Status
from lorabake.visible import visible_json

if TYPE_CHECKING:
    from lorabake.verification.findings import Samples, Verification


def render(verification: Verification) -> bytes:
    """Write the record as indented JSON."""
    return (visible_json(compose(verification)) + "\n").encode()


def compose(verification: Verification) -> dict[str, object]:
    """Return the record as plain values that JSON can hold."""
    plan, samples = verification.plan, verification.samples
    content = {
        "version": 1,
        "verdict": verification.verdict,
        "exit_code": verification.exit_code,
        "baked": str(verification.baked),
        "counts": {
            status: count
            for status, count in by_status(verification.findings).items()
            if count or status is not Status.ERROR
        },
        "seconds": dict(verification.seconds),
        "findings": [asdict(finding) for finding in verification.findings],
        "effects": [asdict(effect) for effect in verification.effects],
        "tensors": [asdict(tensor) for tensor in verification.tensors],
        "samples": samples and _samples(samples),
        "plan": plan and plan.report(),
        "recipe": {"text": verification.recipe, "normal": plan and plan.sources.recipe.normal_form()},
        "digests": dict(verification.digests),
        "failures": [asdict(failure) for failure in verification.failures],
        "grid": _grid(samples) if samples and samples.pictures else None,
    }
    return {key: _plain(value) for key, value in content.items()}


def _samples(samples: Samples) -> dict[str, object]:
    return {
        "reference": samples.reference,
        "settings": dict(samples.settings),
        "pictures": [
            {
                "prompt": sample.prompt,
                "seed": sample.seed,
                "likeness": {model: asdict(likeness) for model, likeness in sample.likeness.items()},
            }
            for sample in samples.pictures
        ],
        "texts": [
            {"prompt": sample.prompt, "texts": dict(sample.texts), "logits": dict(sample.logits)}
            for sample in samples.texts
        ],
    }


def _grid(samples: Samples) -> dict[str, object]:
    return {"file": grid.FILE, "columns": grid.COLUMNS, "difference_factor": gain(samples.pictures)}


def _plain(value: object) -> object:
    match value:
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
    return value
