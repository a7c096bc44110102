"""Compare the recipe in a header with the present one: the same bake may be written in more than one way.

A file is told by its size and digest, so it may have another path. The changes of LoRAs are summed, so their order
matters only where the recipe says that it does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lorabake.documents.names import Figures
from lorabake.planning import Plan
from lorabake.recipe import Recipe
from lorabake.storage.fields import INPUTS, RECIPE
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.header import Header
from lorabake.tensors.reader import sha256_of
from lorabake.tensors.small import json_or_text
from lorabake.verification.findings import Finding, Status

SIZES = ("size", "sha256", "header_sha256")
"""What a header states of a file that does not depend on where the file lies."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Hold how a header's recipe differs from the present one; `order` has for each LoRA its place in the header."""

    differences: tuple[str, ...]
    order: tuple[int, ...]
    elsewhere: tuple[str, ...] = ()

    @property
    def is_reordered(self) -> bool:
        """Tell whether the header lists the same LoRAs in another order."""
        return self.order != tuple(range(len(self.order)))

    @property
    def note(self) -> str:
        """Say in a sentence that the recipes are one bake."""
        return ", ".join(["the header holds this recipe", *self.told])

    @property
    def told(self) -> list[str]:
        """Say how the recipes differ although they are one bake."""
        told = []
        if self.is_reordered:
            told.append("with the LoRAs in another order, which is the same bake: their changes are summed")
        if self.elsewhere:
            told.append(f"with other paths to the same files ({', '.join(self.elsewhere[:3])})")
        return told


def check_recipe(plan: Plan, baked: Checkpoint) -> Iterator[Finding]:
    """Compare the recipe and the base that a header names with the present ones."""
    if baked.metadata.get(RECIPE) is None:
        note = "no recipe in its metadata: another tool made it, so it is judged by its weights alone"
        yield Finding("structure.metadata", Status.SKIP, baked.path.name, "", "", note)
        return
    compared = compare(plan, baked.metadata)
    wrong = compared.differences
    if wrong:
        note = f"it was baked from another recipe: {'; '.join(wrong[:5])}"
        measured, figures = f"differences: {len(wrong)}", Figures(len(wrong), 0, "differences")
        yield Finding("structure.metadata", Status.FAIL, baked.path.name, measured, "0", note, figures)
    else:
        yield Finding("structure.metadata", Status.PASS, baked.path.name, "", "", compared.note)
    inputs = json_or_text(baked.metadata.get(INPUTS, "{}"))
    if not isinstance(inputs, dict):
        return
    changed = sorted(differences(*_common(_identity(inputs.get("base")), _identity(_planned(plan).get("base")))))
    if changed:
        note = f"the base is not the one that was baked: {'; '.join(changed[:3])}"
        yield Finding("structure.base", Status.FAIL, plan.sources.base.path.name, "", "", note)
    else:
        note = "the base has the size and the header that the bake saw"
        yield Finding("structure.base", Status.PASS, plan.sources.base.path.name, "", "", note)


def compare(plan: Plan, metadata: Mapping[str, str]) -> Compared:
    """Compare the recipe in a header's metadata with a plan's, whatever paths and order they are written in."""
    recipe = plan.sources.recipe
    here: dict[str, Any] = json.loads(recipe.normal_json())
    there = json_or_text(metadata.get(RECIPE, ""))
    order = tuple(range(len(recipe.loras)))
    inputs = json_or_text(metadata.get(INPUTS, "{}"))
    if not isinstance(there, dict) or not isinstance(inputs, dict):
        return Compared(tuple(sorted(differences(there, here))), order)
    files = _Files(plan, inputs)
    loras = there.get("loras")
    if isinstance(loras, list) and len(loras) == len(order):
        order = _order(here["loras"], loras, files) if _is_order_free(recipe) else order
        there = {**there, "loras": [loras[place] for place in order]}
    elsewhere = []
    for role, one, other in _pairs(there, here):
        if not isinstance(one, dict) or (one.get("path"), one.get("sha256")) == (other["path"], other["sha256"]):
            continue
        if files.are_one(role, order[role] if isinstance(role, int) else role):
            if one.get("path") != other["path"]:
                elsewhere.append(f"{one.get('path')} is {other['path']} here")
            one["path"] = other["path"]
            if None in (one.get("sha256"), other["sha256"]):  # whether it is the stated one is asked elsewhere
                one["sha256"] = other["sha256"]
    return Compared(tuple(sorted(differences(there, here))), order, tuple(elsewhere))


def differences(there: object, here: object, place: str = "") -> Iterator[str]:
    """Name the places where two JSON values differ."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in {**there, **here}:
            yield from differences(there.get(key), here.get(key), f"{place}.{key}" if place else str(key))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for number, (one, other) in enumerate(zip(there, here, strict=True)):
            yield from differences(one, other, f"{place}[{number}]")
    elif there != here:
        one, other = (json.dumps(each, ensure_ascii=False) for each in (there, here))
        yield f"{place} is {one} there and {other} here"


def _is_order_free(recipe: Recipe) -> bool:
    """Tell whether the order of the LoRAs changes nothing; what DARE drops of a LoRA depends on its number."""
    return not recipe.is_sequential and not recipe.method.name.startswith("dare")


def _order(here: Sequence[Any], there: Sequence[Any], files: _Files) -> tuple[int, ...]:
    """Find for each LoRA its place in the header's list; the lists' own order where some LoRA has none."""
    left, order = [*range(len(here))], []
    for number, entry in enumerate(here):
        places = sorted(left, key=lambda place, number=number: place != number)  # type: ignore[misc]
        fitting = [place for place in places if _settings(there[place]) == _settings(entry)]
        named = (place for place in fitting if there[place].get("path") == entry["path"])
        same = (place for place in fitting if files.are_one(number, place))
        if (place := next(named, next(same, None))) is None:
            return tuple(range(len(here)))
        left.remove(place)
        order.append(place)
    return tuple(order)


def _settings(entry: object) -> object:
    """Return what a recipe says of a LoRA, but for which file it is."""
    return {**entry, "path": "", "sha256": ""} if isinstance(entry, dict) else None


def _pairs(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[int | str, Any, Any]]:
    """Yield the inputs that both recipes have, each with its role: base, vae, or a LoRA's number."""
    yield "base", there.get("base"), here["base"]
    if isinstance(there.get("loras"), list) and len(there["loras"]) == len(here["loras"]):
        yield from ((number, *pair) for number, pair in enumerate(zip(there["loras"], here["loras"], strict=True)))
    if here["vae"] is not None:
        yield "vae", there.get("vae"), here["vae"]


class _Files:
    """Tell whether an input is the one that a header states, whatever its path."""

    def __init__(self, plan: Plan, stated: Mapping[str, Any]) -> None:
        self.stated = stated
        sources = plan.sources
        self.inputs: dict[int | str, Checkpoint | None] = {"base": sources.base, "vae": sources.vae}
        self.inputs |= {number: lora.checkpoint for number, lora in enumerate(sources.loras)}
        self._sha256 = cache(sha256_of)

    def are_one(self, role: int | str, place: int | str) -> bool:
        """Compare the input of a role with the header's at a place: sizes first, digests where those agree."""
        checkpoint, stated = self.inputs[role], [*_identity(self._at(place)).values()]
        headers = [*checkpoint.headers] if checkpoint else []
        if not stated or [header.size for header in headers] != [file.get("size") for file in stated]:
            return False
        return all(self._has_digest(header, file) for header, file in zip(headers, stated, strict=True))

    def _has_digest(self, header: Header, stated: Mapping[str, Any]) -> bool:
        if "sha256" in stated:
            return bool(self._sha256(header.path) == stated["sha256"])
        return bool(header.sha256 == stated.get("header_sha256"))

    def _at(self, role: int | str) -> object:
        """Return an input of the header's list by its role."""
        if isinstance(role, str):
            return self.stated.get(role)
        loras = self.stated.get("loras")
        return loras[role] if isinstance(loras, list) and role < len(loras) else None


def _planned(plan: Plan) -> Mapping[str, Any]:
    planned: dict[str, Any] = json.loads(plan.files[0].metadata[INPUTS])
    return planned


def _identity(described: object) -> dict[str, dict[str, Any]]:
    """Keep what identifies an input, by the names of its files in a folder; a single file's name is nothing."""
    if not isinstance(described, dict):
        return {}
    listed = described.get("files", [described])
    files = [each for each in listed if isinstance(each, dict) and "size" in each] if isinstance(listed, list) else []
    names = [str(each.get("name")) for each in files]
    names = [""] if len(names) == 1 and names[0] in (described.get("path"), described.get("name")) else names
    return {name: {key: each[key] for key in SIZES if key in each} for name, each in zip(names, files, strict=True)}


def _common(
    there: Mapping[str, Mapping[str, Any]], here: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, object], dict[str, object]]:
    """Keep of two identities what both state of a file: a base with a stated SHA-256 has no digest of its header."""
    kept: list[dict[str, object]] = []
    for one, other in ((there, here), (here, there)):
        both = {
            name: {
                key: file[key] for key in ("size", "header_sha256") if key in file and key in other.get(name, file)
            }
            for name, file in one.items()
        }
        kept.append({name or "the file": facts for name, facts in both.items()})
    return kept[0], kept[1]
