"""List the modules that a component's tensors form, under the names of each layout in its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lorabake.keymap.module import Module, whole
from lorabake.keymap.reading import Match, Reader
from lorabake.keymap.table import Component, Layout
from lorabake.keymap.view import Region, View
from lorabake.tensors.header import Described


def list_modules(
    component: Component, layout: Layout, tensors: Mapping[str, Described], only: str | None = None
) -> dict[str, Module]:
    """List a component's modules by name; a name by which two layouts mean different tensors is left out.

    `tensors` are the component's, by their names in the file, whose layout is `layout`. `only` restricts the result
    to the names of one layout.
    """
    if not component.rows:
        return _as_named(component, tensors)
    names = [known.name for known in component.layouts]
    reader = Reader(component.rows, names.index(layout.name), len(names))
    listing = _Listing()
    for name, info in tensors.items():
        for match in reader.matches(name):
            weight = tensors.get(match.sibling(name))
            tensor = _Tensor(info, weight.shape[1] if weight is not None and len(weight.shape) > 1 else 0, match)
            for column, other in enumerate(names):
                if only in (None, other):
                    _enter(listing, tensor, column, layout.name, other)
    return listing.modules(component.name)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Hold a tensor, the columns of its module's weight (0 if there is none), and its match in the table."""

    info: Described
    columns: int
    match: Match


@dataclass(slots=True)
class _Listing:
    """Collect views by module and parameter, and facts about names that are complete only after the last tensor.

    `unclear` are names that mean different tensors in different layouts. `glued` are modules whose parameters are
    part of the last word (`in_proj_weight`). `pieces` are the tensors of modules that the file splits and another
    layout fuses.
    """

    views: dict[str, dict[str, View]] = field(default_factory=dict)
    unclear: set[str] = field(default_factory=set)
    glued: set[str] = field(default_factory=set)
    pieces: dict[tuple[str, str], list[Region | None]] = field(default_factory=dict)

    def add(self, path: str, parameter: str, view: View) -> None:
        """Add a parameter; mark the module as unclear if another layout means other values by this name."""
        if self.views.setdefault(path, {}).setdefault(parameter, view) != view:
            self.unclear.add(path)

    def add_piece(self, place: tuple[str, int, int], parameter: str, info: Described) -> None:
        """Add one part of a fused module, whose view follows when all are known; `place` is (name, part, parts)."""
        path, part, parts = place
        pieces = self.pieces.setdefault((path, parameter), [None] * parts)
        pieces[part] = Region(info.key, 0, info.shape[0])
        regions = tuple(piece for piece in pieces if piece is not None)
        if len(regions) == parts:
            view = View(regions, (sum(region.stop for region in regions), *info.shape[1:]))
            self.views.setdefault(path, {}).setdefault(parameter, view)

    def modules(self, component: str) -> dict[str, Module]:
        """Return the modules with clear names; each parameter of a glued module is a module, too."""
        views = dict(self.views)
        for path in (path for path in self.views if path in self.glued):
            for parameter in ("weight", "bias"):
                if parameter in self.views[path]:
                    views.setdefault(f"{path}_{parameter}", {"weight": self.views[path][parameter]})
        return {name: Module(component, name, own) for name, own in views.items() if name not in self.unclear}


def _enter(listing: _Listing, tensor: _Tensor, column: int, here: str, other: str) -> None:
    """Add a tensor under its names in the layout `other`, column `there` of the table; its file is in `here`."""
    match, row, info = tensor.match, tensor.match.row, tensor.info
    turned = here in row.transposed
    crossed = (other in row.swapped) != (here in row.swapped)
    both_turned = turned and other in row.transposed and len(info.shape) == 2 and not match.is_bare(column)
    listing.glued.update(match.glued(column))
    for path, part, parts in match.spell(column):
        view = _view(tensor, part, parts, crossed=crossed, turned=turned)
        if view is None:
            continue
        listing.add(path, match.parameter, view)
        if both_turned:
            listing.views[path].setdefault(f"stored_{match.parameter}", View(view.regions, info.shape))
    if (place := match.fused(column)) is not None:
        listing.add_piece(place, match.parameter, info)


def _view(tensor: _Tensor, part: int, parts: int, *, crossed: bool, turned: bool) -> View | None:
    """Return the view of one of `parts` parts of a tensor; None if its rows cannot be divided that way."""
    row, shape, key = tensor.match.row, tensor.info.shape, tensor.info.key
    rows = shape[0] if shape else 1
    if turned and len(shape) == 2:
        return View((Region(key, 0, rows),), (shape[1], shape[0]), transpose=True)
    if crossed and row.swapped_ratio in (None, rows / tensor.columns if tensor.columns else None):
        half = rows // 2
        return View((Region(key, half, rows), Region(key, 0, half)), shape)
    if parts == 1:
        return View((Region(key, 0, rows),), shape)
    sizes = part_sizes(row.sizes or ("rest",) * parts, rows, tensor.columns)
    if sizes is None:
        return None
    start = sum(sizes[:part])
    return View((Region(key, start, start + sizes[part]),), (sizes[part], *shape[1:]))


def part_sizes(spec: tuple[str, ...], rows: int, columns: int) -> list[int] | None:
    """Return the rows of each part; None if the rows cannot be divided that way."""
    fixed = columns * spec.count("in")
    shares = spec.count("rest")
    if shares and (rows - fixed) % shares:
        return None
    rest = (rows - fixed) // shares if shares else 0
    sizes = [columns if size == "in" else rest for size in spec]
    return sizes if sum(sizes) == rows and min(sizes) > 0 else None


def _as_named(component: Component, tensors: Mapping[str, Described]) -> dict[str, Module]:
    """List the modules of a component without a table: each layout uses the file's own names."""
    views: dict[str, dict[str, View]] = {}
    for name, info in tensors.items():
        path, _, parameter = name.rpartition(".")
        if parameter not in ("weight", "bias"):
            path, parameter = name, "weight"
        if path:
            views.setdefault(path, {}).setdefault(parameter, whole(info))
    return {path: Module(component.name, path, own) for path, own in views.items()}
