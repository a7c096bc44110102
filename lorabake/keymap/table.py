"""Tables: what one model family calls its modules in each layout.

A table is written once, as literals, in `components/` and `architectures/`. A `KeyMap` expands it against a base.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lorabake.keymap.fused import joined
from lorabake.keymap.module import Module
from lorabake.keymap.renaming import Renaming
from lorabake.tensors.header import Described
from lorabake.visible import short_repr

Name = str | tuple[str, ...]


class Bare(str):
    """Mark a name that is a whole tensor key; in the other layouts it is a module with a `.weight`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Pair the names of one module, or of all below one path, over the layouts of its component.

    `names` has one entry for each layout. `{}` stands for a number. `@` stands for `weight` or `bias` where the
    parameter is part of the word (`in_proj_@`); otherwise `.weight` and `.bias` follow. A tuple means that this
    layout splits what the others fuse. `sizes` gives the rows of each part: `"in"` (as many as the weight has
    columns) or `"rest"` (an equal share of the remaining rows); the default is equal shares.
    `rows` continues the table below this path. Without it, all layouts use the same names below.
    `transposed` names the layouts that store the weight as (in, out). `swapped` names those that store its two
    halves in the other order; with `swapped_ratio`, only where the weight has that many times as many rows as
    columns. `kernels` names those that store a matrix as a convolution with a kernel of 1 × 1.
    """

    __repr__ = short_repr

    names: tuple[Name, ...]
    rows: tuple[Row, ...] = ()
    sizes: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    swapped: tuple[str, ...] = ()
    swapped_ratio: int | None = None
    kernels: tuple[str, ...] = ()

    def paths(self, layout: int) -> Iterator[str]:
        """Yield the names of the modules below this path in one layout."""
        names = self.names[layout]
        for name in names if isinstance(names, tuple) else (names,):
            below = [path for row in self.rows for path in row.paths(layout)]
            yield from (f"{name}.{path}" for path in below)
            if not self.rows:
                yield name.removesuffix("_@").removesuffix(".@")


@dataclass(frozen=True, slots=True)
class Has:
    """Require a tensor; if given, with `ndim` dimensions and `ratio` times as many columns as rows."""

    key: str
    ndim: int | None = None
    ratio: int | None = None

    def holds(self, tensors: Mapping[str, Described], prefix: str) -> bool:
        """Tell whether the tensor exists and has that shape."""
        info = tensors.get(prefix + self.key)
        if info is None or (self.ndim is not None and len(info.shape) != self.ndim):
            return False
        return self.ratio is None or (len(info.shape) == 2 and info.shape[1] == self.ratio * info.shape[0])


@dataclass(frozen=True, slots=True)
class Lacks(Has):
    """Require that there is no such tensor, or, if a shape is given, none of that shape."""

    def holds(self, tensors: Mapping[str, Described], prefix: str) -> bool:
        """Tell whether the tensor is missing or has another shape."""
        return not Has.holds(self, tensors, prefix)


@dataclass(frozen=True, slots=True)
class Layout:
    """Say where a component's tensors lie: the prefixes to try, and what must or must not exist below one.

    The first prefix is the one that is written. `alone` is written where a file holds nothing else; unless it is
    said, that is no prefix at all if a file may lack one. `lacks` are the names of tensors that other layouts have,
    and no program reads in this one. `adds` are the keys of tensors that a file has beside the component, and that
    a folder says in its scheduler.
    """

    __repr__ = short_repr

    name: str
    prefixes: tuple[str, ...]
    needs: tuple[Has, ...]
    alone: str | None = None
    lacks: tuple[str, ...] = ()
    adds: tuple[str, ...] = ()

    @property
    def is_of_folders(self) -> bool:
        """Tell whether a diffusers folder has the component in this layout."""
        return any(prefix.endswith("/") for prefix in self.prefixes)

    @property
    def is_of_files(self) -> bool:
        """Tell whether single files have the component in this layout."""
        return bool(self._of_files)

    @property
    def _of_files(self) -> tuple[str, ...]:
        """List the prefixes in single files; one that only repeats the folder's name is some script's."""
        folders = [prefix.removesuffix("/") for prefix in self.prefixes if prefix.endswith("/")]
        if not folders:
            return self.prefixes
        scripts = ("", *(f"{folder}." for folder in folders))
        return tuple(prefix for prefix in self.prefixes if not prefix.endswith("/") and prefix not in scripts)

    @property
    def folder(self) -> str:
        """Return the name of the component's folder; raise StopIteration where no folder has this layout."""
        return next(prefix for prefix in self.prefixes if prefix.endswith("/")).removesuffix("/")

    def prefix(self, *, alone: bool) -> str:
        """Return what a single file puts before the names of a component that is `alone` in it, or not."""
        if alone and (self.alone is not None or "" in self.prefixes):
            return self.alone or ""
        return self._of_files[0]


@dataclass(frozen=True, slots=True)
class IndexOrder:
    """Name the modules of index-named LoRA files (`unet:0:up`) in their order: each of `inner` in each block.

    A block with `{}` repeats as often as the file needs.
    """

    __repr__ = short_repr

    blocks: tuple[str, ...]
    inner: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Alias:
    """Give a trainer's own name to a module, or to several modules that the trainer sees as one.

    `of` lists them by their names in any layout. Numbers are `{}` in all names.
    """

    name: str
    of: tuple[str, ...]

    def resolve(self, modules: Mapping[str, Module]) -> Iterator[Module]:
        """Yield the modules that a base has for this name."""
        pattern = re.compile(re.escape(self.of[0]).replace(r"\{\}", r"(\d+)") + r"\Z")
        for path, first in modules.items():
            if match := pattern.match(path):
                parts = [modules.get(name.format(*match.groups())) for name in self.of]
                present = [part for part in parts if part is not None]
                if len(present) == len(parts):
                    yield Module(first.component, self.name.format(*match.groups()), joined(present))


@dataclass(frozen=True, slots=True)
class Component:
    """Describe one network of a model: its layouts, its names, and how LoRA files spell its prefix.

    `dotted` prefixes come before a dotted module path (`unet.`); `flat` ones before a path whose dots became
    underscores (`lora_unet_`). `optional` words (`model.`) may begin a path in the base and be missing in the LoRA,
    or the other way round. Each group of `roots` lists path beginnings that may replace each other if no module has
    the exact name. `orders` reads index-named files. `embeddings` are the endings of input embeddings that a model
    without any of the `heads` also uses as its output head; `copies` are the names, below the component, of copies of
    that embedding. `aliases` are names that no layout has. `renamings` say what tensors are called in memory.
    `at_last` lists prefixes that are tried only if a name has no other meaning.
    """

    __repr__ = short_repr

    name: str
    layouts: tuple[Layout, ...]
    rows: tuple[Row, ...] = ()
    dotted: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    roots: tuple[tuple[str, ...], ...] = ()
    orders: tuple[IndexOrder, ...] = ()
    embeddings: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    aliases: tuple[Alias, ...] = ()
    renamings: tuple[Renaming, ...] = ()
    at_last: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outside:
    """Name tensors of no component, by globs over their keys, and say in a title what they are."""

    keys: tuple[str, ...]
    title: str


@dataclass(frozen=True, slots=True)
class Kin:
    """Name the family that this one was made from, and say why LoRAs of either also fit the other."""

    family: str
    why: str


@dataclass(frozen=True, slots=True)
class Sized:
    """Ask whether a network has one of these tensors; if given, with `size` at the place `dim` of its shape.

    `keys` are its names in the layouts, without the prefix.
    """

    keys: tuple[str, ...]
    dim: int = 0
    size: int | None = None

    def holds(self, tensors: Mapping[str, Described], prefix: str) -> bool:
        """Tell whether a network with this prefix is so."""
        shapes = (tensors[prefix + key].shape for key in self.keys if prefix + key in tensors)
        return any(self.size is None or shape[self.dim : self.dim + 1] == (self.size,) for shape in shapes)


@dataclass(frozen=True, slots=True)
class SpecName:
    """Give a name that SAI ModelSpec and the programs that read it have for models of a family.

    `needs` tell it from the family's other names, of which the first that fits counts. With `predicts`, models of
    this name predict that ("epsilon" or "v"), so that the name counts only where it is known; `prediction` is what
    models of this name predict where nothing says otherwise. A name that only a header can tell is `is_stated`.
    An empty name means that headers do not tell which it is.
    """

    __repr__ = short_repr

    name: str
    resolution: str = ""
    needs: tuple[Sized, ...] = ()
    predicts: str = ""
    prediction: str = ""
    is_stated: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """Hold all that lorabake knows about one model family; the first component identifies it.

    `without` lists key prefixes that must not occur in the same checkpoint. `kin` are the families that it was made
    from. `names` are further modules of its networks, with numbers as `{}`. If `released/` has no list for the
    family, LoRAs are recognised by these names and by those in the tables. `spec` are its names in SAI ModelSpec, and
    `code` is the code whose names its single files have. `task` is what its models do, in the words of the Hugging
    Face hub; empty where that differs from model to model.
    """

    __repr__ = short_repr

    name: str
    title: str
    components: tuple[Component, ...]
    without: tuple[str, ...] = ()
    kin: tuple[Kin, ...] = ()
    names: tuple[str, ...] = ()
    spec: tuple[SpecName, ...] = ()
    code: str = ""
    task: str = ""

    def fits(self, tensors: Mapping[str, Described]) -> bool:
        """Tell whether a checkpoint with these tensors is of this family."""
        if find(self.components[0], tensors) is None:
            return False
        return not any(key.startswith(self.without) for key in tensors) if self.without else True


def find(component: Component, tensors: Mapping[str, Described]) -> tuple[Layout, str] | None:
    """Return the layout and key prefix of a component in a header; None if the header lacks the component."""
    for layout in component.layouts:
        for prefix in layout.prefixes:
            if all(need.holds(tensors, prefix) for need in layout.needs) and any(
                key.startswith(prefix) for key in tensors
            ):
                return layout, prefix
    return None
