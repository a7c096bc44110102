"""Who could a LoRA's module be? The modules of the base that its name may stand for.

Names are looked up among the spellings of the base's modules. Index-named files number their modules instead. PEFT
names the module around trained experts, not the trained stack itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lorabake.adapters import kinds_of
from lorabake.keymap.module import Module
from lorabake.keymap.names import INDEXED
from lorabake.keymap.peft import PeftConfig
from lorabake.keymap.slots import LoraModule, LoraTensors
from lorabake.keymap.table import IndexOrder
from lorabake.matching import experts
from lorabake.matching.names import BaseNames
from lorabake.matching.refusals.shapes import fault_of
from lorabake.sources.family import GENERIC
from lorabake.sources.loras import LoraSource
from lorabake.sources.recognition import Evidence, is_text


@dataclass(frozen=True, slots=True)
class Candidates:
    """Hold the modules of the base that a LoRA's module may be, judging by its name.

    `spellings` are the spellings that the name may stand for. `config` is the configuration that applies to the
    module, and `path` the module's path there. With `is_unnamed`, the name is only that of the module around a stack
    of experts. `use` is the use of a tied embedding that the module is for, if any.
    """

    module: LoraModule
    places: tuple[Module, ...]
    spellings: tuple[str, ...] = ()
    config: PeftConfig | None = None
    path: str = ""
    is_unnamed: bool = False
    use: Module | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """Hold a prefix that no known trainer writes, and the names that have it."""

    text: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lookup:
    """Look up the names of one LoRA: without an unknown prefix, or by their numbers."""

    base: BaseNames
    lora: LoraSource
    prefix: Prefix
    indexed: Mapping[str, Module]

    def places(self, name: str) -> list[Module]:
        """List the modules of the base that a name may stand for."""
        places = self.base.spelled.get(name, [])
        if not places and self.prefix.text and name.startswith(self.prefix.text):
            return self.base.find(name.removeprefix(self.prefix.text))
        return places

    def config_of(self, name: str) -> tuple[PeftConfig | None, str]:
        """Return the configuration that applies to a module, and the module's path there."""
        return self.lora.config_of(self.base.spelled.word(name))

    def candidates(self, module: LoraModule) -> Candidates:
        """List the modules of the base that a module of the LoRA may be."""
        name = module.name
        places = [self.indexed[name]] if name in self.indexed else self.places(name)
        config, path = self.config_of(name)
        is_unnamed = not places and config is not None and bool(config.parameters)
        if is_unnamed and config is not None:
            places = experts.stacks_of(name, config, self.base)
        spellings = tuple(self.base.spelled.words(name))
        return Candidates(module, tuple(places), spellings, config, path, is_unnamed, self.base.use_of(name))


def look_up(base: BaseNames, lora: LoraSource, names: Iterable[str], evidence: Evidence) -> Lookup:
    """Prepare the lookup of a LoRA's names; `names` are the modules that the recipe does not ignore."""
    return Lookup(base, lora, unknown_prefix(names, base, evidence), by_index(lora.tensors, base))


def unknown_prefix(names: Iterable[str], base: BaseNames, evidence: Evidence) -> Prefix:
    """Return a prefix that no known trainer writes, if all modules of a network have it."""
    if base.key_map.architecture.name == GENERIC or is_text(base.key_map.architecture):
        return Prefix()
    if evidence.families and not evidence.has_own_prefix:
        return Prefix()
    names = [*names]
    strange = [name for name in names if name not in base.spelled and not INDEXED.match(name)]
    components = {module.component for name in names for module in base.spelled.get(name, ())}
    if not strange or any(not component.startswith("text_encoder") for component in components):
        return Prefix()
    strange = [name for name in strange if not base.components_named(name)]
    prefix, behind_it = base.behind_a_prefix(strange)
    return Prefix(prefix, tuple(behind_it)) if prefix and len(behind_it) == len(strange) else Prefix()


def by_index(tensors: LoraTensors, base: BaseNames) -> dict[str, Module]:
    """Name the modules of index-named files by the order in which their trainer visited them."""
    by_component: dict[str, dict[int, LoraModule]] = {}
    for name, module in tensors.modules.items():
        if indexed := INDEXED.match(name):
            by_component.setdefault(indexed["component"], {})[int(indexed["index"])] = module
    placed: dict[str, Module] = {}
    for component in base.key_map.architecture.components:
        modules = by_component.get(component.name)
        if not modules or component.name not in base.key_map.modules or sorted(modules) != [*range(len(modules))]:
            continue
        for order in component.orders:
            places = _in_order(order, len(modules), base.key_map.modules[component.name])
            if len(places) == len(modules) and all(_fits(modules[i], place) for i, place in enumerate(places)):
                placed |= {modules[i].name: place for i, place in enumerate(places) if place is not None}
                break
    return placed


def _in_order(order: IndexOrder, count: int, modules: Mapping[str, Module]) -> list[Module | None]:
    """List the modules in the order in which a trainer visited them, as far as there are complete blocks."""
    number, rest = divmod(count, len(order.inner))
    blocks = [order.blocks[0].format(i) for i in range(number)] if len(order.blocks) == 1 else order.blocks
    return [] if rest else [modules.get(f"{block}.{inner}") for block in blocks for inner in order.inner]


def _fits(module: LoraModule, place: Module | None) -> bool:
    if place is None or module.slots.keys() != {"up", "down"}:
        return False
    return fault_of(kinds_of(frozenset(module.slots)), module.shapes, place) is None
