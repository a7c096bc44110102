"""Show the weights of a model's networks under one set of names, whatever layout its files have.

A single file and a diffusers folder name, fuse, swap and turn the same weights in two ways. Under the names of the
folder, shown by the views of their tables, both are the same: so are their fingerprints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lorabake.architectures.generic import GENERIC
from lorabake.errors import LorabakeError
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.reading import Reader
from lorabake.keymap.rewriting import NoPlaceError, rewritten
from lorabake.keymap.table import Component, Layout
from lorabake.keymap.view import View
from lorabake.sources.family import identify
from lorabake.tensors.header import TensorInfo
from lorabake.visible import short_repr

NO_WEIGHTS = ("position_ids", "logit_scale")
"""How tensors are called that some files of a network have and others lack, since nothing is drawn with them."""


@dataclass(frozen=True, slots=True)
class Weight:
    """Show a weight of a network under its name in the family's usual folder; `dtype` is how it is stored."""

    __repr__ = short_repr

    name: str
    dtype: str
    view: View

    def is_whole(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Tell whether its bytes are those of one tensor, as they lie there."""
        if len(self.view.regions) != 1 or self.view.transpose or self.view.picked is not None:
            return False
        (region,) = self.view.regions
        shape = tensors[region.key].shape
        return (region.start, region.stop) == (0, shape[0] if shape else 1)


@dataclass(frozen=True, slots=True)
class Network:
    """Hold a network's weights, and the layout in which the files have it.

    `left_out` are its tensors that the table does not name, such as numbers of positions: another layout lacks them.
    """

    __repr__ = short_repr

    component: str
    layout: str
    weights: tuple[Weight, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Digested:
    """Name the bytes of a tensor by their SHA-256, with the dtype and shape that they have."""

    __repr__ = short_repr

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


def fingerprint_of(tensors: Iterable[Digested]) -> str:
    """Return one digest of tensors that does not depend on their order or files.

    It is the SHA-256 of `[["NAME","DTYPE",[SHAPE],"SHA256"],…]` as JSON without spaces, in UTF-8, sorted by names.
    """
    listed = sorted([each.name, each.dtype, [*each.shape], each.sha256] for each in tensors)
    return hashlib.sha256(json.dumps(listed, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def networks_of(tensors: Mapping[str, TensorInfo]) -> tuple[str, tuple[Network, ...]]:
    """Return the family's title and the networks that its tables name; none for a family without a table."""
    try:
        family = identify(tensors)
    except LorabakeError:  # it fits several
        return "", ()
    if family is GENERIC:
        return "", ()
    key_map = KeyMap.expand(family, tensors)
    found = (_network(key_map, component, tensors) for component in family.components)
    return family.title, tuple(network for network in found if network is not None)


def _network(key_map: KeyMap, component: Component, tensors: Mapping[str, TensorInfo]) -> Network | None:
    if component.name not in key_map.placed:
        return None
    here, prefix = key_map.placed[component.name]
    there = next((layout for layout in component.layouts if layout.is_of_folders), here)
    below = {
        key.removeprefix(prefix): tensors[key]
        for key in tensors
        if key_map.owner.get(key) == component.name and key.startswith(prefix)
    }
    lacks = {name for layout in component.layouts for name in layout.lacks}
    named = {
        name: info
        for name, info in below.items()
        if name not in lacks and not name.endswith(NO_WEIGHTS) and _has_row(component, here, name)
    }
    try:
        weights = tuple(_weights(component, here, there, named))
    except (NoPlaceError, StopIteration):
        return None
    return Network(component.name, here.name, weights, tuple(sorted(below.keys() - named.keys())))


def _has_row(component: Component, here: Layout, name: str) -> bool:
    """Tell whether a table names a tensor; a table without rows names all."""
    if not component.rows:
        return True
    numbers = [layout.name for layout in component.layouts]
    return next(Reader(component.rows, numbers.index(here.name), len(numbers)).matches(name), None) is not None


def _weights(component: Component, here: Layout, there: Layout, named: Mapping[str, TensorInfo]) -> Iterator[Weight]:
    by_key = {info.key: info for info in named.values()}
    for made in rewritten(component, here.name, there.name, named):
        dtypes = {by_key[key].dtype for key in made.view.keys}
        if len(dtypes) > 1:
            raise NoPlaceError(f"{made.name} is made of several dtypes")
        yield Weight(made.name, dtypes.pop(), made.view)
