"""List the files that a bake reads and writes, under names that hold on any machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lorabake.planning import Plan, is_card
from lorabake.recipe import Source
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.visible import short_repr


@dataclass(frozen=True, slots=True)
class OutputPart:
    """Name a file of an output: its path from the folder that the output lies in, "portrait/unet/config.json"."""

    __repr__ = short_repr

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class InputPart:
    """Name a file of an input: its path as the recipe writes it, and what it is for: "base", "loras.0", "vae".

    `uri` names where it comes from to everybody; it is empty for a file of this machine.
    """

    __repr__ = short_repr

    name: str
    role: str
    path: Path
    uri: str = ""


def output_parts(plan: Plan, output: Path) -> Iterator[OutputPart]:
    """Yield every file that a bake writes: weights, what lies beside them in a folder, learned embeddings.

    `output` is where the output lies now; learned embeddings lie beside it.
    """
    if plan.is_folder:
        names = [file.name for file in plan.files]
        names += [name for name in plan.texts if name not in names]
        names += [*plan.copied]
        names += [path.as_posix() for path in plan.side_files if path.as_posix() not in names]
        yield from (OutputPart(f"{output.name}/{name}", output / name) for name in sorted(names))
    else:
        yield OutputPart(output.name, output)
    for embedding in plan.embeddings:
        yield OutputPart(embedding.path.name, output.with_name(embedding.path.name))


def input_parts(plan: Plan) -> Iterator[InputPart]:
    """Yield every file that the output depends on: weights, indexes, and the small files that decided something."""
    listed: set[Path] = set()
    recipe = plan.sources.recipe
    named = [(_role(plan, entry), (checkpoint, entry)) for checkpoint, entry in plan.sources.inputs]
    for role, (checkpoint, entry) in named:
        place = _Place(checkpoint, entry, recipe.commit_of(entry))
        paths = dict.fromkeys(_files(plan, checkpoint))
        listed |= paths.keys()
        yield from (place.part(role, path) for path in paths)
    for path in plan.sources.evidence.read:
        for role, (checkpoint, entry) in named:
            place = _Place(checkpoint, entry, recipe.commit_of(entry))
            if path not in listed and path.is_relative_to(place.folder):
                listed.add(path)
                yield place.part(role, path)


@dataclass(frozen=True, slots=True)
class _Place:
    """Name the files of one input as the recipe would: `models/base/unet/config.json`."""

    checkpoint: Checkpoint
    entry: Source
    commit: str | None

    @property
    def folder(self) -> Path:
        """Return the folder that the names start from."""
        return self.checkpoint.path if self.checkpoint.is_folder else self.checkpoint.path.parent

    def part(self, role: str, path: Path) -> InputPart:
        """Name a file in that folder, and its source."""
        said, relative = self.entry.portable_path, PurePosixPath(os.path.relpath(path, self.folder)).as_posix()
        is_index = self.checkpoint.is_folder and said.endswith(".json")  # an index stands for its folder
        around = said if self.checkpoint.is_folder and not is_index else said.rpartition("/")[0]
        name = relative if around in ("", ".") else f"{around.removesuffix('/')}/{relative}"
        address = self.entry.address
        return InputPart(name, role, path, "" if address is None else address.uri(self.commit))


def _role(plan: Plan, entry: Source) -> str:
    recipe = plan.sources.recipe
    roles: dict[str, Source | None] = {"base": recipe.base, "vae": recipe.vae}
    roles |= {f"loras.{number}": lora for number, lora in enumerate(recipe.loras)}
    roles |= {f"output.parts.{name}": part for name, part in recipe.output.parts.items()}
    return next((role for role, own in roles.items() if own is entry), "part")


def _files(plan: Plan, checkpoint: Checkpoint) -> Iterator[Path]:
    root = checkpoint.path if checkpoint.is_folder else checkpoint.path.parent
    yield from (header.path for header in checkpoint.headers)
    yield from (root / part.folder / part.index for part in checkpoint.parts if part.index is not None)
    yield from (root / name for name in checkpoint.side_files if not is_card(name))
    first = next((header.path for header in checkpoint.headers), checkpoint.path)
    yield from (first.with_name(side.name) for side in plan.sources.evidence.sides_of(checkpoint))
