"""Open what the recipe adds to a single file that becomes a folder: networks, tokenizers and the like.

A network's tensors join the base's, under keys that the family's table knows. So LoRAs go onto it, and it is written
and verified as if the file had held it from the start. What has no weights is copied as it lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lorabake.configs import Told, family_config
from lorabake.configs.folder import INDEX
from lorabake.configs.sizes import SizeUnknownError
from lorabake.errors import FileError, RecipeError
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.table import Component, Layout
from lorabake.recipe import Recipe, Source
from lorabake.sources.evidence import SideFile
from lorabake.sources.finding import find
from lorabake.tensors.checkpoint import Checkpoint, Part, open_checkpoint
from lorabake.tensors.emptiness import check_checkpoint
from lorabake.tensors.header import Described, TensorInfo
from lorabake.tensors.links import listed
from lorabake.tensors.reader import is_folder
from lorabake.tensors.small import MAX_INDEX, content_of
from lorabake.visible import short_repr


@dataclass(frozen=True, slots=True)
class PartSource:
    """Hold one part that is added: its name in the pipeline, its entry in the recipe, and what was found there.

    `checkpoint` has no tensors where the part is no network. `beside` are its other files, which are copied.
    """

    __repr__ = short_repr

    name: str
    entry: Source
    checkpoint: Checkpoint
    beside: tuple[SideFile, ...]

    @property
    def copied(self) -> Iterator[tuple[str, Path]]:
        """Yield the files that are copied: the path below the output, and where it lies now."""
        return ((f"{self.name}/{side.name}", self.checkpoint.path / side.name) for side in self.beside)


def open_parts(recipe: Recipe, base: Checkpoint, key_map: KeyMap) -> tuple[PartSource, ...]:
    """Open the parts that a recipe adds to a base, in the order of their names.

    Raise RecipeError for a part that the pipeline does not have, or that the base has itself; FileError for one that
    cannot be read.
    """
    wanted = recipe.output.parts
    if not wanted:
        return ()
    if base.is_folder:
        raise RecipeError(
            "output.parts adds to a single file what a folder has more, and the base is a folder",
            "Put the parts into the base's folder.",
        )
    known = _known(key_map)
    for name in sorted(wanted):
        if name in key_map.placed:
            more = " For another one, write it as vae." if name == "vae" else ""
            raise RecipeError(f"output.parts names the {name}, and the base has it itself", f"Remove it.{more}")
        if name not in known:
            raise RecipeError(
                f"output.parts names {name!r}, which {key_map.architecture.title} does not have",
                f"It has: {', '.join(known)}",
            )
    return tuple(_opened(recipe, name, wanted[name]) for name in sorted(wanted))


def joined(base: Checkpoint, parts: tuple[PartSource, ...], key_map: KeyMap) -> Checkpoint:
    """Return the base with the tensors of the networks that are added; raise FileError for one that does not fit."""
    tensors = dict(base.tensors)
    more = []
    for part in parts:
        if not part.checkpoint.tensors:
            continue
        layout, prefix = _fitting(part, key_map.component(part.name))
        home = f"{part.name}/" if f"{part.name}/" in layout.prefixes else layout.prefix(alone=False)
        files = []
        for header in part.checkpoint.headers:
            own = dict(_renamed(header.tensors, prefix, home))
            tensors |= own
            files.append(replace(header, tensors=own))
        more.append(Part(part.name, None, tuple(files)))
    return replace(base, parts=(*base.parts, *more), tensors=tensors) if more else base


def _known(key_map: KeyMap) -> list[str]:
    """List what a family's pipeline is made of, by its configurations and its tables."""
    try:
        index = family_config(Told.by(key_map), "", INDEX) or {}
    except SizeUnknownError:
        index = {}
    named = [name for name, said in index.items() if isinstance(said, list) and name != "scheduler"]
    return sorted({*named, *(component.name for component in key_map.architecture.components)} - {*key_map.placed})


def _opened(recipe: Recipe, name: str, entry: Source) -> PartSource:
    path = find(recipe, entry)
    folder = is_folder(path)
    if folder and entry.sha256:
        raise FileError(f"{path}: sha256 is for a file, and {name} is a folder")
    if _is_network(name):
        checkpoint = open_checkpoint(path)
        check_checkpoint(checkpoint.path, checkpoint.tensors)
        beside = tuple(filter(_is_config, checkpoint.side_files)) if folder else ()
    elif folder:
        files = (each for each in listed(path) if not is_folder(each) and not each.name.startswith("."))
        beside = tuple(Path(each.name) for each in files)
        if not beside:
            raise FileError(f"{path}: is empty, and output.parts takes the {name} from it")
        checkpoint = Checkpoint(path, True, (), {}, beside)
    else:
        raise FileError(
            f"{path}: is a file, and the {name} is a folder of files",
            f"Give the folder {name} of a diffusers folder.",
        )
    sides = tuple(SideFile(each.name, _sha256(path / each)) for each in sorted(beside))
    return PartSource(name, entry, checkpoint, sides)


def _is_network(name: str) -> bool:
    """Tell whether a part of a pipeline has weights, by its name."""
    return not name.startswith(("tokenizer", "feature_extractor", "image_processor", "processor", "scheduler"))


def _is_config(path: Path) -> bool:
    """Tell whether a file beside a network's weights says how it is built."""
    return len(path.parts) == 1 and path.suffix == ".json" and not path.name.endswith(".index.json")


def _sha256(path: Path) -> str:
    return hashlib.sha256(content_of(path, MAX_INDEX)).hexdigest()


def _fitting(part: PartSource, component: Component) -> tuple[Layout, str]:
    """Find the layout of a part's tensors, and the prefix that they have in its file."""
    tensors: Mapping[str, Described] = part.checkpoint.tensors
    for layout in component.layouts:
        for prefix in (*filter(None, layout.prefixes), ""):
            there = any(key.startswith(prefix) for key in tensors)
            if there and all(need.holds(tensors, prefix) for need in layout.needs):
                return layout, prefix
    raise FileError(
        f"{part.checkpoint.path}: is no {part.name} that the family's table knows",
        f"Give the file or the folder of a {part.name} of the same family.",
    )


def _renamed(tensors: Mapping[str, TensorInfo], prefix: str, home: str) -> Iterator[tuple[str, TensorInfo]]:
    for name, info in tensors.items():
        if name.startswith(prefix):
            key = home + name.removeprefix(prefix)
            yield key, replace(info, key=key)
