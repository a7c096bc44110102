"""Rename the tensors of a header from one layout of a family to another, as its table says."""

from __future__ import annotations

from lorabake.keymap.reading import Match, Reader
from lorabake.keymap.table import Bare, Component
from lorabake.tensors.header import TensorInfo

Shapes = dict[str, tuple[int, ...]]


def translate(component: Component, tensors: dict[str, TensorInfo], here: str, there: str) -> Shapes:
    """Return the keys and shapes that a component's tensors, prefix removed, have in another layout."""
    names = [layout.name for layout in component.layouts]
    reader = Reader(component.rows, names.index(here), len(names))
    target = names.index(there)
    shapes: Shapes = {}
    for key, info in tensors.items():
        matches = list(reader.matches(key))
        if not matches:
            shapes[key] = info.shape
        for match in matches:
            if match.fused(target) is not None:
                path, _, _ = match.fused(target) or ("", 0, 0)
                name = _key(match, target, path)
                shapes[name] = (info.shape[0] + shapes.get(name, (0,))[0], *info.shape[1:])
                continue
            leaf = match.row.names[target]
            parts = len(leaf) if isinstance(leaf, tuple) and match.part is None else 1
            for path, part, _ in list(match.spell(target))[:parts]:
                rows = info.shape[0] if info.shape else 1
                if parts > 1:
                    weight = tensors.get(match.sibling(key))
                    columns = weight.shape[1] if weight else 0
                    rows = _rows(match.row.sizes or ("rest",) * parts, rows, columns)[part]
                turned = (here in match.row.transposed) != (there in match.row.transposed)
                shape = (rows, *info.shape[1:]) if info.shape else ()
                shapes[_key(match, target, path)] = shape[::-1] if turned and len(shape) == 2 else shape
    return shapes


def _rows(spec: tuple[str, ...], rows: int, columns: int) -> list[int]:
    rest = (rows - columns * spec.count("in")) // max(1, spec.count("rest"))
    return [columns if size == "in" else rest for size in spec]


def _key(match: Match, there: int, path: str) -> str:
    leaf = match.row.names[there]
    if isinstance(leaf, Bare):
        return path
    return f"{path}{'_' if str(leaf).endswith('_@') else '.'}{match.parameter}"
