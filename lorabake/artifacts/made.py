"""Read what a baked output says of itself: from its headers and files alone, so that it also works where it was sent.

Everything here may have been written by anybody. Texts stay as they are: whoever shows them makes them safe.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lorabake.configs import shipped
from lorabake.errors import FileError, MatchError
from lorabake.keymap.expansion import KeyMap
from lorabake.planning.provenance import DEVICE
from lorabake.remote import address_of
from lorabake.remote.schemes.hub import HubAddress
from lorabake.sources.family import GENERIC, identify
from lorabake.storage.fields import RECIPE
from lorabake.storage.recognition import find_packing
from lorabake.storage.statements import read_beside
from lorabake.tensors.checkpoint import Checkpoint, open_checkpoint, optional_object
from lorabake.tensors.small import json_or_text
from lorabake.visible import short_repr

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""The form of a model's name on the Hugging Face hub."""

_PHRASES = "lorabake.trigger_phrases"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Ingredient:
    """Name an input: its role, its path as the recipe has it, and how strongly it counts.

    A role is base, LoRA, VAE, or the name of the part that an input adds.

    `digests` are those of its files by name, as far as the output's header states them; `header` is that of its
    header alone, where it is one file. `hub_id` is empty where nothing says that the input comes from the hub.
    """

    __repr__ = short_repr

    role: str
    path: str
    strength: str
    hub_id: str
    digests: Mapping[str, str]
    header: str


@dataclass(frozen=True, slots=True)
class Made:
    """Hold what an output says of itself.

    `family` and `family_name` are the title and the name of its model family, empty where no table knows it. `task`
    is what its models do. `components` are the networks that it has, by the layout of their names. `pipeline` is the
    class that loads it, of diffusers or of transformers.
    """

    __repr__ = short_repr

    checkpoint: Checkpoint
    title: str
    family: str
    family_name: str
    task: str
    recipe: Mapping[str, Any]
    ingredients: tuple[Ingredient, ...]
    components: Mapping[str, str]
    pipeline: str
    dtypes: Mapping[str, int]

    @property
    def said(self) -> Mapping[str, str]:
        """Return the metadata of the first file."""
        return self.checkpoint.metadata

    @property
    def name(self) -> str:
        """Return the output's name without a suffix."""
        path = self.checkpoint.path
        return path.name if self.checkpoint.is_folder else path.stem

    @property
    def version(self) -> str:
        """Return the version of lorabake that made it."""
        return self.said.get("lorabake.version", "")

    @property
    def device(self) -> str:
        """Return the class of device that computed it; empty where it does not say."""
        return self.said.get(DEVICE, "").strip()

    @property
    def phrases(self) -> tuple[tuple[str, str], ...]:
        """Return the trigger phrases, each with the LoRA that states it."""
        pairs = json_or_text(self.said.get(_PHRASES, "[]"))
        return tuple(
            (str(pair[0]), str(pair[1]))
            for pair in (pairs if isinstance(pairs, list) else ())
            if isinstance(pair, list) and len(pair) == 2
        )

    @property
    def license(self) -> str:
        """Return what it says of licences."""
        return self.said.get("modelspec.license", "") if self.is_identified else ""

    @property
    def is_identified(self) -> bool:
        """Tell whether its descriptive fields are its own, and not the base's."""
        return "modelspec.merged_from" in self.said

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """List the inputs that come from the hub, each once."""
        return tuple(dict.fromkeys(each.hub_id for each in self.ingredients if each.hub_id))


def read_made(path: Path) -> Made:
    """Read an output's headers; raise FileError for what lorabake did not bake, and for damaged files."""
    checkpoint = open_checkpoint(path)
    said = checkpoint.metadata
    recipe, inputs = (json_or_text(said.get(f"lorabake.{name}", "")) for name in ("recipe", "inputs"))
    if not isinstance(recipe, dict) or RECIPE not in said:
        raise FileError(
            f"{path}: holds no recipe, so lorabake did not bake it",
            "Give a checkpoint that lorabake baked: a card tells how it was made.",
        )
    key_map = _key_map(checkpoint)
    known = key_map is not None and key_map.architecture.name != GENERIC
    family = key_map.architecture if key_map is not None and known else None
    pipeline = _pipeline(checkpoint, family.name if family else "")
    stem = path.name if checkpoint.is_folder else path.stem
    title = said.get("modelspec.title", "").strip() if "modelspec.merged_from" in said else ""
    return Made(
        checkpoint=checkpoint,
        title=title or stem,
        family=family.title if family else "",
        family_name=family.name if family else "",
        task=_task(family.task if family else "", pipeline, said),
        recipe=recipe,
        ingredients=tuple(_ingredients(recipe, inputs if isinstance(inputs, dict) else {})),
        components={name: layout.name for name, (layout, _) in key_map.placed.items()} if key_map and known else {},
        pipeline=pipeline,
        dtypes=dict(Counter(info.dtype for info in checkpoint.tensors.values()).most_common()),
    )


def _key_map(checkpoint: Checkpoint) -> KeyMap | None:
    tensors = find_packing(checkpoint, read_beside(checkpoint)).logical(checkpoint.tensors)
    try:
        return KeyMap.expand(identify(tensors), tensors)
    except MatchError:  # its tensors fit two families
        return None


def _pipeline(checkpoint: Checkpoint, family: str) -> str:
    """Name the class that loads the output: the folder's own word, or that of the family's shipped configuration."""
    if checkpoint.is_folder:
        index = optional_object(checkpoint.path / "model_index.json")
        if index is not None:
            return _class(index.get("_class_name"))
        config = optional_object(checkpoint.path / "config.json") or {}
        classes = config.get("architectures")
        return _class(classes[0]) if isinstance(classes, list) and classes else ""
    place = shipped().joinpath(family or "-", "model_index.json")
    return _class(json.loads(place.read_text(encoding="utf-8")).get("_class_name")) if place.is_file() else ""


def _class(name: object) -> str:
    return name if isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w{0,99}", name, re.ASCII) else ""


def _task(task: str, pipeline: str, said: Mapping[str, str]) -> str:
    """Correct a family's task by what an output says: some models of a family begin with a picture."""
    names = f"{pipeline} {said.get('modelspec.architecture', '')}".lower()
    if task == "text-to-video" and ("image2video" in names or "imagetovideo" in names):
        return "image-to-video"
    if not task and pipeline.endswith("ForCausalLM"):
        return "text-generation"
    return task


# -- inputs ----------------------------------------------------------------------------------------------


def _ingredients(recipe: Mapping[str, Any], inputs: Mapping[str, Any]) -> Iterator[Ingredient]:
    entries = [("base", recipe.get("base"), inputs.get("base"))]
    loras, said = _list(recipe.get("loras")), _list(inputs.get("loras"))
    entries += [("LoRA", lora, said[number] if number < len(said) else None) for number, lora in enumerate(loras)]
    entries += [("VAE", recipe.get("vae"), inputs.get("vae"))]
    output, of_parts = recipe.get("output"), inputs.get("parts")
    added = output.get("parts") if isinstance(output, dict) else None
    for name, entry in added.items() if isinstance(added, dict) else ():
        described = of_parts.get(name) if isinstance(of_parts, dict) else None
        entries.append((str(name), {"path": entry} if isinstance(entry, str) else entry, described))
    for role, entry, described in entries:
        if isinstance(entry, dict):
            path = str(entry.get("path", ""))
            digests = dict(_digests(described))
            stated = entry.get("sha256")
            if not digests and isinstance(stated, str):
                digests = {PurePosixPath(path).name: stated}
            header = described.get("header_sha256") if isinstance(described, dict) else None
            known = header if isinstance(header, str) and _HASH.fullmatch(header) else ""
            yield Ingredient(role, path, _strength(entry.get("strength")), hub_id(path), digests, known)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _digests(described: object) -> Iterator[tuple[str, str]]:
    """Yield the SHA-256 of an input's whole files, by name."""
    files = described.get("files", [described]) if isinstance(described, dict) else []
    for file in files if isinstance(files, list) else []:
        sha256 = file.get("sha256") if isinstance(file, dict) else None
        if isinstance(sha256, str) and _HASH.fullmatch(sha256):
            yield str(file.get("name", "")), sha256


def _strength(said: object) -> str:
    match said:
        case bool():
            return ""
        case int() | float():
            return f"{said:g}"
        case dict():
            return ", ".join(f"{name} {value:g}" for name, value in said.items() if isinstance(value, int | float))
    return ""


def hub_id(path: str) -> str:
    """Return the hub's name of the model that an address is of; empty for a path of another sort."""
    address = address_of(path)
    name = address.repo if isinstance(address, HubAddress) else ""
    is_name = HUB_ID.fullmatch(name) and "--" not in name and ".." not in name
    return name if is_name and not name.endswith((".", "-", ".git")) else ""
