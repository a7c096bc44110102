"""Spellings: every way in which LoRA files write a module's name.

A LoRA key is a module's name followed by a suffix (`slots`). No name is parsed backward: a module of the base has
its path in each layout, each path may follow any of the prefixes that trainers write, and the LoRA's names are looked
up among these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.module import Module
from lorabake.keymap.names import INDEXED, PARALLEL, PEFT_ROOT, loosened, unwrapped
from lorabake.keymap.table import Component

# A part of a model may be wrapped by PEFT itself: `language_model.base_model.model.layers.0`.
_INNER_ROOT = re.compile(r"(?<=[._])base_model[._](?:module[._])?model[._]")

# Endings of module names that have changed: (today's ending, older ending).
ENDINGS = (
    (".to_q", ".processor.to_q"),  # diffusers' attention processors
    (".to_k", ".processor.to_k"),
    (".to_v", ".processor.to_v"),
    (".to_out.0", ".processor.to_out"),
    (".add_k_proj", ".processor.add_k_proj"),
    (".add_v_proj", ".processor.add_v_proj"),
    (".to_out.0", ".to_out"),
    (".self_attn.q_proj", ".self_attn.to_q"),  # the same, on text encoders
    (".self_attn.k_proj", ".self_attn.to_k"),
    (".self_attn.v_proj", ".self_attn.to_v"),
    (".self_attn.out_proj", ".self_attn.to_out"),
)

_END = 6
"""How many last words of a name distinguish most modules of a base: layers.3.self_attn.q_proj."""


def endings(path: str) -> list[str]:
    """List a module's path and its variants with older endings."""
    return [path, *(path.removesuffix(new) + old for new, old in ENDINGS if path.endswith(new))]


def spell(component: Component, prefix: str, path: str) -> Iterator[str]:
    """Yield every spelling that a LoRA file could use for one module path of a component.

    `prefix` is the base's own prefix of the component, which a LoRA file may use, too.
    """
    for name in _paths(component, path):
        yield from (start + name.replace(".", "_") for start in _flat_starts(component))
        yield from (start + name for start in _dotted_starts(component, prefix))


def _paths(component: Component, path: str) -> list[str]:
    """List a module's names below any prefix: with today's and older endings, with and without optional words."""
    paths = endings(path)
    paths += [name.removeprefix(word) for word in component.optional for name in paths if name.startswith(word)]
    return paths + [word + name for word in component.optional for name in tuple(paths)]


def _further_paths(component: Component, path: str) -> Iterator[str]:
    """Yield a module's names with its root replaced by the others of the same group."""
    for group in component.roots:
        for name in _paths(component, path):
            root = max((root for root in group if name.startswith(root)), key=len, default=None)
            if root is not None:
                yield from (other + name.removeprefix(root) for other in group if other != root)


def _flat_starts(component: Component) -> tuple[str, ...]:
    """List the prefixes that may come before a path with underscores for dots."""
    oft = ("oft_unet_",) if "lora_unet_" in component.flat else ()  # kohya's OFT
    return (*component.flat, *oft, "lycoris_")


def _dotted_starts(component: Component, prefix: str) -> tuple[str, ...]:
    """List the prefixes that may come before a dotted path; `prefix` is the base's own."""
    roots = [root for start in component.dotted for root in (start, start + PEFT_ROOT, PEFT_ROOT + start)]
    return tuple(dict.fromkeys(("", PEFT_ROOT, *roots, prefix)))


def _at_last(component: Component) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """List the prefixes, of dotted and of flat paths, that are tried only if a name has no other meaning."""
    dotted = tuple(start for start in component.at_last if start.endswith("."))
    rooted = tuple(start + PEFT_ROOT for start in dotted)
    return dotted + rooted, tuple(start for start in component.at_last if not start.endswith("."))


class _Names:
    """Hold the prefixes of a group, and its modules by path: all dotted, or all with `_` for dots."""

    def __init__(self, starts: tuple[str, ...]) -> None:
        self.starts = starts
        self.modules: dict[str, list[Module]] = {}

    def find(self, name: str) -> Iterator[Module]:
        """Yield the modules of that name."""
        for start in self.starts:
            if name.startswith(start):
                yield from self.modules.get(name[len(start) :], ())

    def find_alike(self, name: str) -> Iterator[str]:
        """Yield the spellings that equal `name` after loosening; `name` is loosened already."""
        for loose, start in self._loose_starts.items():
            if name.startswith(loose):
                yield from (start + path for path in self._loose_paths.get(name[len(loose) :], ()))

    @cached_property
    def _loose_starts(self) -> dict[str, str]:
        return {loosened(start) and f"{loosened(start)}_": start for start in reversed(self.starts)}

    @cached_property
    def _loose_paths(self) -> dict[str, list[str]]:
        paths: dict[str, list[str]] = {}
        for path in self.modules:
            paths.setdefault(loosened(path), []).append(path)
        return paths


@dataclass(frozen=True, slots=True)
class Sample:
    """Hold one module under one of its names, with the component and the prefix that its spellings are made of."""

    group: int
    component: Component
    prefix: str
    module: Module

    def words(self) -> Iterator[str]:
        """Yield its spellings."""
        return spell(self.component, self.prefix, self.module.name)


class Spellings(Mapping[str, list[Module]]):
    """Map every spelling of every module of a base to its modules; an ambiguous spelling has several.

    `named` are modules whose names always mean them, even if other modules have the same name.

    A name that is no spelling stands for those spellings that differ from it only in dots, underscores and wrappers
    of training: `lora_unet_blocks_0.attn.q`, `module.blocks.0.attn.q`. If there are none, spellings with other roots
    are tried.
    """

    def __init__(self, key_map: KeyMap, named: Iterable[Module] = ()) -> None:
        self._key_map, self._named = key_map, tuple(named)
        self._all = [*self.samples()]
        self._names = _list(self._all, _paths)
        self._found: dict[str, dict[str, list[Module]]] = {}
        self._listed: dict[tuple[str, ...], tuple[list[_Names], list[_Names]]] = {}

    def words(self, name: str) -> Mapping[str, list[Module]]:
        """Return the spellings that a name may stand for, with their modules.

        An exact spelling stands for itself. Otherwise each spelling in the result leads to other modules.
        """
        spellings = self._found.get(name)
        if spellings is None:
            modules = self._exactly(name, self._names)
            spellings = {name: modules} if modules else self._words_like(name)
            if not spellings and (inner := _INNER_ROOT.sub("", name)) != name:
                spellings = dict(self.words(inner))
            self._found[name] = spellings
        return spellings

    def word(self, name: str) -> str:
        """Return the spelling that a name stands for; if there is none, the name without wrappers of training."""
        return next(iter(self.words(name)), PARALLEL.sub("", name))

    def __getitem__(self, name: str) -> list[Module]:
        """Return the modules of that name."""
        if not (words := self.words(name)):
            raise KeyError(name)
        return [module for modules in words.values() for module in modules]

    def __iter__(self) -> Iterator[str]:
        """Yield every spelling."""
        return iter(dict.fromkeys(word for sample in self.samples() for word in sample.words()))

    def samples(self) -> Iterator[Sample]:
        """Yield every module with all that its spellings are made of."""
        for group, (component, prefix, modules) in enumerate(self._groups()):
            for module in modules:
                yield Sample(group, component, prefix, module)

    def __len__(self) -> int:
        """Count the spellings."""
        return sum(1 for _ in self)

    def _words_like(self, name: str) -> dict[str, list[Module]]:
        """Return the spellings that a name resembles; to save time, spell only modules with its ending."""
        ends = tuple(end for end in _ends(loosened(name)) if end in self._by_end)
        if ends not in self._listed:
            places = sorted({place for end in ends for place in self._by_end[end]})
            samples = [self._all[place] for place in places]
            further = _list(samples, _further_paths) + _list(samples, _paths, at_last=True)
            self._listed[ends] = _list(samples, _paths), further
        alike, further = self._listed[ends]
        return self._words(name, alike) or self._words(name, further)

    @cached_property
    def _by_end(self) -> dict[str, list[int]]:
        """Map the endings of spellings to the positions of their modules in `_all`."""
        places: dict[str, list[int]] = {}
        for place, sample in enumerate(self._all):
            paths = endings(sample.module.name)
            for end in dict.fromkeys(end for path in paths for end in _common_ends(sample.component, path)):
                places.setdefault(end, []).append(place)
        return places

    def _groups(self) -> Iterator[tuple[Component, str, Iterable[Module]]]:
        """Yield modules in groups of equal prefixes: a component's, its names in memory, those in no component."""
        key_map = self._key_map
        for component in key_map.architecture.components:
            if component.name in key_map.placed:
                yield component, key_map.placed[component.name][1], key_map.modules[component.name].values()
                bare = Component(component.name, (), optional=component.optional)
                yield bare, "", key_map.in_memory[component.name]
        yield Component("", ()), "", key_map.outside
        for use in self._named:
            component = key_map.component(use.component)
            yield component, key_map.placed[component.name][1], (use,)

    def _words(self, name: str, listed: list[_Names]) -> dict[str, list[Module]]:
        """Return a name as its own spelling, or else the spellings that it resembles."""
        if modules := self._exactly(name, listed):
            return {name: modules}
        spellings: dict[str, list[Module]] = {}
        loose = loosened(name)
        for word in (word for names in listed for word in names.find_alike(loose)):
            modules = self._exactly(word, listed)
            if all(
                [module.views for module in modules] != [module.views for module in known]
                for known in spellings.values()
            ):
                spellings[word] = modules
        return spellings

    def _exactly(self, name: str, listed: list[_Names]) -> list[Module]:
        """List the modules with exactly this name; those with equal views count as one."""
        modules: list[Module] = []
        for module in (module for names in listed for module in names.find(name)):
            if any(module is use for use in self._named):
                return [module]
            if all(module.views != other.views for other in modules):
                modules.append(module)
        return modules


def _list(
    samples: Iterable[Sample], paths: Callable[[Component, str], Iterable[str]], *, at_last: bool = False
) -> list[_Names]:
    listed = []
    for _, alike in groupby(samples, key=lambda sample: sample.group):
        group = [*alike]
        component, prefix = group[0].component, group[0].prefix
        starts = _at_last(component) if at_last else (_dotted_starts(component, prefix), _flat_starts(component))
        dotted, flat = map(_Names, starts)
        for module in (sample.module for sample in group):
            for path in paths(component, module.name):
                dotted.modules.setdefault(path, []).append(module)
                flat.modules.setdefault(path.replace(".", "_"), []).append(module)
        listed += [dotted, flat] if dotted.modules else []
    return listed


def _ends(loose: str) -> Iterator[str]:
    """Yield the endings of a loosened name: its last word, its last two words, and so on up to `_END`."""
    words = loose.split("_")
    for count in range(1, min(_END, len(words)) + 1):
        yield "_".join(words[-count:])


def _common_ends(component: Component, path: str) -> Iterator[str]:
    """Yield the endings of a path's spellings, also of those whose beginning may be replaced."""
    begins = [*component.optional, *(root for group in component.roots for root in group)]
    rests = [path, *(path.removeprefix(begin) for begin in begins if begin and path.startswith(begin))]
    others = (group for group in component.roots if path in group)
    for rest in (*rests, *(root for group in others for root in group)):
        yield "_".join(loosened(rest).split("_")[-_END:])


class Prefixes:
    """Tell from a LoRA key's prefix which components it belongs to."""

    def __init__(self, components: Iterable[Component]) -> None:
        self._components: dict[str, set[str]] = {}
        for component in components:
            for prefix in (*component.flat, *component.dotted):
                self._components.setdefault(prefix, set()).add(component.name)
        self._lengths = sorted({*map(len, self._components)}, reverse=True)

    def named(self, key: str) -> set[str]:
        """Return the components with the longest prefix that the key starts with."""
        if indexed := INDEXED.match(key):
            return {indexed["component"]}
        key = unwrapped(key)
        starts = (key, key.removeprefix(PEFT_ROOT)) if key.startswith(PEFT_ROOT) else (key,)
        for length in self._lengths:
            if names := [self._components[start[:length]] for start in starts if start[:length] in self._components]:
                return set().union(*names)
        return set()
