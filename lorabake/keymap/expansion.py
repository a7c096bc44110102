"""Expand a family's tables against the header of a base: every module, under every name, with the view of its bytes.

LoRAs play no part here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from lorabake.keymap.experts import SINGLE, ExpertLayout, Seen, single, stacked
from lorabake.keymap.fused import fused, joined
from lorabake.keymap.listing import list_modules
from lorabake.keymap.module import Module, modules_of, whole
from lorabake.keymap.renaming import versions
from lorabake.keymap.table import Architecture, Component, Layout, find
from lorabake.keymap.view import View
from lorabake.tensors.header import Described
from lorabake.visible import short_repr

See = Callable[[Mapping[str, View], Mapping[str, Described], ExpertLayout | None], Iterator[Seen]]


@dataclass(frozen=True, slots=True)
class KeyMap:
    """Expand an architecture against the tensors of one base.

    `placed` says where each component was found; `owner` says which component a base tensor belongs to. `modules` has
    every module under each dotted name of each layout: component -> name -> module. It leaves out names that mean
    different tensors in two layouts. Parts of fused modules also have numbers (`qkv.0`, `qkv.1` …). A tensor that is
    neither weight nor bias is a module by itself, under its full name. `in_memory` has further names that modules get
    when a library loads them; `models` are the model types that decide them. Another module may have such a name on
    the disk. `outside` lists the modules in no component, by their keys. `experts` says how the model stacks its
    experts, if that is known.

    A key map never changes: methods that add names return another one.
    """

    __repr__ = short_repr

    architecture: Architecture
    tensors: Mapping[str, Described]
    models: tuple[str, ...] = ()
    experts: ExpertLayout | None = None
    placed: Mapping[str, tuple[Layout, str]] = field(default_factory=dict)
    owner: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, Mapping[str, Module]] = field(default_factory=dict)
    in_memory: Mapping[str, tuple[Module, ...]] = field(default_factory=dict)
    outside: tuple[Module, ...] = ()

    @property
    def layout(self) -> str:
        """Name the layout of the identifying component."""
        return self.placed[self.architecture.components[0].name][0].name

    @classmethod
    def expand(
        cls,
        architecture: Architecture,
        tensors: Mapping[str, Described],
        models: tuple[str, ...] = (),
        experts: ExpertLayout | None = None,
    ) -> KeyMap:
        """Find each component in the header and list its modules under all their names.

        `models` are the model types in the base's config.json: its own first, then those of its parts.
        """
        places = ((component.name, find(component, tensors)) for component in architecture.components)
        placed = {name: place for name, place in places if place is not None}
        key_map = cls(architecture, tensors, models, experts, placed)
        for component in architecture.components:
            if component.name in placed:
                key_map = key_map._with_modules_of(component)
        return replace(key_map, outside=tuple(key_map._list_outside()))

    def with_single_experts(self, names: Iterable[str]) -> KeyMap:
        """Add each single expert of a mixture, but only under names with the same ending as one of `names`."""
        of_one = [name for name in names if SINGLE.search(name)]
        if not of_one:
            return self
        modules = dict(self.modules)
        for component in self.architecture.components:
            if component.name in self.placed:
                see = partial(single, names=of_one)
                modules[component.name] = self._with_experts(component, modules[component.name], see)
        return replace(self, modules=modules)

    def with_modules(self, further: Iterable[Module]) -> KeyMap:
        """Add modules under further names; raise ValueError if a name already means other rows."""
        modules = {component: dict(named) for component, named in self.modules.items()}
        for module in further:
            if modules[module.component].setdefault(module.name, module).views != module.views:
                raise ValueError(module.name)
        return replace(self, modules=modules)

    def named(self) -> Iterator[Module]:
        """Yield every module under each of its names; the same name may occur on the disk and in memory."""
        for component, modules in self.modules.items():
            yield from modules.values()
            yield from self.in_memory[component]
        yield from self.outside

    def modules_in(self, component: str, layout: str) -> dict[str, Module]:
        """List a component's modules under the names of one layout only: other layouts cannot interfere."""
        return self._list_modules(self.component(component), only=layout)

    def component(self, name: str) -> Component:
        """Return the architecture's component of a name."""
        return next(component for component in self.architecture.components if component.name == name)

    def stored(self, component: Component) -> dict[str, View]:
        """List a component's tensors by their names in the file."""
        return {name: whole(info) for name, info in self._below(component).items()}

    def _with_modules_of(self, component: Component) -> KeyMap:
        """Add one component's modules, and note that its tensors belong to it."""
        owned = {info.key: component.name for info in self._owned_by(component).values()}
        key_map = replace(self, owner={**self.owner, **owned})
        modules = key_map._list_modules(component)
        named = [module for alias in component.aliases for module in alias.resolve(modules)]
        named += [Module(component.name, name, joined(parts)) for name, parts in fused(modules)]
        for module in named:
            if module.views:
                modules.setdefault(module.name, module)
        modules = key_map._with_experts(component, modules, stacked)
        modules, in_memory = key_map._with_names_in_memory(component, modules)
        return replace(
            key_map,
            modules={**self.modules, component.name: modules},
            in_memory={**self.in_memory, component.name: in_memory},
        )

    def _list_modules(self, component: Component, only: str | None = None) -> dict[str, Module]:
        layout, _ = self.placed[component.name]
        return list_modules(component, layout, self._owned_by(component), only)

    def _owned_by(self, component: Component) -> dict[str, Described]:
        """Return the tensors whose longest matching prefix is the component's, by their names below it."""
        _, prefix = self.placed[component.name]
        others = tuple(p for name, (_, p) in self.placed.items() if name != component.name and len(p) > len(prefix))
        return {
            key.removeprefix(prefix): info
            for key, info in self.tensors.items()
            if key.startswith(prefix) and not key.startswith(others)
        }

    def _with_experts(self, component: Component, modules: Mapping[str, Module], see: See) -> dict[str, Module]:
        """Add a mixture's experts under all their names; a name that already means other rows keeps its meaning."""
        named = dict(modules)
        for module in _experts(component.name, modules, self._below(component), self.experts, see):
            if named.setdefault(module.name, module).views == module.views:
                named[module.name] = module
        return named

    def _below(self, component: Component) -> dict[str, Described]:
        _, prefix = self.placed[component.name]
        mine = (key for key in self.tensors if self.owner.get(key) == component.name)
        return {key.removeprefix(prefix): self.tensors[key] for key in mine}

    def _with_names_in_memory(
        self, component: Component, modules: Mapping[str, Module]
    ) -> tuple[dict[str, Module], tuple[Module, ...]]:
        """Add the names that other versions of the loading library give to a component's modules.

        Return two groups: the modules on the disk, completed by parameters that only another version puts into the
        same module; and the modules whose names in memory have another meaning or none on the disk.
        """
        on_disk = dict(modules)
        own = self.stored(component) if component.renamings else {}
        found_names = versions(own, component.renamings, self.models)
        if not found_names:
            return on_disk, ()
        known = {name: [module] for name, module in modules.items()}
        for names in found_names:
            loaded = modules_of(component.name, names)
            infos = {name: self.tensors[view.regions[0].key] for name, view in names.items()}
            for module in (*loaded.values(), *_experts(component.name, loaded, infos, self.experts, stacked)):
                _gather(known.setdefault(module.name, []), module)
        in_memory: list[Module] = []
        for name, alike in known.items():
            if name in on_disk:
                on_disk[name], *alike = alike
            in_memory += alike
        return on_disk, tuple(in_memory)

    def _list_outside(self) -> list[Module]:
        """List the modules of tensors in no component; they count as the identifying component's."""
        first = self.architecture.components[0].name
        tensors = {key: whole(info) for key, info in self.tensors.items() if key not in self.owner}
        return [*modules_of(first, tensors).values()] if first in self.placed else []


def _experts(
    component: str,
    modules: Mapping[str, Module],
    tensors: Mapping[str, Described],
    layout: ExpertLayout | None,
    see: See,
) -> list[Module]:
    """List the expert modules that a component's modules and tensors form."""
    weights = {
        name: module.views["weight"]
        for name, module in modules.items()
        if ".experts." in name and "weight" in module.views
    }
    own = {name: info for name, info in tensors.items() if ".experts." in name}
    experts: dict[str, Module] = {}
    for seen in see(weights, own, layout):  # a stack comes first, and stays if a part equals it
        views = {"weight": seen.view}
        module = Module(component, seen.name, views, seen.stacked, seen.turned, seen.unclear)
        experts.setdefault(seen.name, module)
    return [*experts.values()]


def _gather(alike: list[Module], module: Module) -> None:
    """Add a module to those with its name; if one of them has equal views for shared parameters, merge the two."""
    for place, known in enumerate(alike):
        common = known.views.keys() & module.views.keys()
        if common and all(known.views[parameter] == module.views[parameter] for parameter in common):
            if len(common) < len(module.views):
                alike[place] = replace(known, views={**module.views, **known.views})
            return
    alike.append(module)
