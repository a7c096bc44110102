"""Refuse modules for reasons other than shapes: the name, the set of tensors, the configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lorabake.adapters import dora
from lorabake.adapters.kind import Kind
from lorabake.adapters.shapes import Shapes
from lorabake.keymap.module import Module
from lorabake.keymap.peft import PeftConfig
from lorabake.keymap.said import Said
from lorabake.matching.candidates import Candidates
from lorabake.visible import visible

Record = TypeVar("Record")

AGAIN = "Download the LoRA again if it should have more tensors, or leave it out."

NOT_ANNOUNCED = (
    "a whole tensor that no modules_to_save announces; if it is to replace the base's, name its module there, in "
    "adapter_config.json"
)
WITHOUT_MLX_CONFIG = (
    "MLX-LM's adapter_config.json is not there: it has the scale; put it beside the file, or write one that says "
    '{"lora_parameters": {"scale": …}}'
)


@dataclass(frozen=True, slots=True)
class Understood:
    """Hold a module whose name has places on the base, and the kinds that its tensors form there.

    There are no kinds if the tensors do not form complete sets.
    """

    candidates: Candidates
    kinds: tuple[Kind, ...]

    @property
    def whole(self) -> frozenset[str]:
        """Return the slots that replace parameters of the base and are named like a checkpoint's own tensors."""
        return frozenset[str]().union(*(kind.announced for kind in self.kinds))


@dataclass(frozen=True, slots=True)
class Fitting:
    """Hold a module, and the modules of the base that its tensors fit."""

    candidates: Candidates
    places: tuple[Module, ...]


@dataclass(frozen=True, slots=True)
class Configured:
    """Hold the shapes of a module that fits a module of the base, and its configuration.

    `said` is what it says of the module; `weights` are the shapes of the parameters that its kinds change.
    """

    shapes: Shapes
    config: PeftConfig
    said: Said
    weights: tuple[tuple[Kind, tuple[int, ...]], ...]


def first_reason(refusals: Sequence[Callable[[Record], str | None]], record: Record) -> str | None:
    """Return the first reason of some refusals; None if all of them accept the record."""
    for refusal in refusals:
        reason = refusal(record)
        if reason is not None:
            return reason
    return None


# -- by its name ---------------------------------------------------------------------------------------------


def name_stands_for_several(candidates: Candidates) -> str | None:
    """Refuse a name that resembles several spellings of different modules."""
    if len(candidates.spellings) < 2:
        return None
    return f"its name may stand for {visible(' and for '.join(candidates.spellings[:2]))}"


# -- by its tensors ------------------------------------------------------------------------------------------


def tensors_are_no_whole_set(understood: Understood) -> str | None:
    """Refuse tensors that no set of kinds accounts for."""
    slots = understood.candidates.module.slots
    if understood.kinds:
        return None
    names = {*slots}
    if len(names) == 1 and names < {"down", "up"}:
        (there,), (missing,) = names, {"down", "up"} - names
        return f"there is only the {there!r} tensor, and {missing!r} is missing\n{AGAIN}"
    return f"incomplete or unknown set: {', '.join(sorted(slots))}\n{AGAIN}"


def magnitude_has_its_weight_beside_it(understood: Understood) -> str | None:
    """Refuse DoRA magnitudes for a weight that the file replaces as a whole."""
    has_both = dora.is_in(understood.candidates.module.slots) and "whole_weight" in understood.whole
    return "a magnitude beside the weight that it is for" if has_both else None


def whole_tensor_is_not_announced(understood: Understood) -> str | None:
    """Refuse a tensor that would replace the base's without a configuration that announces it."""
    candidates, whole = understood.candidates, understood.whole
    config = candidates.config
    if "whole_weight" in whole and sum(kind.parameter == "weight" for kind in understood.kinds) > 1:
        whole = whole if config is None else frozenset()  # an embedding's or a head's own (save_embedding_layers)
    is_tied = config is not None and config.ties and candidates.use is not None
    is_meant = config is not None and all(config.saves(candidates.path, slot) for slot in whole)
    return NOT_ANNOUNCED if whole and not is_tied and not is_meant else None


def scale_of_mlx_is_missing(understood: Understood) -> str | None:
    """Refuse factors of MLX-LM without the configuration that has their scale."""
    candidates = understood.candidates
    return WITHOUT_MLX_CONFIG if candidates.config is None and "lora_a" in candidates.module.slots else None


# -- by where it fits ----------------------------------------------------------------------------------------


def stack_of_experts_is_not_named(fitting: Fitting) -> str | None:
    """Refuse tensors that fit several stacks of experts in the module that they name."""
    if len(fitting.places) < 2 or not fitting.candidates.is_unnamed:
        return None
    return "it fits several stacks of experts, and no name says which"


def name_means_two_tensors(fitting: Fitting) -> tuple[str, ...] | None:
    """Refuse a name that means one module on the disk and another one in memory."""
    if not len({place.component for place in fitting.places}) == 1 < len(fitting.places):
        return None
    keys = " and ".join(next(iter(place.views.values())).keys[0] for place in fitting.places)
    return (
        f"{fitting.candidates.module.name} may be {keys} of the base",
        "One is called so in the file, the other in memory, and both fit. Merge it with what trained it.",
    )


def module_fits_several_components(fitting: Fitting) -> tuple[str, ...] | None:
    """Refuse a module that fits two components of the base."""
    if len(fitting.places) < 2:
        return None
    names = ", ".join(place.component for place in fitting.places)
    return (
        f"{fitting.candidates.module.name} fits {names}",
        f"Say which with components: [{fitting.places[0].component}]",
    )


# -- by its configuration ------------------------------------------------------------------------------------


def configuration_asks_for_other_shapes(configured: Configured) -> str | None:
    """Refuse tensors that fit their weights but contradict their configuration."""
    for kind, weight in configured.weights:
        if fault := kind.misconfigured(configured.said, configured.shapes, weight):
            return fault
    return None


def magnitude_is_missing(configured: Configured) -> str | None:
    """Refuse a module without the DoRA magnitude that its configuration announces."""
    slots = configured.shapes.keys()
    if not configured.config.dora or not slots & {"down", "lora_a", "embedding_down"} or dora.is_in(slots):
        return None
    return "adapter_config says use_dora, and there is no magnitude"


OF_ITS_NAME = (name_stands_for_several,)

OF_ITS_TENSORS = (
    tensors_are_no_whole_set,
    magnitude_has_its_weight_beside_it,
    whole_tensor_is_not_announced,
    scale_of_mlx_is_missing,
)

OF_ITS_PLACES = (stack_of_experts_is_not_named,)

OF_SEVERAL_PLACES = (name_means_two_tensors, module_fits_several_components)
"""These end the matching, because the recipe has to say more first."""

OF_ITS_CONFIGURATION = (configuration_asks_for_other_shapes, magnitude_is_missing)
