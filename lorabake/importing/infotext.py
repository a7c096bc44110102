"""Read the text that AUTOMATIC1111, Forge and their like write into a picture: prompt, negative prompt, settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from lorabake.errors import FileError
from lorabake.importing.prompts import calls_in
from lorabake.importing.wanted import Wanted

NEGATIVE = "Negative prompt:"

SETTING = re.compile(r'\s*(?P<key>[A-Za-z][\w /()-]*):\s*(?P<value>"(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


def read_infotext(text: str, name: str, presets: Mapping[str, tuple[float, ...]]) -> Wanted:
    """Return what the text of a picture says; `name` stands for the picture in messages.

    Raise FileError for a text that is no such one, RecipeError for a LoRA in it that no recipe can hold.
    """
    lines = text.strip().splitlines()
    settings = _settings(lines[-1]) if lines else {}
    if "Steps" not in settings:
        raise FileError(
            f"{name}: its text is not what AUTOMATIC1111 and Forge write",
            "Give the prompt itself: --prompt '<lora:style:0.8>'.",
        )
    above = "\n".join(lines[:-1])
    positive, _, negative = above.partition(NEGATIVE)
    prompt, calls = calls_in(positive.strip(), presets)
    digests = dict(_pairs(settings.get("Lora hashes", "")))
    calls = tuple(replace(call, sha256=digests.get(re.sub(r"[:,]", "", call.name), "")) for call in calls)
    return Wanted(
        calls=calls,
        base=settings.get("Model", ""),
        prompt=prompt,
        negative_prompt=" ".join(negative.split()),
        seed=_whole(settings.get("Seed", "")),
        steps=_whole(settings.get("Steps", "")),
        size=_size(settings.get("Size", "")),
        guidance=_number(settings.get("CFG scale", "")),
        notes=tuple(_notes(settings)),
    )


def _settings(line: str) -> dict[str, str]:
    found = {}
    for match in SETTING.finditer(line):
        value = match["value"].strip()
        if value.startswith('"'):
            with suppress(ValueError):
                value = str(json.loads(value))
        found[match["key"].strip()] = value
    return found


def _pairs(text: str) -> list[tuple[str, str]]:
    """Split `style: 0123abcd, knight: 4567`."""
    pairs = (part.rpartition(":") for part in text.split(","))
    return [(name.strip(), digest.strip().lower()) for name, colon, digest in pairs if colon]


def _notes(settings: Mapping[str, str]) -> list[str]:
    """Say what the picture was made with besides."""
    notes = []
    if vae := settings.get("VAE"):
        notes.append(f"The picture was made with the VAE {vae}. To bake it in, write vae: and its path.")
    if "Hires upscale" in settings:
        notes.append("The picture was enlarged (hires fix). verify makes it at its first size.")
    if clip_skip := settings.get("Clip skip"):
        notes.append(f"The picture was made with clip skip {clip_skip}. That is a setting of the program, not baked.")
    return notes


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,20}", text) else None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,4}(?:\.\d{1,6})?", text) else None


def _size(text: str) -> tuple[int, int] | None:
    match = SIZE.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None
