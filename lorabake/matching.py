"""The ledger: every tensor of every LoRA is placed on the base, excluded by the recipe, or named in an error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import takewhile
from math import prod

from lorabake.adapters import dora, kinds_of
from lorabake.adapters.experts import EXPERTS
from lorabake.adapters.kind import PROGRAMS, SCALE_OF_ALPHA_0, SKIPPING_STRENGTH_0, Kind, Settings, matrix
from lorabake.architectures import architectures
from lorabake.errors import MatchError
from lorabake.keymap import split_qkv
from lorabake.keymap.embeddings import FOR_ONETRAINER, Vectors, read_vectors
from lorabake.keymap.peft import PeftConfig
from lorabake.keymap.spelling import (
    INDEXED,
    MARKERS,
    REASONS,
    LoraModule,
    components_named,
    flatten,
    pattern_of,
    spell_all,
)
from lorabake.keymap.table import Architecture, KeyMap, Module
from lorabake.keymap.view import Region, View
from lorabake.resolve import GENERIC, LoraSource, Tie, family_of
from lorabake.tensors.emptiness import ADVICE, hollow_words
from lorabake.tensors.formats import way_of
from lorabake.tensors.safetensors import TensorInfo

ALPHA_0 = (
    "its configuration says an alpha of 0, which is no scale; leave the modules out with a block pattern that names "
    'them and the factor 0: blocks: {"…": 0}'
)
RANK_0 = "rank 0: no effect"
"""Why a module without a rank is left out."""

NO_CONFIG = "no alpha tensors and no adapter_config.json: scale 1 is assumed"


@dataclass(frozen=True, slots=True)
class Patch:
    """Hold one change of one parameter of one module.

    `strength` is the user's, all factors in; `scale` the file's own, or None where the alpha tensor in
    `tensors` says it (1 where there is none either); `settings` what the kind took from the file's configuration.
    That alpha is over the rank of one of `parts` parts. `semantics` names a program whose reading is followed.
    """

    lora: int
    module: str
    kind: Kind
    tensors: Mapping[str, TensorInfo]
    view: View
    strength: float
    scale: float | None
    settings: Settings = field(default_factory=dict)
    parts: int = 1
    semantics: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each slot's tensor."""
        return {slot: info.shape for slot, info in self.tensors.items()}

    @property
    def has_dora(self) -> bool:
        """Tell whether a magnitude sets the lengths of the result."""
        return dora.is_in(self.tensors)

    @property
    def share(self) -> float:
        """Return what W(1) − W is multiplied by: the strength, unless `semantics` has another law."""
        return _share(self.kind, self.has_dora, self.semantics, self.strength, self.settings)

    @property
    def sets_all(self) -> bool:
        """Tell whether nothing is left of what it meets."""
        return self.kind.replaces and self.share == 1


@dataclass(slots=True)
class Ledger:
    """Count what became of one LoRA's tensors: applied, or excluded by the recipe and why.

    `embeddings` are learned ones, by token and name, which go to files of their own; `written` counts them by file.
    """

    lora: str
    tensors: int
    family: str | None = None
    applied: int = 0
    modules: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ranks: Counter[int] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)
    embeddings: dict[str, dict[str, Vectors]] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def is_balanced(self) -> bool:
        """Tell whether every tensor is accounted for."""
        embedded = sum(map(len, self.embeddings.values()))
        return self.applied + sum(self.excluded.values()) + embedded == self.tensors


@dataclass(slots=True)
class _Faults:
    """Collect what has no place, to be told at once."""

    unmatched: list[str] = field(default_factory=list)
    misfits: list[tuple[str, str]] = field(default_factory=list)
    strange: list[tuple[str, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.unmatched or self.misfits or self.strange)


class Matcher:
    """Place LoRAs on one base."""

    def __init__(self, key_map: KeyMap, tie: Tie | None = None) -> None:
        self.key_map, self.tie = key_map, tie
        self.spelled = spell_all(key_map)
        self.names: dict[tuple[Region, ...], list[str]] = {}
        for modules in key_map.modules.values():
            for module in modules.values():
                for view in module.views.values():
                    self.names.setdefault(view.regions, []).append(module.name)

    @cached_property
    def _patterns(self) -> dict[str, str]:
        return {pattern_of(name): name for name in reversed(self.spelled)}

    def nearest(self, name: str) -> str:
        """Return a hint at the spelling most like `name`, numbers apart; empty if none is."""
        close = get_close_matches(pattern_of(name), self._patterns, n=1, cutoff=0.6)
        return f"; nearest: {self._patterns[close[0]]}" if close else ""

    def match(self, index: int, lora: LoraSource) -> tuple[list[Patch], Ledger]:
        """Place one LoRA; raise MatchError naming every tensor that is neither placed nor excluded."""
        return _Match(self, index, lora).run()


class _Match:
    def __init__(self, matcher: Matcher, index: int, lora: LoraSource) -> None:
        self.matcher, self.key_map, self.index, self.lora = matcher, matcher.key_map, index, lora
        self.family = family_of(lora.tensors)
        title = self.family[0].title if self.family else None
        self.ledger = Ledger(lora.name, len(lora.checkpoint.tensors), title)
        self.faults = _Faults()
        self.patches: list[Patch] = []
        self.taken: dict[str, list[tuple[int, int, str]]] = {}
        self.globs_used: set[str] = set()
        self.blocks = lora.entry.blocks
        self.unlisted = f"not in components: [{', '.join(lora.entry.components or ())}]"
        self.turned = False
        self.alphas: list[str] = []
        self.apart: Counter[str] = Counter()
        self.sides: dict[str, tuple[int, int]] = {}
        self.follows = False

    def run(self) -> tuple[list[Patch], Ledger]:
        self._check_components()
        for marker in MARKERS.keys() & self.lora.checkpoint.tensors.keys():
            raise MatchError(f"LoRA {self.lora.name!r}: {MARKERS[marker]}")
        indexed = self._indexed_modules()
        self.turned = self._is_turned()
        for module in self.lora.tensors.modules.values():
            self._place(module, indexed.get(module.name))
        for kind, infos in self.lora.tensors.unsupported.items():
            for info in infos:
                if not self._excluded_by_component(info.key, 1):
                    self.faults.strange.append(
                        (info.key, REASONS.get(kind, f"{kind} is not supported by this version"))
                    )
        for info in self.lora.tensors.unknown:
            self._unknown(info)
        if self.faults:
            raise MatchError(self._complaint())
        self._check_announced()
        self._check_alphas()
        if common := self.lora.tensors.common:
            if self.patches:
                self.ledger.applied += common
            else:
                self.ledger.excluded["shared by modules that are left out"] += common
        self._check_globs()
        if not self.ledger.tensors:
            raise MatchError(f"LoRA {self.lora.name!r}: has no tensors, so there is nothing to bake")
        if self.ledger.excluded[self.unlisted] == self.ledger.tensors:
            raise MatchError(f"LoRA {self.lora.name!r}: all of its tensors are {self.unlisted}")
        assert self.ledger.is_balanced, self.ledger
        self._note_embeddings()
        self._note_missing_alpha()
        self._note_semantics()
        self.ledger.notes += [split_qkv.NOTE.format(count=n, source=source) for source, n in self.apart.items()]
        return self.patches, self.ledger

    # -- what the recipe says ------------------------------------------------------------------------

    def _check_components(self) -> None:
        known = [component.name for component in self.key_map.architecture.components]
        everywhere = {component.name for each in architectures() for component in each.components}
        strength = self.lora.entry.strength
        named = [*(self.lora.entry.components or ()), *(strength if isinstance(strength, dict) else ())]
        for name in named:
            if name not in everywhere:
                raise MatchError(
                    f"LoRA {self.lora.name!r}: no component is called {name!r}{_nearest(name, sorted(everywhere))}\n"
                    f"The base ({self.key_map.architecture.title}) has: {', '.join(known)}"
                )

    def _check_globs(self) -> None:
        unused = next((glob for glob in self.blocks if glob not in self.globs_used), None)
        if unused is None:
            return
        paths = {name for patch in self.patches for name in self.matcher.names[patch.view.regions]}
        if any(fnmatchcase(path, unused) for path in paths):
            why = "matches only modules that a pattern before it takes"
        else:
            plain = re.split(r"[*?[]", unused)[0].rstrip(".")
            heads = {".".join(path.split(".")[: plain.count(".") + 1]) for path in paths}
            why = f"matches no module{_nearest(plain, sorted(heads))}"
        raise MatchError(f"LoRA {self.lora.name!r}: blocks pattern {unused!r} {why}")

    def _excluded_by_component(self, key: str, tensors: int, component: str | None = None) -> bool:
        listed = self.lora.entry.components
        if listed is None:
            return False
        named = {component} if component else self._components_named(key)
        if not named or named & set(listed):
            return False
        self.ledger.excluded[self.unlisted] += tensors
        return True

    def _components_named(self, key: str) -> set[str]:
        """Guess the component of a key that the base does not have, by the prefixes of all families."""
        own = components_named(key, self.key_map.architecture.components)
        return own or components_named(key, (part for each in architectures() for part in each.components))

    def _strength(self, component: str, view: View) -> tuple[float, str]:
        """Return a module's strength, and the block pattern that leaves the module out, if one does."""
        strength = self.lora.entry.strength
        if isinstance(strength, dict):
            if component not in strength:
                raise MatchError(
                    f"LoRA {self.lora.name!r}: it has tensors for {component}, and strength says nothing of it\n"
                    f"Add {component}: 0 (or another number) to strength, or leave it out with components."
                )
            strength = strength[component]
        names = self.matcher.names[view.regions]
        for glob, factor in self.blocks.items():
            if any(fnmatchcase(name, glob) or fnmatchcase(f"{component}.{name}", glob) for name in names):
                self.globs_used.add(glob)
                return strength * factor, "" if factor else glob
        return strength, ""

    # -- where a module goes -------------------------------------------------------------------------

    def _place(self, module: LoraModule, indexed: Module | None) -> None:
        size = module.size
        if module.slots.keys() == {"alpha"}:
            self.alphas.append(module.name)
            self.ledger.excluded["alpha without a LoRA: no effect"] += size
            return
        found = [indexed] if indexed else self.matcher.spelled.get(module.name, [])
        config, path = self.lora.config_of(module.name)
        on_experts = not found and config is not None and bool(config.parameters)
        if on_experts and config is not None:
            found = self._stacks(module.name, config)
        listed = self.lora.entry.components
        if listed is not None:
            allowed = [each for each in found if each.component in listed]
            if found and not allowed:
                self._excluded_by_component(module.name, size, found[0].component)
                return
            found = allowed
        if not found:
            if not self._excluded_by_component(module.name, size):
                self.faults.unmatched.append(module.name)
            return
        slots = frozenset(module.slots)
        kinds = (EXPERTS,) if on_experts and slots == EXPERTS.required else kinds_of(slots)
        if not kinds:
            self.faults.strange.append((module.name, f"incomplete or unknown set: {', '.join(sorted(module.slots))}"))
            return
        replaced = frozenset[str]().union(*(kind.required for kind in kinds if kind.replaces))
        whole = replaced & {"whole_weight", "whole_bias"}
        if "whole_weight" in whole and dora.is_in(slots):
            self.faults.strange.append((module.name, "a magnitude beside the weight that it is for"))
            return
        if "whole_weight" in whole and any(kind.low_rank and kind.parameter == "weight" for kind in kinds):
            whole = whole if config is None else frozenset()  # an embedding's or a head's own (save_embedding_layers)
        if whole and not (config and all(config.saves(path, slot) for slot in whole)):
            self.faults.strange.append((module.name, "a whole tensor that no modules_to_save announces"))
            return
        if config is None and "lora_a" in module.slots:
            self.faults.strange.append((module.name, "MLX-LM's adapter_config.json is not there: it has the scale"))
            return
        if why := self._tied(module, found):
            self.faults.strange.append((module.name, why))
            return
        shapes = module.shapes
        fitting = [each for each in found if self._fault(kinds, shapes, each) is None]
        if len(fitting) > 1 and on_experts:
            self.faults.strange.append((module.name, "it fits several stacks of experts, and no name says which"))
            return
        if len(fitting) > 1:
            names = ", ".join(each.component for each in fitting)
            raise MatchError(
                f"LoRA {self.lora.name!r}: {module.name} fits {names}\n"
                f"Say which with components: [{fitting[0].component}]"
            )
        target = (fitting or found)[0]
        strength, left_out_by = self._strength(target.component, next(iter(target.views.values())))
        if strength == 0:
            possible = () if left_out_by or not fitting else kinds
            kinds = tuple(kind for kind in possible if self._acts(kind, module, target))
        if not kinds:
            reason = f"strength 0 by the block pattern {left_out_by!r}" if left_out_by else "strength 0"
            self.ledger.excluded[reason] += size
            return
        if not fitting:
            self.faults.misfits.append((module.name, self._fault(kinds, shapes, target) or ""))
            return
        if on_experts:
            path = f"{_unwrapped(path)}.{target.name.rpartition('.')[2]}"
        elif config:
            path = config.trained(path)
        count = EXPERTS.experts(shapes, target.views["weight"].shape) if kinds == (EXPERTS,) else 1
        if config and (fault := _config_fault(config, path, shapes, count)):
            self.faults.misfits.append((module.name, fault))
            return
        self._apply(module, kinds, target, strength, config, path)

    def _tied(self, module: LoraModule, found: Iterable[Module]) -> str | None:
        """Say why an embedding cannot be changed that is the output head, too; PEFT trains tokens of both at once."""
        tie = self.matcher.tie
        views = [view for each in found for view in each.views.values()]
        if tie is None or all(tie.embedding not in self.matcher.names[view.regions] for view in views):
            return None
        if "tokens" not in module.slots:
            why = "the base uses this embedding as its output head, too; one tensor cannot be changed for one use"
            return None if tie.head else why
        spelled = self.matcher.spelled
        trained = [each.name for each in self.lora.tensors.modules.values() if "tokens" in each.slots]
        if tie.head is None or any(each.name == tie.head for name in trained for each in spelled.get(name, ())):
            return None
        return f"config.json ties it to the output head, whose tokens change, too, and {tie.head} is stored apart"

    def _stacks(self, name: str, config: PeftConfig) -> list[Module]:
        """Find the stacks of experts that a module of trained parameters may be of; the names do not say which."""
        words = dict.fromkeys(parameter.rpartition(".")[2] for parameter in config.parameters)
        places = [self.matcher.spelled.get(f"{_unwrapped(name)}.{each}", []) for each in words]
        return [module for found in places for module in found]

    def _view(self, target: Module, kind: Kind) -> View | None:
        view = target.views.get(kind.parameter)
        if kind.replaces:
            return target.views.get(f"stored_{kind.parameter}", view)
        turned = self.turned and kind.parameter == "weight" and not kind.on_embedding
        if view is not None and turned and len(view.shape) == 2:
            return View(view.regions, (view.shape[1], view.shape[0]), transpose=True)
        return view

    def _fault(self, kinds: tuple[Kind, ...], shapes: Mapping[str, tuple[int, ...]], target: Module) -> str | None:
        if prod(shapes.get("alpha", ())) != 1:
            return f"its alpha has the shape {shapes['alpha']}"
        for kind in kinds:
            view = self._view(target, kind)
            if view is None:
                if kind.where_present:
                    continue
                return f"the base's module has no {kind.parameter}"
            fault = kind.fault(shapes, view.shape)
            has_dora = bool(kind.lengths & shapes.keys())
            if fault is None and has_dora and dora.axis(shapes, view.shape, kind.length_axis) is None:
                fault = "its DoRA magnitude has neither rows nor columns of it"
            if fault is not None:
                size = " × ".join(map(str, view.shape))
                return f"{fault}; the base's {kind.parameter} is {size}{_cause(shapes, view)}"
        return None

    def _apply(
        self,
        module: LoraModule,
        kinds: tuple[Kind, ...],
        target: Module,
        strength: float,
        config: PeftConfig | None,
        path: str,
    ) -> None:
        slots = frozenset(module.slots)
        if any(kind.rank(module.shapes) == 0 for kind in kinds):
            self.ledger.excluded[RANK_0] += module.size
            return
        for kind in kinds:
            view = self._view(target, kind)
            if view is None:
                continue
            tensors = {slot: module.slots[slot] for slot in sorted(kind.claims(slots) - kind.markers)}
            try:
                fields, named = (config.fields, path) if config else (None, module.name)
                settings = kind.settings(fields, named, module.shapes)
                if kind.drawn - slots:
                    largest = self._largest(kind, target.component)
                    settings = {**settings, **kind.redraw(fields, module.shapes, largest)}
                meant = self._meant(kind, module.shapes, view, strength)
            except ValueError as error:
                self.faults.strange.append((module.name, str(error)))
                return
            self.follows |= {**settings, **meant} != settings
            settings = {**settings, **meant}
            for region in view.regions:
                self._take(region, module.name)
            scale = config.scale_of(path) if config and "alpha" not in tensors and kind.alpha_is_scale else None
            if scale == 0:
                scale = self._scale_of_alpha_0()
                if scale is None:
                    self.faults.strange.append((module.name, ALPHA_0))
                    return
            parts = self._parts(module, target) if "alpha" in tensors and kind.low_rank else 1
            semantics = self.lora.entry.semantics or ""
            patch = Patch(self.index, module.name, kind, tensors, view, strength, scale, settings, parts, semantics)
            self.patches.append(patch)
            self.ledger.kinds["DoRA" if dora.is_in(tensors) else kind.title] += 1
            if kind.parameter == "weight" and kind.alpha_is_scale and (kind.low_rank or "alpha" in kind.optional):
                self.ledger.ranks[kind.rank(module.shapes)] += 1
        self.ledger.applied += module.size
        idle = 0 if strength else len(slots.difference(*(kind.claims(slots) for kind in kinds), module.shared))
        if idle:  # of kinds that the program leaves alone at strength 0
            self.ledger.applied -= idle
            self.ledger.excluded["strength 0"] += idle
        self.ledger.modules[target.component] += 1

    # -- what the program makes of it that the recipe names --------------------------------------------

    def _meant(self, kind: Kind, shapes: Mapping[str, tuple[int, ...]], view: View, strength: float) -> Settings:
        """Return the settings by which a kind follows the program; raise ValueError where it cannot."""
        program = self.lora.entry.semantics
        if program is None:
            return {}
        title, has_dora = PROGRAMS[program], bool(kind.lengths & shapes.keys())
        if program not in kind.programs:
            raise ValueError(f"{title} does not read this form of {kind.title}; leave out semantics, or the module")
        if has_dora:
            if program not in kind.dora_in:
                raise ValueError(f"{program} has no law of DoRA on {kind.title} that lorabake knows")
            dora.check(program, shapes)
        by_rows = has_dora and dora.axis(shapes, view.shape, kind.length_axis) == "row"
        if view.is_reordered and program in dora.LENGTHS_OF_THE_BASE and (by_rows or kind.reads_weight):
            what = "DoRA's lengths" if by_rows else "the weight"
            raise ValueError(f"{title} swaps the halves of this module's change, and forgets those of {what}")
        return kind.meant(program, shapes, view.shape, strength)

    def _scale_of_alpha_0(self) -> float | None:
        """Return the scale that the program takes where the configuration's alpha is 0; None if none is known."""
        program = self.lora.entry.semantics
        return 0.0 if program == "peft" else SCALE_OF_ALPHA_0.get(program or "")

    def _acts(self, kind: Kind, module: LoraModule, target: Module) -> bool:
        """Tell whether the program changes the module's parameter at strength 0, too."""
        program, strength = self.lora.entry.semantics, self.lora.entry.strength
        view = self._view(target, kind)
        if program is None or program not in kind.programs or view is None:
            return False
        if program in SKIPPING_STRENGTH_0 and not (isinstance(strength, dict) and any(strength.values())):
            return False
        try:
            settings = kind.meant(program, module.shapes, view.shape, 0.0)
        except ValueError:  # the program fails at it, and goes on without
            return False
        return _share(kind, bool(kind.lengths & module.shapes.keys()), program, 0.0, settings) != 0

    def _largest(self, kind: Kind, component: str) -> tuple[int, int]:
        """Return the most outputs and inputs of the weights that a kind's modules are for, left out or not."""
        if component not in self.sides:
            sides = []
            for module in self.lora.tensors.modules.values():
                if kind.required <= module.slots.keys():
                    found = self.matcher.spelled.get(module.name, [])
                    targets = [each for each in found if self._fault((kind,), module.shapes, each) is None]
                    if not targets:
                        raise ValueError(f"its random matrices depend on {module.name}, which has no place")
                    sides += [view.shape for each in targets[:1] if (view := self._view(each, kind))]
            self.sides[component] = (max(shape[0] for shape in sides), max(shape[1] for shape in sides))
        return self.sides[component]

    def _take(self, region: Region, name: str) -> None:
        for start, stop, other in self.taken.setdefault(region.key, []):
            if start < region.stop and region.start < stop and other != name:
                raise MatchError(
                    f"LoRA {self.lora.name!r}: {other} and {name} both change {region.key}\n"
                    "A file that has one module under two names would be applied twice."
                )
        self.taken[region.key].append((region.start, region.stop, name))

    # -- q, k and v that were trained apart ----------------------------------------------------------

    def _parts(self, module: LoraModule, target: Module) -> int:
        """Count the parts that each have a share of a fused module's rank, and alpha over that share."""
        sizes = self._sizes(target)
        if len(sizes) < 2 or "down" not in module.slots or module.shapes["down"][0] % len(sizes):
            return 1
        said = split_qkv.said_by(self.lora.checkpoint.metadata)
        if said is False or (said is None and not split_qkv.seen_in(module, sizes, self._scales)):
            return 1
        self.apart["metadata" if said else "the zeros in its up"] += 1
        return len(sizes)

    def _sizes(self, target: Module) -> list[int]:
        """List the rows of what a fused module holds."""
        modules = self.key_map.modules[target.component]
        names = (f"{target.name}.{part}" for part in range(len(modules)))
        return [modules[name].views["weight"].rows for name in takewhile(modules.__contains__, names)]

    @cached_property
    def _scales(self) -> set[float]:
        """Collect alpha/rank of the modules that hold one layer."""
        scales = set()
        for module in self.lora.tensors.modules.values():
            targets = self.matcher.spelled.get(module.name, [])
            scale = split_qkv.scale_of(module)
            if scale is not None and targets and len(self._sizes(targets[0])) < 2:
                scales.add(scale)
        return scales

    # -- files that need a look at all modules -------------------------------------------------------

    def _indexed_modules(self) -> dict[str, Module]:
        """Name the modules of index-named files by the order in which their trainer met them."""
        by_component: dict[str, dict[int, LoraModule]] = {}
        for name, module in self.lora.tensors.modules.items():
            if indexed := INDEXED.match(name):
                by_component.setdefault(indexed["component"], {})[int(indexed["index"])] = module
        placed: dict[str, Module] = {}
        for component in self.key_map.architecture.components:
            modules = by_component.get(component.name)
            if not modules or component.name not in self.key_map.modules or sorted(modules) != [*range(len(modules))]:
                continue
            base = self.key_map.modules[component.name]
            for order in component.orders:
                count, rest = divmod(len(modules), len(order.inner))
                blocks = [order.blocks[0].format(i) for i in range(count)] if len(order.blocks) == 1 else order.blocks
                targets = [base.get(f"{block}.{inner}") for block in blocks for inner in order.inner]
                if rest or len(targets) != len(modules):
                    continue
                fits = all(
                    target is not None
                    and modules[i].slots.keys() == {"up", "down"}
                    and self._fault(kinds_of(frozenset(modules[i].slots)), modules[i].shapes, target) is None
                    for i, target in enumerate(targets)
                )
                if fits:
                    placed |= {modules[i].name: target for i, target in enumerate(targets) if target is not None}
                    break
        return placed

    def _is_turned(self) -> bool:
        """Tell whether `fan_in_fan_out` means that this base stores its weights as (in, out).

        PEFT ignores the flag on ordinary linear layers, and a table knows its own; elsewhere shapes decide.
        """
        self.turned = False
        if self.lora.config is None or not self.lora.config.fan_in_fan_out:
            return False
        if self.key_map.architecture.name != GENERIC:
            return False
        straight = turned = squares = matrices = 0
        for module in self.lora.tensors.modules.values():
            kinds = [each for each in kinds_of(frozenset(module.slots)) if each.parameter == "weight"]
            for target in self.matcher.spelled.get(module.name, [])[:1]:
                view = target.views.get("weight")
                if view and kinds and not kinds[0].replaces and not kinds[0].on_embedding and len(view.shape) == 2:
                    rows, columns = view.shape
                    as_is = kinds[0].fault(module.shapes, (rows, columns)) is None
                    other = kinds[0].fault(module.shapes, (columns, rows)) is None
                    straight += as_is and not other
                    turned += other and not as_is
                    squares += as_is and rows == columns
                    matrices += as_is or other
        if matrices and not straight and not turned:
            why = "every weight is square" if squares == matrices else "its tensors would fit either way"
            raise MatchError(
                f"LoRA {self.lora.name!r}: fan_in_fan_out is set and {why}\n"
                "lorabake has no table for this base, so it cannot tell whether its weights are transposed."
            )
        return turned > 0 and straight == 0

    def _unknown(self, info: TensorInfo) -> None:
        vectors = read_vectors(info, self.lora.checkpoint.metadata)
        if self._excluded_by_component(info.key, 1, "embeddings" if vectors else None):
            return
        if vectors is None:
            self.faults.strange.append((info.key, "no known form"))
        elif self.ledger.embeddings.setdefault(vectors.token, {}).setdefault(vectors.name, vectors) is not vectors:
            self.faults.strange.append((info.key, f"a second embedding of {vectors.token!r}"))

    def _check_announced(self) -> None:
        """Ask for the tensors that a configuration announces beside those of its layers."""
        slots = {slot for module in self.lora.tensors.modules.values() for slot in module.slots}
        config = self.lora.config
        if config and config.fields.get("trainable_token_indices") and "tokens" not in slots:
            raise MatchError(
                f"LoRA {self.lora.name!r}: adapter_config says trainable_token_indices, and the file has no such rows"
            )

    def _note_embeddings(self) -> None:
        if self.ledger.embeddings:
            self.ledger.notes.append("learned embeddings stay as they are: no strength and no dtype applies to them")
        names = {name for vectors in self.ledger.embeddings.values() for name in vectors}
        if any(name.endswith(FOR_ONETRAINER) for name in names):
            self.ledger.notes.append(f"only OneTrainer reads embeddings called …{FOR_ONETRAINER}")

    def _check_alphas(self) -> None:
        """Refuse an alpha under another name of a module than that of its factors, which would do without it."""
        places = {name: self.matcher.spelled.get(name, ()) for name in self.alphas}
        for name, view in ((name, each.views.get("weight")) for name, found in places.items() for each in found):
            for patch in self.patches:
                lacks = patch.scale is None and "alpha" in patch.kind.optional and "alpha" not in patch.tensors
                if patch.view == view and lacks:
                    raise MatchError(
                        f"LoRA {self.lora.name!r}: {name}.alpha and {patch.module} are one module under two names\n"
                        "Rename one of them, so that it is told whether that alpha counts."
                    )

    def _note_semantics(self) -> None:
        program = self.lora.entry.semantics
        if program is None or not self.patches:
            return
        title, notes = PROGRAMS[program], self.ledger.notes
        whole = [each for each in self.patches if each.strength != 1 and program in each.kind.whole_in]
        still = {each.module for each in self.patches if not each.strength}
        if whole:
            kinds = ", ".join(dict.fromkeys(patch.kind.title for patch in whole))
            notes.append(f"semantics: {title} applies {kinds} whole at any strength: {len(whole)} modules")
        if still:
            notes.append(f"semantics: {title} changes {len(still)} modules at strength 0, too")
        if not (self.follows or whole or still or any(patch.has_dora for patch in self.patches)):
            notes.append(f"semantics: {program} changes nothing here: {title} has no law of its own for its kinds")

    def _note_missing_alpha(self) -> None:
        silent = [patch for patch in self.patches if patch.scale is None and "alpha" not in patch.tensors]
        if any(patch.module.startswith("base_model.") and "alpha" in patch.kind.optional for patch in silent):
            self.ledger.notes.append(NO_CONFIG)

    # -- errors --------------------------------------------------------------------------------------

    def _complaint(self) -> str:
        name = self.lora.name
        if hollow := hollow_words(self.lora.checkpoint.tensors):
            return f"LoRA {name!r}: {hollow}\n{ADVICE}"
        placeless = {*self.faults.unmatched, *(module for module, _ in self.faults.misfits)}
        if self.family is not None:
            family, module = self.family
            foreign = family is not self.key_map.architecture and module in placeless
            if foreign and not self._base_has_marks(family):
                down = self.lora.tensors.modules[module].shapes.get("down")
                shape = f" {down}" if down else ""
                return f"LoRA {name!r} is for {family.title} (by {module}{shape}); the base is {self._base_words()}"
        if placeless and (packer := way_of(self.key_map.tensors)):
            return (
                f"LoRA {name!r}: the base's weights are packed ({packer}), and this version cannot unpack them\n"
                "Give it the base in float32, float16, bfloat16 or float8."
            )
        lines = []
        if self.faults.unmatched:
            lines += self._group("no such module on the base", [(each, "") for each in self.faults.unmatched])
        if self.faults.misfits:
            lines += self._group("does not fit", self.faults.misfits)
        if self.faults.strange:
            lines += self._group("cannot be baked", self.faults.strange)
        total = len(self.faults.unmatched) + len(self.faults.misfits) + len(self.faults.strange)
        of = len(self.lora.tensors.modules) + sum(map(len, self.lora.tensors.unsupported.values()))
        of += len(self.lora.tensors.unknown)
        reasons = {reason for _, reason in self.faults.strange}
        if len(reasons) == 1 and total == len(self.faults.strange):
            names = dict.fromkeys(pattern_of(each) for each, _ in self.faults.strange)
            more = f" and {len(names) - 3} more patterns" if len(names) > 3 else ""
            return f"LoRA {name!r}: {reasons.pop()}\n{total} of its tensors: {', '.join([*names][:3])}{more}"
        first = f"LoRA {name!r}: {total} of {of} modules have no place on the base ({self._base_words()})"
        return "\n".join([first, *lines])

    def _base_has_marks(self, family: Architecture) -> bool:
        """Tell whether the base, though without a table, has this family's own module names."""
        if self.key_map.architecture.name != GENERIC:
            return False
        flat = {flatten(key) for key in self.key_map.tensors}
        return any(mark.fragment in key for mark in family.marks for key in flat)

    def _base_words(self) -> str:
        base = self.key_map.architecture
        component = base.components[0]
        if component.name not in self.key_map.placed or base.name == GENERIC:
            key = next(iter(self.key_map.tensors), "no tensors")
            return f"of a family without a table (first tensor: {key})"
        layout, prefix = self.key_map.placed[component.name]
        return f"{base.title}, {layout.name} layout (by {prefix}{layout.needs[0].key})"

    def _group(self, title: str, rows: Iterable[tuple[str, str]]) -> list[str]:
        groups: dict[tuple[str, str], list[str]] = {}
        for name, reason in rows:
            groups.setdefault((pattern_of(name), reason), []).append(name)
        lines = [f"  {title}:"]
        for count, ((pattern, reason), names) in enumerate(groups.items()):
            if count == 8:
                lines.append(f"    … and {len(groups) - 8} more patterns")
                break
            hint = self.matcher.nearest(names[0]) if title.startswith("no such") and count < 2 else ""
            lines.append(f"    {pattern} ×{len(names)}{': ' + reason if reason else ''}{hint}")
        return lines


def _share(kind: Kind, has_dora: bool, semantics: str, strength: float, settings: Settings) -> float:
    if has_dora:
        return 1.0 if semantics in dora.STRENGTH_INSIDE else strength
    return 1.0 if semantics in kind.whole_in else kind.share(strength, settings)


def _unwrapped(name: str) -> str:
    """Return the module that PEFT wraps once for each of its tensors."""
    return re.sub(r"(?:\.base_layer)+\Z", "", name)


def _config_fault(config: PeftConfig, path: str, shapes: Mapping[str, tuple[int, ...]], experts: int) -> str | None:
    if config.kind != "LORA":
        return None
    if "down" in shapes and shapes["down"][0] != config.rank_of(path) * experts:
        return f"its rank is {shapes['down'][0] / experts:g}, and adapter_config says {config.rank_of(path)}"
    if config.dora and shapes.keys() & {"down", "lora_a", "embedding_down"} and not dora.is_in(shapes):
        return "adapter_config says use_dora, and there is no magnitude"
    return None


def _cause(shapes: Mapping[str, tuple[int, ...]], view: View) -> str:
    down = shapes.get("down", ())
    if len(down) == 4 and len(view.shape) == 4 and down[1] != view.shape[1] and down[2:] == view.shape[2:]:
        return f" (it reads {down[1]} channels, the base {view.shape[1]}: an inpainting or other special base?)"
    up = shapes.get("up", ())
    if up and view.shape and up[0] == view.shape[0] and matrix(down)[1] != view.columns:
        return " (same outputs, other inputs: another version of the model?)"
    return " (another family, or another size of this one?)" if up else ""


def _nearest(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; nearest: {close[0]}" if close else ""
