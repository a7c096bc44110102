"""Give a network that is already built the weights that lorabake's formulas make: the one way to place them.

Pictures and texts are drawn with them where diffusers and PEFT cannot apply a LoRA, and for the floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lorabake.adapters.shapes import matrix
from lorabake.errors import FileError, SurroundingsError
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.module import Module
from lorabake.keymap.view import Region, Span, View
from lorabake.planning import Plan
from lorabake.reference.arrays import Files
from lorabake.reference.codecs import worth
from lorabake.reference.formulas.formula import Array
from lorabake.reference.recompute import Recomputation
from lorabake.reference.tiles import rounded_as

if TYPE_CHECKING:
    import torch

Factors = tuple[float, ...]
"""One factor a LoRA, on top of the recipe's strengths."""

ROOTS = ("", "model.", "transformer.")
"""What transformers may put before the names that a file has."""


class Weights:
    """Set a network's weights to what the formulas make of the base's."""

    def __init__(self, plan: Plan, files: Files) -> None:
        self.plan, self.recomputation = plan, Recomputation(files)

    def place(self, network: torch.nn.Module, component: str, factors: Factors, *, round_off: bool) -> None:
        """Put W + Σ factor·δ in place of each baked weight, rounded to the output's dtype if asked."""
        self._fill(self._spots(network, component), factors, round_off=round_off)

    def place_by_name(self, model: torch.nn.Module, *, round_off: bool) -> None:
        """Do the same with a model of transformers, at the recipe's strengths: its names are the base's own.

        Raise FileError where they are not.
        """
        places = dict(model.named_parameters())
        names = {target.key: target.name for step in self.plan.steps for target in step.targets}
        start = next((root for root in ROOTS if all(root + name in places for name in names.values())), None)
        if start is None:
            path = self.plan.sources.base.path
            raise FileError(f"{path}: transformers names its tensors otherwise than the files do")
        spots = {key: [_whole(key, places[start + name])] for key, name in names.items()}
        self._fill(spots, (1.0,) * len(self.plan.sources.loras), round_off=round_off)

    def _fill(self, spots: Mapping[str, Sequence[_Spot]], factors: Factors, *, round_off: bool) -> None:
        import torch

        for step in self.plan.steps:
            if not any(target.key in spots for target in step.targets):
                continue
            made: dict[str, Array] = {}
            for tile in self.recomputation.tiles(step):
                exact = tile.base.copy()
                for change in tile.changes:
                    exact[change.rows] += factors[change.patch.lora] * change.delta
                whole = made.setdefault(tile.target.key, np.empty(step.matrix(tile.target.key)))
                whole[tile.start : tile.start + len(exact)] = rounded_as(tile, exact) if round_off else exact
            for result in step.results:
                whole = made[result.key]
                if not result.codec.is_plain:
                    parts = {
                        role: made[target.key].reshape(target.shape)
                        for role, target in step.targets_of(result).items()
                    }
                    whole = worth(result.source, parts.__getitem__)
                value = torch.from_numpy(whole.reshape(matrix(result.source.shape)).astype(np.float32))
                for spot in spots.get(result.key, ()):
                    with torch.no_grad():
                        spot.fill(value)

    def _spots(self, network: torch.nn.Module, component: str) -> dict[str, list[_Spot]]:
        """Find the parameters of the network that each baked tensor of the component fills."""
        key_map = self.plan.sources.key_map
        baked = {result.key for step in self.plan.steps for result in step.results}
        wanted = {key for key in baked if key_map.owner.get(key) == component}
        places = dict(network.named_parameters()) | dict(network.named_buffers())
        spots: dict[str, list[_Spot]] = {}
        taken: set[str] = set()
        for name, module in named(key_map, component).items():
            found = submodule(network, name)
            for parameter, view in module.views.items():
                path = f"{found[0]}.{parameter}" if found else name
                place = places.get(path)
                if place is None or path in taken or not wanted & {*view.keys}:
                    continue
                taken.add(path)
                for span in view.spans():
                    spots.setdefault(span.key, []).append(_Spot(place, span, view))
        _, prefix = key_map.placed[component]
        for key in wanted - spots.keys():  # what no table speaks of keeps its name
            place = places.get(key.removeprefix(prefix))
            if place is not None:
                spots[key] = [_whole(key, place)]
        if missing := wanted - spots.keys():
            first = sorted(missing)[0]
            raise SurroundingsError(
                f"{len(missing)} tensors have no place in diffusers' {component}, such as {first}"
            )
        return spots


@dataclass(frozen=True, slots=True)
class _Spot:
    """Say which rows of a network's parameter hold which rows of a base tensor, by `span`."""

    place: torch.Tensor
    span: Span
    view: View

    def fill(self, value: torch.Tensor) -> None:
        """Put the rows of a whole tensor, (rows, columns), in place."""
        if self.view.transpose:
            self.place.copy_(value.T.reshape(self.place.shape))
            return
        self.place.reshape(self.view.rows, -1)[self.span.own] = value[self.span.stored]


def _whole(key: str, place: torch.Tensor) -> _Spot:
    """Let a whole tensor fill a parameter of its shape."""
    shape = tuple(place.shape)
    view = View((Region(key, 0, shape[0] if shape else 1),), shape)
    (span,) = view.spans()
    return _Spot(place, span, view)


def submodule(network: torch.nn.Module, name: str) -> tuple[str, torch.nn.Module] | None:
    """Find a module by one of its names in lorabake's tables; transformers' CLIP may lack the leading text_model."""
    for path in (name, name.removeprefix("text_model."), f"text_model.{name}"):
        try:
            return path, network.get_submodule(path)
        except AttributeError:
            continue
    return None


def named(key_map: KeyMap, component: str) -> Mapping[str, Module]:
    """List a component's modules under the names that diffusers has for them, as far as a layout tells."""
    if any(layout.name == "diffusers" for layout in key_map.component(component).layouts):
        return key_map.modules_in(component, "diffusers")
    return key_map.modules[component]
