"""Read the report of a verification, for the card of the output that it is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabake.errors import FileError
from lorabake.settings import VERIFY_AND_REPORT
from lorabake.tensors.checkpoint import Checkpoint, read_object
from lorabake.tensors.reader import is_there
from lorabake.tensors.small import MAX_INDEX
from lorabake.visible import short_repr

REPORT = "report.json"
GRID = "grid.png"

MOST_OF_A_PICTURE = 1 << 25
"""Bytes beyond which a picture is not put beside a card."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Hold what a report says: the verdict, what became of each LoRA, and the prompts of its pictures."""

    __repr__ = short_repr

    verdict: str
    stages: tuple[str, ...]
    date: str
    loras: tuple[Mapping[str, Any], ...]
    prompts: tuple[str, ...]
    picture: bytes


def read_proof(folder: Path, checkpoint: Checkpoint, digests: Mapping[str, str]) -> Proof:
    """Read a report; `digests` are the SHA-256 of the output's files with weights, by their names.

    Raise FileError for a folder without a report, and for a report about another output.
    """
    place = folder / REPORT
    if not is_there(place):
        raise FileError(f"{folder}: has no {REPORT}, so it is no report", f"Write one: {VERIFY_AND_REPORT}")
    report = read_object(place, MAX_INDEX)
    if report.get("lorabake") != "verify":
        raise FileError(f"{place}: is no report of `lorabake verify`")
    _check_same(place, report, checkpoint, digests)
    samples = _dict(report.get("samples"))
    picture = _picture(folder / GRID) if report.get("grid") is not None else b""
    return Proof(
        verdict=str(report.get("verdict", "")),
        stages=tuple(str(stage.get("stage", "")) for stage in _dicts(report.get("stages"))),
        date=str(_dict(report.get("environment")).get("date") or ""),
        loras=tuple(_dicts(_dict(report.get("plan")).get("loras"))),
        prompts=tuple(str(each.get("prompt", "")) for each in _dicts(samples.get("pictures"))) if picture else (),
        picture=picture,
    )


def _check_same(place: Path, report: Mapping[str, Any], checkpoint: Checkpoint, digests: Mapping[str, str]) -> None:
    output = _dict(_dict(report.get("environment")).get("output"))
    said = {str(each.get("sha256", "")) for each in _dicts(output.get("digests"))}
    headers = {header.sha256 for header in checkpoint.headers}
    if said != ({*digests.values()} if output.get("of") == "files" else headers):
        raise FileError(
            f"{place}: is about another file than {checkpoint.path}: its digests are others",
            "Verify this one, and write a new report.",
        )


def _picture(place: Path) -> bytes:
    if not place.is_file():
        raise FileError(f"{place}: the report's picture is not there")
    if place.stat().st_size > MOST_OF_A_PICTURE:
        raise FileError(f"{place}: is larger than {MOST_OF_A_PICTURE} bytes, so it does not go beside a card")
    content = place.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise FileError(f"{place}: is no PNG")
    return content


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> Iterable[dict[str, Any]]:
    return (each for each in value if isinstance(each, dict)) if isinstance(value, list) else ()
