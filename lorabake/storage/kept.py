"""What stays true of statements where weights become plain: in headers, in indexes, and in files beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lorabake.codecs.codec import Says
from lorabake.errors import TargetError
from lorabake.storage.options import METHODS
from lorabake.storage.statements import (
    FILES,
    LAYERS,
    LOOSE,
    MODEL_KEYS,
    Beside,
    Texts,
    as_json,
    files_of,
    holders,
    meant,
    modules_of,
    named,
    of_header,
    of_index,
    statements_in,
)
from lorabake.tensors.checkpoint import Part
from lorabake.tensors.header import Header


@dataclass(frozen=True, slots=True)
class Change:
    """Say which layers of a component become plain, by their paths in it, and whether others stay stored."""

    plain: tuple[str, ...]
    is_partial: bool


def said_of_layers(texts: Iterable[str], plain: Iterable[str], modules: Mapping[str, list[str]]) -> str | None:
    """Join what the headers of several files say of layers, but for those that become plain; None if nothing is left.

    `modules` are all of the component, by `modules_of`. One text of which nothing goes stays as it is, byte for byte.
    """
    texts, gone = list(texts), {*plain}
    said: dict[str, object] = {}
    layers: dict[str, object] = {}
    for text in texts:
        each = json.loads(text)
        said |= each
        layers |= {name: says for name, says in each["layers"].items() if gone.isdisjoint(meant(name, modules))}
    is_whole = all(layers.keys() >= json.loads(text)["layers"].keys() for text in texts)
    if len({*texts}) == 1 and is_whole:
        return texts[0]
    return json.dumps(said | {"layers": layers}) if layers else None


def said_in_header(header: Header, change: Change) -> dict[str, str | None]:
    """Return what becomes of a header's statements about a whole model: new texts, None for what goes."""
    return _said_in(of_header(header), change)


def said_in_index(part: Part, change: Change) -> dict[str, str]:
    """Return what stays true of the statements in the index of a component's shards, each as text."""
    found: dict[str, str] = {}
    for texts in of_index(part):
        said = _said_in(texts, change)
        names = {LAYERS, *(name for name, _ in holders(texts))} & texts.entries.keys()
        found = {name: kept for name in sorted(names) if (kept := said.get(name, texts.entries[name])) is not None}
        if LAYERS in found:
            layers = said_of_layers([found.pop(LAYERS)], change.plain, modules_of(part))
            found |= {LAYERS: layers} if layers else {}
    return found


def index_form(part: Part, said: Mapping[str, str]) -> dict[str, object]:
    """Return what is said as the index of a component's shards has it: as text, or as JSON where it was none."""
    before = part.index_metadata
    return {name: text if isinstance(before.get(name, ""), str) else as_json(text) for name, text in said.items()}


def _said_in(texts: Texts, change: Change) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, said in holders(texts) if change.plain else ():
        kept = _true(said, change, texts.place)
        if kept != said:
            left = kept.get(name) if name in (*MODEL_KEYS, *LOOSE) else kept
            found[name] = json.dumps(left) if left is not None else None
    return found


def said_in_files(beside: Beside, folder: str, change: Change) -> dict[str, dict[str, object] | None]:
    """Return what becomes of the files beside a component's weights: new objects, None for files that go."""
    found: dict[str, dict[str, object] | None] = {}
    for place, name in files_of(beside, folder) if change.plain else ():
        said, way = beside[place], FILES[name]
        if way and not change.is_partial:
            found[place] = None
        elif way == "quanto":
            found[place] = {layer: says for layer, says in said.items() if layer not in change.plain}
        elif way and not any(key in said for key in MODEL_KEYS):
            found[place] = _listed(said, named(said, way), change, place)
        elif (kept := _true(said, change, place)) != said:
            found[place] = kept
    return found


def _true(said: Says, change: Change, place: str) -> dict[str, object]:
    """Take the statements out of a JSON object, or name in them what becomes plain where other weights do not."""
    kept: dict[str, object] = {}
    for key, value in said.items():
        if key in LOOSE or statements_in(key, value):
            if change.is_partial or not value:
                kept[key] = value if key in LOOSE else _renewed(key, value, change, place)
        else:
            kept[key] = _below(value, change, place)
    return kept


def _below(value: object, change: Change, place: str) -> object:
    if isinstance(value, list):
        return [_below(each, change, place) for each in value]
    return _true(value, change, place) if isinstance(value, dict) else value


def _renewed(key: str, value: object, change: Change, place: str) -> object:
    """Name what becomes plain in an entry's statements, in whichever form it holds them."""
    if isinstance(value, list):
        return [_renewed(key, each, change, place) if statements_in(key, each) else each for each in value]
    if isinstance(value, str) and (said := as_json(value)) is not None:
        return json.dumps(_renewed(key, said, change, place))
    (says,) = statements_in(key, value)
    return _listed(says, named(says, FILES.get(place.rpartition("/")[2], "")), change, place)


def _listed(said: Says, named: Says, change: Change, place: str) -> dict[str, object]:
    """Add the layers that become plain to the list that a statement has of such."""
    way = str(named["quant_method"])
    option = METHODS[way].plain if way in METHODS else ""
    aliases = ("ignored_layers", "exclude_modules")
    option = next((name for name in (option, *aliases) if name and name in said), option)
    if not option:
        title = METHODS[way].title if way in METHODS else way
        raise TargetError(
            f"{place}: {len(change.plain)} weights would become plain ({change.plain[0]} …), and others cannot be "
            f"decoded",
            f"{title} has no list of plain ones, so that no program could tell them apart. Leave out "
            "output.dtype, or use a base that is stored in one way.",
        )
    before = said.get(option)
    names = [str(each) for each in before] if isinstance(before, list) else []
    return {**said, option: names + [name for name in change.plain if name not in names]}


def is_under(key: str, marker: str) -> bool:
    """Tell whether a marker such as `model.diffusion_model.scaled_fp8` speaks of a tensor."""
    return key.startswith(re.sub(r"[^./]*\Z", "", marker))
