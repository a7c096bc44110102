"""Refuse tensors that do not fit a module of the base; each function returns the reason, or None."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from lorabake.adapters import dora
from lorabake.adapters.kind import Kind
from lorabake.adapters.shapes import Shapes, matrix
from lorabake.keymap.module import Module
from lorabake.keymap.view import View


@dataclass(frozen=True, slots=True)
class Trial:
    """Hold a kind's tensors and a module of the base; `view` is the parameter that the kind changes, if it exists."""

    kind: Kind
    shapes: Shapes
    module: Module
    view: View | None


def fault_of(kinds: Sequence[Kind], shapes: Shapes, module: Module, *, turned: bool = False) -> str | None:
    """Return why the tensors of some kinds cannot change a module of the base; None if they can.

    `turned` says that the base stores its weights as (in, out).
    """
    if fault := place_is_unclear(module) or number_is_several(kinds, shapes):
        return fault
    for kind in kinds:
        trial = Trial(kind, shapes, module, kind.view_of(module.views, turned=turned))
        for refusal in OF_THE_PARAMETER:
            if fault := refusal(trial):
                return fault
        for refusal in OF_SHAPES:
            if fault := refusal(trial):
                return _with_sizes(fault, trial)
    return None


def place_is_unclear(module: Module) -> str | None:
    """Refuse a module whose place in the base's tensors is unknown."""
    return module.unclear or None


def number_is_several(kinds: Sequence[Kind], shapes: Shapes) -> str | None:
    """Refuse an alpha, or another single number, that has several values."""
    for slot in sorted(frozenset[str]().union(*(kind.numbers for kind in kinds)) & shapes.keys()):
        if prod(shapes[slot]) != 1:
            return f"its {slot} has the shape {shapes[slot]}"
    return None


def one_layer_meets_all_experts(trial: Trial) -> str | None:
    """Refuse tensors for one layer if the base has a stack of experts there."""
    if trial.view is not None or trial.kind.absence() is None or not trial.module.stacked:
        return None
    return "the base has all experts of a mixture there, and it is for one layer"


def parameter_is_not_there(trial: Trial) -> str | None:
    """Refuse a change of a parameter that the base's module lacks."""
    return trial.kind.absence() if trial.view is None else None


def kind_asks_for_other_shapes(trial: Trial) -> str | None:
    """Refuse tensors from which the kind's formula does not make the weight's shape."""
    return None if trial.view is None else trial.kind.fault(trial.shapes, trial.view.shape)


def tensor_is_empty(trial: Trial) -> str | None:
    """Refuse empty tensors that the kind needs, if the rank is not 0."""
    empty = trial.kind.empty(trial.shapes) if trial.view is not None else None
    return f"its {empty} is empty: {trial.shapes[empty]}" if empty else None


def magnitude_measures_nothing(trial: Trial) -> str | None:
    """Refuse DoRA magnitudes that match neither the weight's rows nor its columns."""
    if trial.view is None or trial.kind.measures(trial.shapes, trial.view.shape):
        return None
    return dora.NO_AXIS


OF_THE_PARAMETER = (one_layer_meets_all_experts, parameter_is_not_there)
"""Refusals that look at the parameter that a kind changes, in this order."""

OF_SHAPES = (kind_asks_for_other_shapes, tensor_is_empty, magnitude_measures_nothing)
"""Refusals that look at a kind's shapes, in this order; their reasons are reported with the sizes of both sides."""


def _with_sizes(fault: str, trial: Trial) -> str:
    """Add to a reason the base's sizes, a possible cause, and the tensors' shapes if it names none."""
    kind, shapes, view = trial.kind, trial.shapes, trial.view
    if view is None:
        return fault
    size = " × ".join(map(str, view.shape))
    fault = f"{fault}; the base's {kind.parameter} is {size}{_cause(shapes, view)}"
    own = [slot for slot in sorted(kind.claims(frozenset(shapes)) & shapes.keys()) if shapes[slot]]
    if all(str(shapes[slot]) not in fault for slot in own):
        fault += f"; its tensors: {', '.join(f'{slot} {shapes[slot]}' for slot in own)}"
    return fault


def _cause(shapes: Shapes, view: View) -> str:
    down = shapes.get("down", ())
    if len(down) == 4 and len(view.shape) == 4 and down[1] != view.shape[1] and down[2:] == view.shape[2:]:
        return f" (it reads {down[1]} channels, the base {view.shape[1]}: an inpainting or other special base?)"
    up = shapes.get("up", ())
    if up and view.shape and up[0] == view.shape[0] and matrix(down)[1] != view.columns:
        return " (same outputs, other inputs: another version of the model?)"
    return " (another family, or another size of this one?)" if up else ""
