"""Modules: the layers of a base, by name, with the views of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorabake.keymap.view import Region, View
from lorabake.tensors.header import TensorInfo


@dataclass(frozen=True, slots=True)
class Module:
    """Locate one module of the base: the views of its parameters, by name (`weight`, `bias`).

    `stored_weight` is there where this very name's layout stores the weight transposed, as the base does: whole
    tensors come in that form. `stacked`: it is all experts of a mixture in one; `turned`: such a stack is stored as
    (experts, in, out), None where nothing tells. `unclear` says why the module is only somewhere in its views.
    """

    component: str
    name: str
    views: Mapping[str, View]
    stacked: bool = False
    turned: bool | None = False
    unclear: str = ""


def whole(info: TensorInfo) -> View:
    """Show a tensor as it is."""
    return View((Region(info.key, 0, info.shape[0] if info.shape else 1),), info.shape)


def modules_of(component: str, named: Mapping[str, View]) -> dict[str, Module]:
    """List the modules that tensors are the parameters of."""
    found: dict[str, dict[str, View]] = {}
    for name, view in named.items():
        path, _, parameter = name.rpartition(".")
        if path and parameter in ("weight", "bias"):
            found.setdefault(path, {})[parameter] = view
    return {path: Module(component, path, views) for path, views in found.items()}
