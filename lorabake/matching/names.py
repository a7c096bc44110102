"""Look up all names of a base's modules; all LoRAs of a recipe use the same index."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice

from lorabake.architectures import architectures
from lorabake.keymap import split_qkv
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.module import Module
from lorabake.keymap.names import pattern_of
from lorabake.keymap.spelling import Prefixes, Sample, Spellings
from lorabake.keymap.view import Picked, Region, View
from lorabake.likeness import MOST, Names, nearest
from lorabake.sources.family import GENERIC
from lorabake.sources.ties import Tie

MOST_BEFORE = 40
"""Most letters of a prefix."""

Sort = tuple[str, str, tuple[int, ...]]
"""What modules of one sort share: component, name without numbers, shape."""


@dataclass(frozen=True, eq=False)
class BaseNames:
    """Look up the modules of one base by their names. Results are cached; no answer ever changes."""

    key_map: KeyMap
    tie: Tie | None = None

    @cached_property
    def spelled(self) -> Spellings:
        """Map every spelling of every module to the modules."""
        return Spellings(self.key_map, self.tie.named if self.tie else ())

    @cached_property
    def _by_place(self) -> dict[tuple[tuple[Region, ...], Picked | None], list[str]]:
        """Map places in the base to the names of the modules there."""
        names: dict[tuple[tuple[Region, ...], Picked | None], list[str]] = {}
        for module in self.key_map.named():
            for view in module.views.values():
                names.setdefault(view.place, []).append(module.name)
        for use in self.tie.named if self.tie else ():
            names[use.views["weight"].place].append(use.name)
        return names

    def names_at(self, view: View) -> list[str]:
        """List the names of the modules at the place of a view."""
        return self._by_place[view.place]

    def names_of(self, module: Module) -> list[str]:
        """List the names of a module, by the first of its parameters."""
        return self.names_at(next(iter(module.views.values())))

    @cached_property
    def _flat(self) -> dict[str, list[Module]]:
        """Map the base's own names, flattened and without prefixes, to its modules."""
        by_name: dict[str, list[Module]] = {}
        for modules in self.key_map.modules.values():
            for name, module in modules.items():
                known = by_name.setdefault(name.replace(".", "_"), [])
                if all(module.views != other.views for other in known):
                    known.append(module)
        return by_name

    def find(self, name: str) -> list[Module]:
        """List the modules of a name in any spelling, or as a flattened name without a prefix."""
        return self.spelled.get(name) or self._flat.get(name, [])

    def use_of(self, name: str) -> Module | None:
        """Return the use of a tied embedding that a LoRA's module is for, if any."""
        return self.tie.use(self.spelled.get(name, ())) if self.tie else None

    @cached_property
    def _prefixes(self) -> Prefixes:
        return Prefixes(self.key_map.architecture.components)

    def components_named(self, key: str) -> set[str]:
        """Guess the components of a key that the base lacks, by the prefixes of all families."""
        return self._prefixes.named(key) or _every_prefix().named(key)

    @cached_property
    def sorts(self) -> Counter[Sort]:
        """Count the base's modules by their sort."""
        return Counter(sort_of(module) for modules in self.key_map.modules.values() for module in modules.values())

    @cached_property
    def _fused(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Map modules that hold several others to the rows of each, by component and name."""
        parts = {
            (component, stem): split_qkv.rows_of_parts(stem, modules)
            for component, modules in self.key_map.modules.items()
            for stem in (name.removesuffix(".0") for name in modules if name.endswith(".0"))
        }
        return {place: rows for place, rows in parts.items() if len(rows) > 1}

    @property
    def has_fused(self) -> bool:
        """Tell whether a module of the base holds several others."""
        return bool(self._fused)

    def rows_of_parts(self, module: Module) -> tuple[int, ...]:
        """List the rows of the modules that a fused one holds; () for any other."""
        return self._fused.get((module.component, module.name), ())

    @cached_property
    def has_stacks(self) -> bool:
        """Tell whether a module of the base is all experts of a mixture."""
        return any(module.stacked for module in self.key_map.named())

    def behind_a_prefix(self, names: Iterable[str]) -> tuple[str, list[str]]:
        """Return the shortest prefix that most names have before a name of the base, and the names with that prefix.

        One name stands for all that differ only in numbers. The prefix is "" if no name has one.
        """
        alike: dict[str, list[str]] = {}
        for name in names:
            alike.setdefault(pattern_of(name), []).append(name)
        longest = max(map(len, self._flat), default=0) + MOST_BEFORE
        by_prefix: dict[str, list[str]] = {}
        for same in alike.values():
            word_starts = re.compile(r"[._:/]").finditer(same[0], max(0, len(same[0]) - longest))
            for cut in (match.end() for match in word_starts):
                if self.find(same[0][cut:]):
                    by_prefix.setdefault(same[0][:cut], []).extend(same)
        prefix = max(by_prefix, key=lambda prefix: (len(by_prefix[prefix]), -len(prefix)), default="")
        return prefix, by_prefix.get(prefix, [])

    @cached_property
    def _samples(self) -> dict[str, list[Sample]]:
        """Return the first module of each pattern of names in each component."""
        samples: dict[str, dict[str, Sample]] = {}
        for sample in islice(self.spelled.samples(), MOST):
            samples.setdefault(pattern_of(sample.module.name), {}).setdefault(sample.module.component, sample)
        return {pattern: [*alike.values()] for pattern, alike in samples.items()}

    @cached_property
    def _sample_names(self) -> Names:
        return Names(self._samples)

    def nearest(self, name: str, components: Collection[str] = ()) -> str:
        """Return a hint at the spelling nearest to `name`, within these components if given; "" if none is near."""

        def wanted(pattern: str) -> list[Sample]:
            samples = self._samples[pattern]
            return [sample for sample in samples if not components or sample.module.component in components]

        alike = self._sample_names.like(name, lambda pattern: bool(wanted(pattern)))
        words = [word for pattern in alike for sample in wanted(pattern) for word in sample.words()]
        spelled = {pattern_of(word): word for word in reversed(words)}
        near = nearest(pattern_of(name), reversed(spelled))
        if near and near == pattern_of(name):
            return f"; {self._numbers_of(near, name, {*alike})}"
        return f"; nearest: {spelled[near]}" if near else ""

    def _numbers_of(self, pattern: str, name: str, patterns: Collection[str]) -> str:
        """Say which names of a pattern the base has, for a name with other numbers; modules have these patterns."""
        samples = [each for each in islice(self.spelled.samples(), MOST) if pattern_of(each.module.name) in patterns]
        words = [word for sample in samples for word in sample.words() if pattern_of(word) == pattern]
        first, last = words[0], words[-1]
        others = first if first == last else f"{first} to {last}"
        return f"the LoRA has {name}, the base {others}"

    @property
    def title(self) -> str:
        """Name the base's family, and the tensor that shows it."""
        architecture = self.key_map.architecture
        component = architecture.components[0]
        if component.name not in self.key_map.placed or architecture.name == GENERIC:
            key = next(iter(self.key_map.tensors), "no tensors")
            return f"of a family without a table (first tensor: {key})"
        layout, prefix = self.key_map.placed[component.name]
        return f"{architecture.title}, {layout.name} layout (by {prefix}{layout.needs[0].key})"


def nearest_words(name: str, names: list[str]) -> str:
    """Return a hint at the nearest of some names; "" if none is near."""
    near = nearest(name, names)
    return f"; nearest: {near}" if near else ""


def sort_of(module: Module) -> Sort:
    """Return the sort of a module of the base."""
    view = module.views.get("weight")
    return module.component, pattern_of(module.name), view.shape if view else ()


@cache
def _every_prefix() -> Prefixes:
    """Collect the prefixes of the components of all families."""
    return Prefixes(part for family in architectures() for part in family.components)
