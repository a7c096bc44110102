"""Modules: the layers of a base, by name, with the views of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorabake.keymap.view import Region, View
from lorabake.tensors.header import Described
from lorabake.visible import short_repr


@dataclass(frozen=True, slots=True)
class Module:
    """Locate one module of the base: the views of its parameters, by name (`weight`, `bias`).

    `stored_weight` exists if both this name's layout and the base store the weight transposed: whole tensors in LoRA
    files then come transposed, too. A `stacked` module holds all experts of a mixture. A `turned` one is stored as
    (experts, in, out); None means that nothing tells. `unclear` says why the module's exact place in its views is
    unknown.
    """

    __repr__ = short_repr

    component: str
    name: str
    views: Mapping[str, View]
    stacked: bool = False
    turned: bool | None = False
    unclear: str = ""


def whole(info: Described) -> View:
    """Return the view of a whole tensor."""
    return View((Region(info.key, 0, info.shape[0] if info.shape else 1),), info.shape)


def modules_of(component: str, named: Mapping[str, View]) -> dict[str, Module]:
    """Group parameters into modules: `fc.weight` and `fc.bias` make `fc`."""
    parameters: dict[str, dict[str, View]] = {}
    for name, view in named.items():
        path, _, parameter = name.rpartition(".")
        if path and parameter in ("weight", "bias"):
            parameters.setdefault(path, {})[parameter] = view
    return {path: Module(component, path, views) for path, views in parameters.items()}
