"""Choose the layout of an output: a file or a folder, and where each component lies in it, under which names.

The base's own layout stays unless the recipe asks for another one. What a family's table does not name in the other
layout is refused here, before anything else is planned.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorabake.errors import FileError, RecipeError
from lorabake.keymap.table import Component
from lorabake.keymap.table import Layout as Names
from lorabake.sources import Sources
from lorabake.sources.family import GENERIC

STEMS = {True: "model", False: "diffusion_pytorch_model"}
"""The stem of a component's file in a folder: of transformers' networks, and of diffusers' own."""


@dataclass(frozen=True, slots=True)
class ComponentPlace:
    """Say where a component lies in a converted output: its table's layout, and the prefix of its keys in the file.

    In a folder it lies in `folder` (nothing at the top), in files whose names begin with `stem`.
    """

    component: str
    layout: str
    prefix: str
    folder: str
    stem: str

    @property
    def key_prefix(self) -> str:
        """Return what comes before the names of its tensors in the whole output."""
        return f"{self.folder}/" if self.folder else self.prefix


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """Say which form an output has. `places` are those of the components where it is not the base's own form."""

    name: Literal["keep", "single", "diffusers"]
    is_folder: bool
    places: tuple[ComponentPlace, ...] = ()

    @property
    def is_converted(self) -> bool:
        """Tell whether tensors get other names, or lie otherwise, than in the base."""
        return bool(self.places)

    def place(self, component: str) -> ComponentPlace:
        """Return the place of a component that the output has."""
        return next(place for place in self.places if place.component == component)


def is_folder(sources: Sources) -> bool:
    """Tell whether the output is a folder."""
    output = sources.recipe.output
    if output.form != "keep":
        return output.form == "diffusers"
    return sources.base.is_folder or output.shard_size is not None


def layout_of(sources: Sources) -> OutputLayout:
    """Choose the output's layout; raise RecipeError or FileError for one that the base cannot get."""
    output = sources.recipe.output
    if output.form == "keep":
        return OutputLayout("keep", is_folder(sources))
    if output.form == "single" and output.shard_size is not None:
        raise RecipeError(
            "output.layout is single, and output.shard_size cuts the output into several files",
            "Remove one of them.",
        )
    _check_has_layouts(sources)
    _check_name(sources)
    chosen = {
        name: _chosen(sources, sources.key_map.component(name), here)
        for name, (here, _) in sources.key_map.placed.items()
    }
    if _is_own(sources, chosen):
        return OutputLayout(output.form, is_folder(sources))
    choose = _in_folder if output.form == "diffusers" else _in_file
    return OutputLayout(
        output.form, is_folder(sources), tuple(choose(sources, name, names) for name, names in chosen.items())
    )


def names_for(component: Component, form: str) -> tuple[Names, ...]:
    """List the layouts of a component's table that a folder may have, or a single file, the usual one first.

    A layout that only files have is the maker's; others come after it.
    """
    if form == "diffusers":
        return tuple(layout for layout in component.layouts if layout.is_of_folders)
    usable = [layout for layout in component.layouts if layout.is_of_files]
    return tuple(sorted(usable, key=lambda layout: layout.is_of_folders))


def has_both(component: Component) -> bool:
    """Tell whether a component's table says what it is called in files and in folders."""
    files, folders = (names_for(component, form) for form in ("single", "diffusers"))
    return bool(files and folders and (component.rows or files[0].needs))


def single_names(component: Component) -> tuple[str, ...]:
    """List the layouts that `output.layout: {single: NAME}` can name: those that are no folder's."""
    return tuple(layout.name for layout in names_for(component, "single") if not layout.is_of_folders)


def _chosen(sources: Sources, component: Component, here: Names) -> Names:
    """Return the layout that a component gets; raise FileError where its table has none of the form."""
    output = sources.recipe.output
    possible = names_for(component, output.form)
    if output.names_of in single_names(component):
        wanted = next(layout for layout in possible if layout.name == output.names_of)
    elif here in possible and (output.form == "diffusers" or not here.is_of_folders):
        wanted = here  # one of several layouts stays the one that it is
    else:
        wanted = possible[0] if possible else here
    if not has_both(component) and (wanted != here or sources.base.is_folder != is_folder(sources)):
        raise FileError(*_no_table(sources, component))
    return wanted


def _is_own(sources: Sources, chosen: dict[str, Names]) -> bool:
    """Tell whether the base has the layout already."""
    placed = sources.key_map.placed
    return sources.base.is_folder == is_folder(sources) and all(placed[name][0] == chosen[name] for name in chosen)


def _in_folder(sources: Sources, component: str, names: Names) -> ComponentPlace:
    is_only = len(sources.key_map.architecture.components) == 1
    return ComponentPlace(
        component, names.name, "", "" if is_only else names.folder, STEMS[component.startswith("text_encoder")]
    )


def _in_file(sources: Sources, component: str, names: Names) -> ComponentPlace:
    prefix = names.prefix(alone=len(sources.key_map.placed) == 1)
    return ComponentPlace(component, names.name, prefix, "", STEMS[component.startswith("text_encoder")])


# -- refusals ----------------------------------------------------------------------------------------------


def _check_has_layouts(sources: Sources) -> None:
    """Raise FileError for a base whose family has no table, or only one layout."""
    key_map, base = sources.key_map, sources.base
    family, form = key_map.architecture, sources.recipe.output.form
    first = family.components[0] if family.components else None
    if first is None or first.name not in key_map.placed or family.name == GENERIC:
        raise FileError(
            f"{base.path}: output.layout is {form}, and no table knows the names of this model in another layout",
            "Remove output.layout: the output then has the base's names.",
        )
    if not has_both(first):
        raise FileError(
            f"{base.path}: output.layout is {form}, and lorabake knows {family.title} in one layout only: "
            f"{', '.join(layout.name for layout in first.layouts)}",
            "Remove output.layout: the output then has the base's names.",
        )


def _check_name(sources: Sources) -> None:
    """Raise RecipeError for a maker's layout that the family does not have."""
    wanted, family = sources.recipe.output.names_of, sources.key_map.architecture
    known = single_names(family.components[0])
    if wanted is not None and wanted not in known:
        write = " or ".join(f"{{single: {name}}}" for name in known)
        raise RecipeError(
            f"output.layout asks for the names of {wanted!r} in a single file, and {family.title} has none of these",
            f"Write layout: {write}, or layout: single",
        )


def _no_table(sources: Sources, component: Component) -> tuple[str, str]:
    """Say that one component's names are known in one layout alone, and what to give as the base instead."""
    base, form = sources.base, sources.recipe.output.form
    first = sources.key_map.architecture.components[0]
    fault = f"{base.path}: output.layout is {form}, and no table says what the {component.name} is called there"
    if base.is_folder:
        folder = sources.key_map.placed[first.name][1].removesuffix("/")
        return fault, f"Give the network alone as the base: {base.path / folder}"
    return fault, f"Give a file with the {first.name} alone as the base, or remove output.layout."


def copied_beside(sources: Sources, layout: OutputLayout) -> dict[str, Path]:
    """List the files of added parts that are copied as they lie: path below the output -> where it lies now."""
    return dict(copy for part in sources.parts for copy in part.copied) if layout.is_folder else {}
