"""Find a base's family, its model type, and how it stacks its experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lorabake.architectures import architectures
from lorabake.components.experts import LAYOUTS
from lorabake.components.vae import VAE
from lorabake.errors import MatchError
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.experts import ExpertLayout
from lorabake.keymap.renaming import models_called
from lorabake.keymap.table import Architecture
from lorabake.tensors.header import Described

GENERIC = "generic"
VAE_ONLY = Architecture(name="vae", title="VAE", components=(VAE,))


def identify(tensors: Mapping[str, Described]) -> Architecture:
    """Return the one family that a checkpoint's tensors fit; the generic family if no table fits."""
    known = [family for family in architectures() if family.components and family.name != GENERIC]
    fitting = [family for family in known if family.fits(tensors)]
    if len(fitting) > 1:
        names = " and ".join(family.title for family in fitting)
        raise MatchError(f"the base looks like {names}: its tensors do not tell them apart")
    return fitting[0] if fitting else next(family for family in architectures() if family.name == GENERIC)


def models_of(config: Mapping[str, object]) -> tuple[str, ...]:
    """List the model types in a config.json: the model's own first, then those of its parts."""
    own = config.get("model_type")
    parts = [models_of(part) for part in config.values() if isinstance(part, dict)]
    first = [own] if isinstance(own, str) else []
    return tuple(dict.fromkeys([*first, *(name for part in parts for name in part)]))


def guess_models(key_map: KeyMap, names: Iterable[str]) -> tuple[str, ...]:
    """Find a base's model type from the module names in LoRAs, if config.json does not state it.

    Return () if config.json states it. Names come without PEFT's root.
    """
    component = key_map.architecture.components[0]
    is_told = any(renaming.models and renaming.of(key_map.models) for renaming in component.renamings)
    if is_told or not component.renamings:
        return ()
    return models_called(key_map.stored(component), component.renamings, {f"{name}.weight" for name in names})


def expert_layout(models: Iterable[str]) -> ExpertLayout | None:
    """Return how models of these types stack their experts; None if that is unknown or if the types differ."""
    named = {*models}
    layouts = {layout for known, layout in LAYOUTS if named & {*known}}
    return layouts.pop() if len(layouts) == 1 else None
