"""List the modules that a component's tensors make, under the names of each layout, as its table says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lorabake.keymap.module import Module, whole
from lorabake.keymap.reading import Match, Reader
from lorabake.keymap.table import Component, Layout
from lorabake.keymap.view import Region, View
from lorabake.tensors.header import TensorInfo


def list_modules(
    component: Component, layout: Layout, tensors: Mapping[str, TensorInfo], only: str | None = None
) -> dict[str, Module]:
    """List a component's modules by name; a name by which two layouts mean different tensors is left out.

    `tensors` are the component's, by their names in its file, which is in this layout. `only` names one layout whose
    names are wanted alone.
    """
    if not component.rows:
        return _as_named(component, tensors)
    names = [each.name for each in component.layouts]
    reader = Reader(component.rows, names.index(layout.name), len(names))
    listing = _Listing()
    for name, info in tensors.items():
        for match in reader.matches(name):
            weight = tensors.get(match.sibling(name))
            tensor = _Tensor(info, weight.shape[1] if weight is not None and len(weight.shape) > 1 else 0, match)
            for there, other in enumerate(names):
                if only in (None, other):
                    _enter(listing, tensor, there, layout.name, other)
    return listing.modules(component.name)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Hold a tensor, the columns of the weight that it is or belongs to (0 without any), and its row of the table."""

    info: TensorInfo
    columns: int
    match: Match


@dataclass(slots=True)
class _Listing:
    """Collect views by module and parameter, and what is known of names only after all tensors are read.

    `unclear` are names by which layouts mean different tensors. `glued` are modules whose parameters' full names are
    glued on (`in_proj_weight`). `pieces` are the tensors of modules that the file splits and another layout fuses.
    """

    views: dict[str, dict[str, View]] = field(default_factory=dict)
    unclear: set[str] = field(default_factory=set)
    glued: set[str] = field(default_factory=set)
    pieces: dict[tuple[str, str], list[Region | None]] = field(default_factory=dict)

    def add(self, path: str, parameter: str, view: View) -> None:
        """Enter a parameter; mark its module where another layout has other values under this name."""
        if self.views.setdefault(path, {}).setdefault(parameter, view) != view:
            self.unclear.add(path)

    def add_piece(self, place: tuple[str, int, int], parameter: str, info: TensorInfo) -> None:
        """Enter a tensor as one of the parts of a fused module: (its name, the part, how many); view all together."""
        path, part, parts = place
        pieces = self.pieces.setdefault((path, parameter), [None] * parts)
        pieces[part] = Region(info.key, 0, info.shape[0])
        regions = tuple(piece for piece in pieces if piece is not None)
        if len(regions) == parts:
            view = View(regions, (sum(region.stop for region in regions), *info.shape[1:]))
            self.views.setdefault(path, {}).setdefault(parameter, view)

    def modules(self, component: str) -> dict[str, Module]:
        """Return the modules whose names are clear; a glued module's parameters are modules, too."""
        views = dict(self.views)
        for path in (path for path in self.views if path in self.glued):
            for parameter in ("weight", "bias"):
                if parameter in self.views[path]:
                    views.setdefault(f"{path}_{parameter}", {"weight": self.views[path][parameter]})
        return {name: Module(component, name, own) for name, own in views.items() if name not in self.unclear}


def _enter(listing: _Listing, tensor: _Tensor, there: int, here: str, other: str) -> None:
    """Enter a tensor under the names of one layout, `other`, the table's number `there`; it is stored in `here`."""
    match, row, info = tensor.match, tensor.match.row, tensor.info
    turned = here in row.transposed
    crossed = (other in row.swapped) != (here in row.swapped)
    both_turned = turned and other in row.transposed and len(info.shape) == 2 and not match.is_bare(there)
    listing.glued.update(match.glued(there))
    for path, part, parts in match.spell(there):
        view = _view(tensor, part, parts, crossed=crossed, turned=turned)
        if view is None:
            continue
        listing.add(path, match.parameter, view)
        if both_turned:
            listing.views[path].setdefault(f"stored_{match.parameter}", View(view.regions, info.shape))
    if (place := match.fused(there)) is not None:
        listing.add_piece(place, match.parameter, info)


def _view(tensor: _Tensor, part: int, parts: int, *, crossed: bool, turned: bool) -> View | None:
    """Show one of so many parts of a tensor; None where its rows cannot be divided so."""
    row, shape, key = tensor.match.row, tensor.info.shape, tensor.info.key
    rows = shape[0] if shape else 1
    if turned and len(shape) == 2:
        return View((Region(key, 0, rows),), (shape[1], shape[0]), transpose=True)
    if crossed and row.swapped_ratio in (None, rows / tensor.columns if tensor.columns else None):
        half = rows // 2
        return View((Region(key, half, rows), Region(key, 0, half)), shape)
    if parts == 1:
        return View((Region(key, 0, rows),), shape)
    sizes = _sizes(row.sizes or ("rest",) * parts, rows, tensor.columns)
    if sizes is None:
        return None
    start = sum(sizes[:part])
    return View((Region(key, start, start + sizes[part]),), (sizes[part], *shape[1:]))


def _sizes(spec: tuple[str, ...], rows: int, columns: int) -> list[int] | None:
    """Return how many rows each part has; None where they cannot be divided so."""
    fixed = columns * spec.count("in")
    shares = spec.count("rest")
    if shares and (rows - fixed) % shares:
        return None
    rest = (rows - fixed) // shares if shares else 0
    sizes = [columns if size == "in" else rest for size in spec]
    return sizes if sum(sizes) == rows and min(sizes) > 0 else None


def _as_named(component: Component, tensors: Mapping[str, TensorInfo]) -> dict[str, Module]:
    """List the modules of a component without a table: all of its layouts have the file's own names."""
    views: dict[str, dict[str, View]] = {}
    for name, info in tensors.items():
        path, _, parameter = name.rpartition(".")
        if parameter not in ("weight", "bias"):
            path, parameter = name, "weight"
        if path:
            views.setdefault(path, {}).setdefault(parameter, whole(info))
    return {path: Module(component.name, path, own) for path, own in views.items()}
