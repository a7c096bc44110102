"""The ledger: every tensor of every LoRA is placed on the base, excluded by the recipe, or named in an error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, cached_property
from itertools import islice
from math import prod

from lorabake.adapters import dora, kinds_of
from lorabake.adapters.experts import EXPERTS
from lorabake.adapters.kind import Kind
from lorabake.adapters.programs import PROGRAMS, SCALE_OF_ALPHA_0, SKIPPING_STRENGTH_0
from lorabake.adapters.settings import Settings
from lorabake.adapters.shapes import matrix
from lorabake.adapters.tokens import rows_of
from lorabake.architectures import architectures
from lorabake.codecs.codec import Stored
from lorabake.errors import MatchError, lines_of
from lorabake.keymap import split_qkv
from lorabake.keymap.embeddings import FOR_ONETRAINER, read_vectors
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.experts import STACKS, side_of_a
from lorabake.keymap.module import Module
from lorabake.keymap.names import INDEXED, pattern_of
from lorabake.keymap.peft import PeftConfig
from lorabake.keymap.said import Said
from lorabake.keymap.slots import MARKERS, REASONS, LoraModule
from lorabake.keymap.spelling import Prefixes, Sample, Spellings
from lorabake.keymap.table import Architecture
from lorabake.keymap.view import Picked, Region, View
from lorabake.likeness import MOST, Names, nearest
from lorabake.matching.alike import are_alike
from lorabake.matching.ledger import RANK_0, Ledger
from lorabake.matching.leftovers import by_end, line_for
from lorabake.matching.patches import Patch
from lorabake.sources.family import GENERIC
from lorabake.sources.loras import LoraSource
from lorabake.sources.recognition import (
    TELLING,
    TEXT,
    TEXT_ENCODER,
    find_family,
    is_text,
    kinship,
    knows,
    recognise,
    titles,
)
from lorabake.sources.ties import Tie
from lorabake.storage.recognition import way_of
from lorabake.tensors.emptiness import ADVICE, hollow_words
from lorabake.visible import visible

NOT_ANNOUNCED = (
    "a whole tensor that no modules_to_save announces; if it is to replace the base's, name its module there, in "
    "adapter_config.json"
)
WITHOUT_MLX_CONFIG = (
    "MLX-LM's adapter_config.json is not there: it has the scale; put it beside the file, or write one that says "
    '{"lora_parameters": {"scale": …}}'
)
AS_TODAY = "no peft_version says which PEFT trained it: {count} modules are read as today's does ({doubt})"
ALPHA_0 = (
    "its configuration says an alpha of 0, which is no scale; leave the modules out with a block pattern that names "
    'them and the factor 0: blocks: {"…": 0}'
)
NO_CONFIG = "no alpha tensors and no adapter_config.json: scale 1 is assumed"
MOST_BEFORE = 40
"""Letters of what trainers are known to write before a name."""

IGNORED = "ignored by the recipe: {glob!r}"
FOR_NONE = "shared by modules that are left out"

Sort = tuple[str, str, tuple[int, ...]]
"""What modules of one sort have in common: component, name but for its numbers, shape."""

SAYS_WHOSE = ("ss_base_model_version", "modelspec.architecture")
"""What metadata says of the base that a LoRA was trained on: a hint, since some say wrong things."""


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
        self.spelled = Spellings(key_map, tie.named if tie else ())
        self.prefixes = Prefixes(key_map.architecture.components)
        self.names: dict[tuple[tuple[Region, ...], Picked | None], list[str]] = {}
        for module in key_map.named():
            for view in module.views.values():
                self.names.setdefault(view.place, []).append(module.name)
        for use in tie.named if tie else ():
            self.names[use.views["weight"].place].append(use.name)

    def use_of(self, name: str) -> Module | None:
        """Return the use of a tied embedding that a LoRA's module is for, if it is for one."""
        return self.tie.use(self.spelled.get(name, ())) if self.tie else None

    @cached_property
    def _samples(self) -> dict[str, list[Sample]]:
        """Group modules by the patterns of their names: of those of one component that are alike, the first."""
        samples: dict[str, dict[str, Sample]] = {}
        for sample in islice(self.spelled.samples(), MOST):
            samples.setdefault(pattern_of(sample.module.name), {}).setdefault(sample.module.component, sample)
        return {pattern: [*alike.values()] for pattern, alike in samples.items()}

    @cached_property
    def _sample_names(self) -> Names:
        return Names(self._samples)

    @cached_property
    def _flat(self) -> dict[str, list[Module]]:
        """Map the base's own names, flattened and without any prefix, to its modules."""
        found: dict[str, list[Module]] = {}
        for modules in self.key_map.modules.values():
            for name, module in modules.items():
                known = found.setdefault(name.replace(".", "_"), [])
                if all(module.views != other.views for other in known):
                    known.append(module)
        return found

    @cached_property
    def sorts(self) -> Counter[Sort]:
        """Count the base's modules by their sort."""
        return Counter(sort_of(each) for modules in self.key_map.modules.values() for each in modules.values())

    def find(self, name: str) -> list[Module]:
        """List the modules of a name in any spelling, or in none but flattened."""
        return self.spelled.get(name) or self._flat.get(name, [])

    def behind_a_prefix(self, names: Iterable[str]) -> tuple[str, list[str]]:
        """Return the shortest prefix that most names have before a name of the base, and the names that have it.

        Of names that differ in numbers alone one is asked for all. The prefix is "" where none has one.
        """
        alike: dict[str, list[str]] = {}
        for name in names:
            alike.setdefault(pattern_of(name), []).append(name)
        longest = max(map(len, self._flat), default=0) + MOST_BEFORE
        found: dict[str, list[str]] = {}
        for same in alike.values():
            begins = re.compile(r"[._:/]").finditer(same[0], max(0, len(same[0]) - longest))
            for cut in (match.end() for match in begins):
                if self.find(same[0][cut:]):
                    found.setdefault(same[0][:cut], []).extend(same)
        prefix = max(found, key=lambda prefix: (len(found[prefix]), -len(prefix)), default="")
        return prefix, found.get(prefix, [])

    def nearest(self, name: str, components: Collection[str] = ()) -> str:
        """Return a hint at the spelling most like `name`, of these components if any; empty if none is."""

        def wanted(pattern: str) -> list[Sample]:
            samples = self._samples[pattern]
            return [each for each in samples if not components or each.module.component in components]

        alike = self._sample_names.like(name, lambda pattern: bool(wanted(pattern)))
        words = [word for pattern in alike for sample in wanted(pattern) for word in sample.words()]
        spelled = {pattern_of(word): word for word in reversed(words)}
        near = nearest(pattern_of(name), reversed(spelled))
        return f"; nearest: {spelled[near]}" if near else ""

    def match(self, index: int, lora: LoraSource) -> tuple[list[Patch], Ledger]:
        """Place one LoRA; raise MatchError naming every tensor that is neither placed nor excluded."""
        return _Match(self, index, lora).run()


class _Match:
    def __init__(self, matcher: Matcher, index: int, lora: LoraSource) -> None:
        self.matcher, self.key_map, self.index, self.lora = matcher, matcher.key_map, index, lora
        self.evidence = recognise(lora.tensors)
        self.ledger = Ledger(lora.name, len(lora.checkpoint.tensors), self._title())
        self.modules = dict(lora.tensors.modules)
        self.prefix = ""
        self.faults = _Faults()
        self.patches: list[Patch] = []
        self.taken: dict[str, list[tuple[range, Picked | None, str]]] = {}
        self.paths: set[str] = set()
        self.globs_used: set[str] = set()
        self.blocks = lora.entry.blocks
        self.unlisted = f"not in components: [{', '.join(lora.entry.components or ())}]"
        self.turned = False
        self.alphas: list[str] = []
        self.apart: Counter[str] = Counter()
        self.doubts: Counter[str] = Counter()
        self.sides: dict[str, tuple[tuple[int, int], str]] = {}
        self.follows = False

    def run(self) -> tuple[list[Patch], Ledger]:
        self._check_components()
        said = self._said_family()
        ignored = self._ignored()
        for marker in MARKERS.keys() & self.lora.checkpoint.tensors.keys() - ignored:
            raise MatchError(f"LoRA {self.lora.name!r}: {MARKERS[marker]}")
        indexed = self._indexed_modules()
        self._look_behind_a_prefix()
        self.turned = self._is_turned()
        for module in self.modules.values():
            self._place(module, indexed.get(module.name))
        for kind, infos in self.lora.tensors.unsupported.items():
            for info in infos:
                if info.key not in ignored and not self._excluded_by_component(info.key, 1):
                    self.faults.strange.append(
                        (info.key, REASONS.get(kind, f"{kind} is not supported by this version"))
                    )
        for info in self.lora.tensors.unknown:
            if info.key not in ignored:
                self._unknown(info)
        for shared, own in self.lora.tensors.unlike:
            self.faults.strange.append(
                (shared.key, f"it is {shared.shape}, and its copy {visible(own.key)} is {own.shape}")
            )
        if self.faults:
            raise MatchError(*self._complaint(said))
        self._check_family(said)
        self._check_announced()
        self._check_alphas()
        if common := self.lora.tensors.common:
            placed = {patch.module for patch in self.patches}
            if any(module.shared for name, module in self.modules.items() if name in placed):
                self.ledger.applied += common
            else:
                self.ledger.excluded[FOR_NONE] += common
        self._check_globs()
        if not self.ledger.tensors:
            raise MatchError(f"LoRA {self.lora.name!r}: has no tensors, so there is nothing to bake")
        if self.ledger.excluded[self.unlisted] == self.ledger.tensors:
            raise MatchError(f"LoRA {self.lora.name!r}: all of its tensors are {self.unlisted}")
        if globs := self.lora.entry.ignore:
            left_out = (self.unlisted, FOR_NONE, *(IGNORED.format(glob=glob) for glob in globs))
            if sum(self.ledger.excluded[reason] for reason in left_out) == self.ledger.tensors:
                raise MatchError(f"LoRA {self.lora.name!r}: ignore leaves nothing of it to bake")
        assert self.ledger.is_balanced, self.ledger
        self._note_embeddings()
        self._note_missing_alpha()
        self._note_semantics()
        self.ledger.notes += [AS_TODAY.format(count=n, doubt=doubt) for doubt, n in self.doubts.items()]
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
                    f"LoRA {self.lora.name!r}: no component is called {name!r}{_nearest(name, sorted(everywhere))}",
                    f"The base ({self.key_map.architecture.title}) has: {', '.join(known)}",
                )

    def _said_family(self) -> Architecture | None:
        """Return the family that the recipe says the LoRA was trained on; raise MatchError where it cannot be."""
        name = self.lora.entry.trained_on
        if name is None:
            return None
        family = find_family(name)
        if family is None or family.name == GENERIC:
            known = sorted(each.name for each in architectures() if each.components and each.name != GENERIC)
            raise MatchError(
                f"LoRA {self.lora.name!r}: trained_on: no family is called {name!r}{_nearest(name, known)}"
            )
        could_be = self.evidence.could_be
        if could_be and family not in could_be and not self.evidence.is_text:
            module = self.evidence.seen_by(self.lora.tensors.modules)
            raise MatchError(
                f"LoRA {self.lora.name!r}: trained_on says {family.title}, and its modules are those of "
                f"{titles(could_be)} (such as {module})"
            )
        return family

    def _ignored(self) -> set[str]:
        """Take out the modules that the recipe ignores; return the keys of other tensors that it ignores.

        A glob matches a module by its name in the file, by a name that the base has for it, or by the keys of all its
        tensors. A tensor of no module goes by its key.
        """
        globs, tensors = self.lora.entry.ignore or (), self.lora.tensors
        outside = {info.key for infos in (tensors.unknown, *tensors.unsupported.values()) for info in infos}
        first: dict[str, str] = {}
        for glob in globs:
            matching = [key for key in outside if fnmatchcase(key, glob)]
            matching += [module.name for module in tensors.modules.values() if self._is_matched(module, glob)]
            if not matching:
                start = f"LoRA {self.lora.name!r}: ignore pattern {glob!r} "
                raise MatchError(*lines_of(start, self._why_idle(glob)))
            for name in matching:
                first.setdefault(name, glob)
        for name, glob in first.items():
            module = self.modules.pop(name, None)
            self.ledger.excluded[IGNORED.format(glob=glob)] += module.size if module else 1
        return outside & first.keys()

    def _is_matched(self, module: LoraModule, glob: str) -> bool:
        names = [module.name]
        for target in self.matcher.spelled.get(module.name, ()):
            own = [name for view in target.views.values() for name in self.matcher.names[view.place]]
            names += own + [f"{target.component}.{name}" for name in own]
        keys = module.own_keys
        return any(fnmatchcase(name, glob) for name in names) or (
            bool(keys) and all(fnmatchcase(key, glob) for key in keys)
        )

    def _why_idle(self, glob: str) -> str:
        """Say why a glob leaves nothing out."""
        modules = self.lora.tensors.modules.values()
        partly = next((key for each in modules for key in each.own_keys if fnmatchcase(key, glob)), None)
        if partly is not None:
            such = visible(partly)
            return f"matches some tensors of a module alone, such as {such}\nOnly whole modules can be left out."
        ends = {end: None for name in self.lora.tensors.modules for end in (by_end(name), pattern_of(name))}
        return f"matches nothing in the file{visible(_nearest(glob, [*ends]))}"

    def _check_globs(self) -> None:
        unused = next((glob for glob in self.blocks if glob not in self.globs_used), None)
        if unused is None:
            return
        if any(fnmatchcase(path, unused) for path in self.paths):
            why = "matches only modules that a pattern before it takes"
        else:
            plain = re.split(r"[*?[]", unused)[0].rstrip(".")
            heads = {".".join(path.split(".")[: plain.count(".") + 1]) for path in self.paths}
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
        return self.matcher.prefixes.named(key) or every_prefix().named(key)

    def _strength(self, component: str, view: View) -> tuple[float, str]:
        """Return a module's strength, and the block pattern that leaves the module out, if one does."""
        strength = self.lora.entry.strength
        if isinstance(strength, dict):
            if component not in strength:
                raise MatchError(
                    f"LoRA {self.lora.name!r}: it has tensors for {component}, and strength says nothing of it",
                    f"Add {component}: 0 (or another number) to strength, or leave it out with components.",
                )
            strength = strength[component]
        names = self.matcher.names[view.place]
        for glob, factor in self.blocks.items():
            if any(fnmatchcase(name, glob) or fnmatchcase(f"{component}.{name}", glob) for name in names):
                self.globs_used.add(glob)
                return strength * factor, "" if factor else glob
        return strength, ""

    # -- whose it is -----------------------------------------------------------------------------------

    def _title(self) -> str | None:
        base = self.key_map.architecture
        return base.title if base in self.evidence.families else self.evidence.title

    def _check_family(self, said: Architecture | None) -> None:
        """Refuse a LoRA that fits whole and is another family's; note where that is allowed or cannot be told."""
        base, evidence, notes = self.key_map.architecture, self.evidence, self.ledger.notes
        if said is not None:
            self.ledger.family = said.title
            why = kinship(said, base)
            on = f" on {base.title}" if said is not base else ""
            notes.append(f"a LoRA of {said.title}{on}, as the recipe says{f': {why}' if why else ''}")
            return
        if evidence.is_text or base.name == GENERIC:
            return
        foreign, seen_by = self._foreign_sort()
        if foreign:
            elder = next((each for each in foreign if kinship(each, base)), None)
            if elder is None:
                raise MatchError(*self._foreign(foreign, seen_by))
            notes.append(f"a LoRA of {elder.title} on {base.title}: {kinship(elder, base)}")
            return
        families = evidence.sure or (evidence.could_be if self._short else ())
        others = [each for each in families if each is not base and base.name not in {kin.family for kin in each.kin}]
        elder = next((each for each in others if kinship(base, each)), None)
        if elder is not None:
            notes.append(f"it may as well be a LoRA of {elder.title}: {kinship(base, elder)}")
        elif others:
            metadata = self.lora.checkpoint.metadata
            told = [f"{name}: {metadata[name]}" for name in SAYS_WHOSE if metadata.get(name)]
            hint = f" (its metadata says {', '.join(told)})" if told else ""
            is_own = not self._short or base in evidence.sure  # the base at hand counts, whatever was released
            self.ledger.family = titles([base] if is_own or base in families else [base, *others])
            doubt = "" if is_own else "its modules do not tell whose it is: "
            notes.append(f"{doubt}it may as well be a LoRA of {titles(others, len(others))}{hint}")

    def _foreign_sort(self) -> tuple[tuple[Architecture, ...], str]:
        """List the families of one of which it is, not the base's, though all that is not ignored fits; say by what.

        That is so where such a family has no other modules of some sort, and the base has. At most half of the
        base's blocks may be those that were chosen for training, unless the LoRA has all of another sort.
        """
        base, evidence = self.key_map.architecture, self.evidence
        if evidence.is_text or base.name == GENERIC or base in evidence.sure:
            return (), ""
        for sort, names in sorted(self._short.items(), key=lambda each: -len(each[1])):
            if len(names) < TELLING or (2 * len(names) <= self.matcher.sorts[sort] and not self._has_a_whole_sort):
                continue
            complete = tuple(each for each in evidence.whole if evidence.complete[each.name] >= names)
            if others := evidence.filled or complete:
                return others, f"{len(names)} {sort[1]}, of which the base has {self.matcher.sorts[sort]}"
        ignored = self.lora.tensors.modules.keys() - self.modules.keys()
        seen_by = evidence.seen_by(sorted(ignored)) if evidence.filled and base not in evidence.could_be else None
        return (evidence.filled, seen_by) if seen_by else ((), "")

    @cached_property
    def _sorts(self) -> dict[Sort, dict[str, str]]:
        """Group the modules that have a place in the base's network by its sorts: the base's name -> the LoRA's."""
        found: dict[Sort, dict[str, str]] = {}
        for name in self.lora.tensors.modules:
            for target in self._targets(name)[:1]:
                if not target.component.startswith("text_encoder"):
                    found.setdefault(sort_of(target), {})[target.name] = name
        return found

    @cached_property
    def _short(self) -> dict[Sort, set[str]]:
        """Collect the modules of each sort of which the base has more than the LoRA; none of a filled base."""
        found = self._sorts.items() if self.key_map.architecture not in self.evidence.filled else ()
        return {sort: {*names.values()} for sort, names in found if len(names) < self.matcher.sorts[sort]}

    @property
    def _has_a_whole_sort(self) -> bool:
        sorts = self._sorts.items()
        return any(TELLING <= len(names) == self.matcher.sorts[sort] for sort, names in sorts)

    def _foreign(self, families: tuple[Architecture, ...], seen_by: str) -> list[str]:
        return [
            f"LoRA {self.lora.name!r} is for {titles(families)} (by {seen_by}); the base is {self._base_words()}",
            f"To bake it there all the same, add to this LoRA: trained_on: {families[0].name}",
        ]

    def _look_behind_a_prefix(self) -> None:
        """Find a prefix that nobody is known to write, before the names of all modules of a network."""
        if self.key_map.architecture.name == GENERIC or is_text(self.key_map.architecture):
            return
        if self.evidence.families and not self.evidence.has_own_prefix:
            return
        strange = [name for name in self.modules if name not in self.matcher.spelled and not INDEXED.match(name)]
        placed = {each.component for name in self.modules for each in self.matcher.spelled.get(name, ())}
        if not strange or any(not component.startswith("text_encoder") for component in placed):
            return
        strange = [name for name in strange if not self._components_named(name)]
        prefix, found = self.matcher.behind_a_prefix(strange)
        if prefix and len(found) == len(strange):
            self.prefix = prefix
            self.ledger.notes.append(f"a prefix that is not known stands before {len(found)} names: {prefix!r}")

    def _config_of(self, module: LoraModule) -> tuple[PeftConfig | None, str]:
        """Return the configuration that speaks of a module, and the path by which it does."""
        return self.lora.config_of(self.matcher.spelled.word(module.name))

    def _targets(self, name: str) -> list[Module]:
        """List the modules of the base that a name may stand for."""
        found = self.matcher.spelled.get(name, [])
        if not found and self.prefix and name.startswith(self.prefix):
            return self.matcher.find(name.removeprefix(self.prefix))
        return found

    # -- where a module goes -------------------------------------------------------------------------

    def _place(self, module: LoraModule, indexed: Module | None) -> None:
        size = module.size
        if module.slots.keys() == {"alpha"}:
            self.alphas.append(module.name)
            self.ledger.excluded["alpha without a LoRA: no effect"] += size
            return
        found = [indexed] if indexed else self._targets(module.name)
        config, path = self._config_of(module)
        unnamed = not found and config is not None and bool(config.parameters)
        if unnamed and config is not None:
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
        if len(words := self.matcher.spelled.words(module.name)) > 1:
            self.faults.strange.append(
                (module.name, f"its name may stand for {visible(' and for '.join([*words][:2]))}")
            )
            return
        if self._is_settled_by_tie(module):
            return
        slots = frozenset(module.slots)
        on_experts = EXPERTS.claims(slots) == slots and any(self._is_stack(each, config, path) for each in found)
        kinds = (EXPERTS,) if on_experts else kinds_of(slots)
        if not kinds:
            self.faults.strange.append((module.name, f"incomplete or unknown set: {', '.join(sorted(module.slots))}"))
            return
        whole = frozenset[str]().union(*(kind.announced for kind in kinds))
        if "whole_weight" in whole and dora.is_in(slots):
            self.faults.strange.append((module.name, "a magnitude beside the weight that it is for"))
            return
        if "whole_weight" in whole and sum(kind.parameter == "weight" for kind in kinds) > 1:
            whole = whole if config is None else frozenset()  # an embedding's or a head's own (save_embedding_layers)
        tied = config is not None and config.ties and self.matcher.use_of(module.name) is not None
        if whole and not tied and not (config and all(config.saves(path, slot) for slot in whole)):
            self.faults.strange.append((module.name, NOT_ANNOUNCED))
            return
        if config is None and "lora_a" in module.slots:
            self.faults.strange.append((module.name, WITHOUT_MLX_CONFIG))
            return
        shapes = module.shapes
        fitting = [each for each in found if self._fault(kinds, shapes, each) is None]
        if len(fitting) > 1 and unnamed:
            fitting = self._wrapped(module.name, fitting, config)
        if len(fitting) > 1 and unnamed:
            self.faults.strange.append((module.name, "it fits several stacks of experts, and no name says which"))
            return
        if len({each.component for each in fitting}) == 1 < len(fitting):
            keys = " and ".join(next(iter(each.views.values())).keys[0] for each in fitting)
            raise MatchError(
                f"LoRA {self.lora.name!r}: {module.name} may be {keys} of the base",
                "One is called so in the file, the other in memory, and both fit. Merge it with what trained it.",
            )
        if len(fitting) > 1:
            names = ", ".join(each.component for each in fitting)
            raise MatchError(
                f"LoRA {self.lora.name!r}: {module.name} fits {names}",
                f"Say which with components: [{fitting[0].component}]",
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
        if unnamed:
            path = f"{_unwrapped(path)}.{target.name.rpartition('.')[2]}"
        elif config:
            path = config.trained(path)
        if config and (fault := self._config_fault(config, path, kinds, shapes, target)):
            self.faults.misfits.append((module.name, fault))
            return
        self._apply(module, kinds, target, strength, config, path)

    # -- embeddings that are heads, too --------------------------------------------------------------

    def _is_settled_by_tie(self, module: LoraModule) -> bool:
        """Enter a module of a tied embedding that is not to be baked by itself: refused, or said twice."""
        use = self.matcher.use_of(module.name)
        if use is None:
            return False
        fault, repeated = self._tied
        if self._strength(use.component, use.views["weight"])[0] == 0:
            return False
        if fault:
            self.faults.strange.append((module.name, fault))
        elif module.name in repeated:
            self.ledger.applied += module.size
        return bool(fault) or module.name in repeated

    @cached_property
    def _tied(self) -> tuple[str | None, frozenset[str]]:
        """Say why this file's changes of a tied embedding cannot be baked; name those that repeat another one."""
        changes: dict[str, list[LoraModule]] = {}
        laws: list[object] = []
        tie = self.matcher.tie
        for module in self.modules.values() if tie else ():
            use = self.matcher.use_of(module.name)
            if use is None or module.slots.keys() == {"alpha"}:
                continue
            strength, _ = self._strength(use.component, use.views["weight"])
            if strength != 0:
                changes.setdefault(use.name, []).append(module)
                laws.append((strength, self._law(module)))
        if tie is None or not changes:
            return None, frozenset()
        first, *others = [module for modules in changes.values() for module in modules]
        alike = all(law == laws[0] for law in laws) and all(
            are_alike(first, other, self.lora.evidence) for other in others
        )
        repeated = tie.repeated(changes)
        if repeated and alike:
            self.ledger.notes.append(
                f"{' and '.join(sorted(changes, key=tie.heads.__contains__))} are one tensor: "
                "their change, said for each, is baked once"
            )
        loaded = alike and all(self._is_loaded(module) for modules in changes.values() for module in modules)
        return tie.fault(changes, alike=alike, loaded=loaded), frozenset(module.name for module in repeated)

    def _is_loaded(self, module: LoraModule) -> bool:
        """Tell whether what trained it changes the one tensor: MLX does, and PEFT where it loads it whole.

        What PEFT was told to save it trains as a copy for one use.
        """
        config, path = self._config_of(module)
        if config is None or config.is_mlx:
            return config is not None
        return module.slots.keys() == {"whole_weight"} and not config.announces(path)

    def _law(self, module: LoraModule) -> object:
        """Return what a configuration says of a module that its tensors do not: its scale, and its trained tokens."""
        config, path = self._config_of(module)
        if config is None:
            return None
        return config.scale_of(path), rows_of(config.said_of(path))

    # -- experts -------------------------------------------------------------------------------------

    def _stacks(self, name: str, config: PeftConfig) -> list[Module]:
        """Find the stacks of experts that a module of trained parameters may be of; the names do not say which."""
        words = dict.fromkeys(parameter.rpartition(".")[2] for parameter in config.parameters)
        places = [self.matcher.spelled.get(f"{_unwrapped(name)}.{each}", []) for each in words]
        return [module for found in places for module in found if module.stacked]

    def _wrapped(self, name: str, fitting: list[Module], config: PeftConfig | None) -> list[Module]:
        """Choose the stack by how often PEFT wrapped its module: once a parameter, the first one innermost."""
        trained = {parameter.rpartition(".")[2] for parameter in config.parameters} if config else set()
        order = [stack for stack in STACKS if stack in trained]
        depth = len(re.findall(r"\.base_layer", name))
        if len(order) != len(trained) or depth >= len(order):
            return fitting
        return [each for each in fitting if each.name.endswith(f".{order[len(order) - 1 - depth]}")]

    def _is_stack(self, target: Module, config: PeftConfig | None, path: str) -> bool:
        """Tell whether a module is all experts of a mixture: PEFT takes any parameter of three sides for that."""
        if target.stacked or config is None or config.trained(path) == path:
            return target.stacked
        view = target.views.get("weight")
        return view is not None and view.as_stack() is not None

    def _side(self, module: LoraModule, target: Module, config: PeftConfig | None) -> int | None:
        """Return which side of a stack an adapter's A reads, 1 or 2; None where that cannot be told.

        Where both are as long, the file's other stacks show how its PEFT counted, or the version does.
        """
        if len(module.shapes["down"]) == 3:
            return None if target.turned is None else 1 if target.turned else 2
        view = self._view(target, EXPERTS)
        if len(self._sides_seen) == 1 or view is None:
            return next(iter(self._sides_seen), None)
        return side_of_a(config, self.key_map.experts, view, target.turned)

    @cached_property
    def _sides_seen(self) -> set[int]:
        """Collect the sides that the A of this file's stacks read, where they are not both as long."""
        seen: set[int] = set()
        for module in self.lora.tensors.modules.values():
            config, path = self._config_of(module)
            if config is None or module.slots.keys() != EXPERTS.required or len(module.shapes["down"]) != 2:
                continue
            found = self.matcher.spelled.get(module.name) or self._stacks(module.name, config)
            views = [self._view(each, EXPERTS) for each in found if self._is_stack(each, config, path)]
            fitting = [view for view in views if view and EXPERTS.fault(module.shapes, view.shape) is None]
            sides = {EXPERTS.sides(module.shapes, view.shape) for view in fitting}
            seen |= {side for each in sides if len(each) == len(sides) == 1 for side in each}
        return seen

    # -- what fits -----------------------------------------------------------------------------------

    def _view(self, target: Module, kind: Kind) -> View | None:
        return kind.view_of(target.views, turned=self.turned)

    def _fault(self, kinds: tuple[Kind, ...], shapes: Mapping[str, tuple[int, ...]], target: Module) -> str | None:
        if target.unclear:
            return target.unclear
        for slot in sorted(frozenset[str]().union(*(kind.numbers for kind in kinds)) & shapes.keys()):
            if prod(shapes[slot]) != 1:
                return f"its {slot} has the shape {shapes[slot]}"
        for kind in kinds:
            view = self._view(target, kind)
            if view is None:
                if (absence := kind.absence()) is None:
                    continue
                if target.stacked:
                    return "the base has all experts of a mixture there, and it is for one layer"
                return absence
            fault = kind.misfit(shapes, view.shape)
            if fault is not None:
                size = " × ".join(map(str, view.shape))
                fault = f"{fault}; the base's {kind.parameter} is {size}{_cause(shapes, view)}"
                own = [slot for slot in sorted(kind.claims(frozenset(shapes)) & shapes.keys()) if shapes[slot]]
                if all(str(shapes[slot]) not in fault for slot in own):
                    fault += f"; its tensors: {', '.join(f'{slot} {shapes[slot]}' for slot in own)}"
                return fault
        return None

    def _config_fault(
        self,
        config: PeftConfig,
        path: str,
        kinds: tuple[Kind, ...],
        shapes: Mapping[str, tuple[int, ...]],
        target: Module,
    ) -> str | None:
        """Say where tensors that fit their weights have other shapes than the configuration asks for."""
        said = config.said_of(path)
        for kind in kinds:
            view = self._view(target, kind)
            if view is not None and (fault := kind.misconfigured(said, shapes, view.shape)):
                return fault
        if config.dora and shapes.keys() & {"down", "lora_a", "embedding_down"} and not dora.is_in(shapes):
            return "adapter_config says use_dora, and there is no magnitude"
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
                said = config.said_of(path) if config else Said(module.name, is_given=False)
                if kind is EXPERTS:
                    said = replace(said, side=self._side(module, target, config))
                settings = kind.settings(said, module.shapes)
                if fault := kind.unsettled(settings, module.shapes, view.shape):
                    raise ValueError(fault)
                if kind.drawn:
                    settings = self._drawn(kind, settings, said, module, target)
                followed = self._followed(kind, settings, module.shapes, view, strength)
            except ValueError as error:
                self.faults.strange.append((module.name, str(error)))
                return
            self.follows |= followed != settings
            self._take(view, module.name)
            self.paths.update(self.matcher.names[next(iter(target.views.values())).place])
            scaling = config if kind.lacks_scale(tensors) else None
            scale = scaling.scale_of(path) if scaling else None
            doubts = kind.doubt(said, module.shapes), scaling.doubt(path) if scaling else ""
            self.doubts.update(filter(None, doubts))
            if scale == 0:
                scale = self._scale_of_alpha_0()
                if scale is None:
                    self.faults.strange.append((module.name, ALPHA_0))
                    return
            parts = self._parts(module, target) if "alpha" in tensors and kind.has_parted_rank else 1
            semantics = self.lora.entry.semantics or ""
            patch = Patch(self.index, module.name, kind, tensors, view, strength, scale, followed, parts, semantics)
            self.patches.append(patch)
            self.ledger.kinds["DoRA" if dora.is_in(tensors) else kind.told_title(module.shapes)] += 1
            if kind.has_told_rank:
                rank = kind.told_rank(module.shapes, view.shape)
                self.ledger.ranks.update([] if rank is None else [rank])
        self.ledger.applied += module.size
        idle = 0 if strength else len(slots.difference(*(kind.claims(slots) for kind in kinds), module.shared))
        if idle:  # of kinds that the program leaves alone at strength 0
            self.ledger.applied -= idle
            self.ledger.excluded["strength 0"] += idle
        self.ledger.modules[target.component] += 1

    # -- what the program makes of it that the recipe names --------------------------------------------

    def _followed(
        self, kind: Kind, settings: Settings, shapes: Mapping[str, tuple[int, ...]], view: View, strength: float
    ) -> Settings:
        """Return the settings by which a kind follows the program; raise ValueError where it cannot."""
        program = self.lora.entry.semantics
        if program is None:
            return settings
        if why := kind.misread(program, shapes, view):
            raise ValueError(why)
        return kind.follow(settings, program, shapes, view.shape, strength)

    def _scale_of_alpha_0(self) -> float | None:
        """Return the scale that the program takes where the configuration's alpha is 0; None if none is known."""
        program = self.lora.entry.semantics
        return 0.0 if program == "peft" else SCALE_OF_ALPHA_0.get(program or "")

    def _acts(self, kind: Kind, module: LoraModule, target: Module) -> bool:
        """Tell whether the program changes the module's parameter at strength 0, too."""
        program, strength = self.lora.entry.semantics, self.lora.entry.strength
        view = self._view(target, kind)
        if program is None or not kind.is_read_by(program) or view is None:
            return False
        if program in SKIPPING_STRENGTH_0 and not (isinstance(strength, dict) and any(strength.values())):
            return False
        if kind.unread(program, module.shapes, view.shape):  # the program fails at it, and goes on without
            return False
        return kind.share(0.0, program, module.shapes) != 0

    def _drawn(self, kind: Kind, settings: Settings, said: Said, module: LoraModule, target: Module) -> Settings:
        """Return settings with what it takes to draw random matrices again; check those that are in the file."""
        there = kind.drawn & module.slots.keys()
        largest, placeless = self._largest(kind, target.component)
        if placeless and not there:
            raise ValueError(f"its random matrices depend on {visible(placeless)}, which has no place")
        wanted = {} if placeless else kind.drawn_shapes(module.shapes, largest)
        for slot in sorted(there & wanted.keys()):
            if module.shapes[slot] != wanted[slot]:
                raise ValueError(f"its {slot} is {module.shapes[slot]}, and all its layers ask for {wanted[slot]}")
        return settings if there else kind.redrawn(settings, said, module.shapes, largest)

    def _largest(self, kind: Kind, component: str) -> tuple[tuple[int, int], str]:
        """Return the most outputs and inputs of the weights that a kind's modules are for, left out or not.

        With them comes the name of a module that has no place, if there is one.
        """
        if component not in self.sides:
            sides: list[tuple[int, ...]] = [(0, 0)]
            placeless = ""
            for module in self.lora.tensors.modules.values():
                if kind.required <= module.slots.keys():
                    found = self._targets(module.name)
                    targets = [each for each in found if self._fault((kind,), module.shapes, each) is None]
                    placeless = placeless if targets else module.name
                    sides += [view.shape for each in targets[:1] if (view := self._view(each, kind))]
            self.sides[component] = (max(shape[0] for shape in sides), max(shape[1] for shape in sides)), placeless
        return self.sides[component]

    def _take(self, view: View, name: str) -> None:
        for region in view.regions:
            own = range(region.start * view.width, region.stop * view.width)
            for taken, picked, other in self.taken.setdefault(region.key, []):
                apart = taken.start >= own.stop or own.start >= taken.stop or other == name
                if apart or (view.picked and picked and not view.picked.meets(picked)):
                    continue
                raise MatchError(
                    f"LoRA {self.lora.name!r}: {other} and {name} both change {region.key}",
                    "A file that has one module under two names would be applied twice.",
                )
            self.taken[region.key].append((own, view.picked, name))

    # -- q, k and v that were trained apart ----------------------------------------------------------

    def _parts(self, module: LoraModule, target: Module) -> int:
        """Count the parts that each have a share of a fused module's rank, and alpha over that share."""
        sizes = self._sizes(target)
        if len(sizes) < 2 or "down" not in module.slots or module.shapes["down"][0] % len(sizes):
            return 1
        said = split_qkv.said_by(self.lora.checkpoint.metadata)
        if said is False:
            return 1
        if said is None and not self.lora.evidence.is_trained_apart(module, sizes, self._scales):
            return 1
        self.apart["metadata" if said else "the zeros in its up"] += 1
        return len(sizes)

    def _sizes(self, target: Module) -> tuple[int, ...]:
        """List the rows of what a fused module holds."""
        return split_qkv.rows_of_parts(target.name, self.key_map.modules[target.component])

    @cached_property
    def _scales(self) -> set[float]:
        """Collect alpha/rank of the modules that hold one layer."""
        scales = set()
        for module in self.lora.tensors.modules.values():
            targets = self._targets(module.name)
            if targets and len(self._sizes(targets[0])) < 2:
                scale = self.lora.evidence.scale_of(module)
                scales |= set() if scale is None else {scale}
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
            for target in self._targets(module.name)[:1]:
                view = target.views.get("weight")
                if view and kinds and kinds[0].may_be_turned and len(view.shape) == 2:
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
                f"LoRA {self.lora.name!r}: fan_in_fan_out is set and {why}",
                "lorabake has no table for this base, so it cannot tell whether its weights are transposed.",
            )
        return turned > 0 and straight == 0

    def _unknown(self, info: Stored) -> None:
        vectors = read_vectors(info, self.lora.checkpoint.metadata)
        if vectors is None and info.key in self.matcher.spelled:  # a parameter by its full name, trained whole
            self._place(LoraModule(info.key, {"whole_weight": info}), None)
            return
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
        places = {name: self._targets(name) for name in self.alphas}
        for name, view in ((name, each.views.get("weight")) for name, found in places.items() for each in found):
            for patch in self.patches:
                lacks = patch.scale is None and patch.kind.may_have_alpha and "alpha" not in patch.tensors
                if patch.view == view and lacks:
                    raise MatchError(
                        f"LoRA {self.lora.name!r}: {name}.alpha and {patch.module} are one module under two names",
                        "Rename one of them, so that it is told whether that alpha counts.",
                    )

    def _note_semantics(self) -> None:
        program = self.lora.entry.semantics
        if program is None or not self.patches:
            return
        title, notes = PROGRAMS[program], self.ledger.notes
        whole = [each for each in self.patches if each.strength != 1 and each.kind.is_whole_in(program)]
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
        if any(patch.module.startswith("base_model.") and patch.kind.may_have_alpha for patch in silent):
            self.ledger.notes.append(NO_CONFIG)

    # -- errors --------------------------------------------------------------------------------------

    def _complaint(self, said: Architecture | None) -> list[str]:
        name = self.lora.name
        if hollow := hollow_words(self.lora.checkpoint.tensors):
            return [f"LoRA {name!r}: {hollow}", *ADVICE]
        placeless = [*self.faults.unmatched, *(module for module, _ in self.faults.misfits)]
        if said is None and (module := self._foreign_module(placeless)):
            return self._another_familys(module)
        foreign, seen_by = self._foreign_sort() if said is None else ((), "")
        if foreign and not any(kinship(each, self.key_map.architecture) for each in foreign):
            return self._foreign(foreign, seen_by)
        if placeless and (packer := way_of(self.key_map.tensors)):
            return [
                f"LoRA {name!r}: the base's weights are packed ({packer}), and this version cannot unpack them",
                "Give it the base in float32, float16, bfloat16 or float8.",
            ]
        lines = []
        if self.faults.unmatched:
            lines += self._group("no such module on the base", [(each, "") for each in self.faults.unmatched])
            lines += self._unknown_prefix()
        if self.faults.misfits:
            lines += self._group("does not fit", self.faults.misfits)
        if self.faults.strange:
            lines += self._group("cannot be baked", self.faults.strange)
        total = len(self.faults.unmatched) + len(self.faults.misfits) + len(self.faults.strange)
        of = len(self.modules) + sum(map(len, self.lora.tensors.unsupported.values()))
        of += len(self.lora.tensors.unknown)
        hint = self._leave_out()
        reasons = {reason for _, reason in self.faults.strange}
        if len(reasons) == 1 and total == len(self.faults.strange):
            names = dict.fromkeys(pattern_of(each) for each, _ in self.faults.strange)
            more = f" and {len(names) - 3} more patterns" if len(names) > 3 else ""
            listed = f"{total} of its tensors: {', '.join([*names][:3])}{more}"
            return [*lines_of(f"LoRA {name!r}: ", reasons.pop()), listed, *hint]
        first = f"LoRA {name!r}: {total} of {of} modules have no place on the base ({self._base_words()})"
        evidence, base = self.evidence, self.key_map.architecture
        if evidence.whole and base not in evidence.whole and base.name != GENERIC and said is None:
            lines.append(f"  it may be a LoRA of {titles(evidence.whole)}")
        return [first, *lines, *hint]

    def _another_familys(self, module: str) -> list[str]:
        """Say by which module without a place it is another family's, or a part that the base lacks."""
        evidence = self.evidence
        down = self.lora.tensors.modules[module].shapes.get("down")
        shape = f" {down}" if down else ""
        title, more = str(evidence.title), list[str]()
        part = next((each for each in self._components_named(module) if each.startswith(TEXT[0])), None)
        if evidence.is_text and part and "encoder" not in title:
            title = TEXT_ENCODER.format(title)
            more = [
                f"It is a diffusion model's {part}, which this base lacks: bake it where that is.",
                f"Of a LoRA with other parts, components: [{part}] takes this one alone.",
            ]
        first = f"LoRA {self.lora.name!r} is for {title} (by {module}{shape}); the base is {self._base_words()}"
        return [first, *more]

    def _foreign_module(self, placeless: Sequence[str]) -> str | None:
        """Return a module without a place by which the LoRA is another family's; None where it is not."""
        base, evidence = self.key_map.architecture, self.evidence
        is_alike = bool(self.patches or self.faults.misfits)
        if base.name == GENERIC:
            names = [name for modules in self.key_map.modules.values() for name in modules]
            texts = evidence.families if evidence.is_text else ()
            is_own = is_alike or any(knows(each, name) for each in texts for name in names)
        else:
            is_own = base in evidence.families or self._is_kin() or (evidence.is_text and bool(self.patches))
        return None if is_own else evidence.seen_by(placeless)

    def _is_kin(self) -> bool:
        return any(kinship(each, self.key_map.architecture) for each in self.evidence.families)

    def _unknown_prefix(self) -> Iterator[str]:
        prefix, found = self.matcher.behind_a_prefix(self.faults.unmatched)
        if prefix and not self._components_named(found[0]):
            yield f"    {len(found)} of them have a name of the base behind a prefix that is not known: {prefix!r}"

    def _leave_out(self) -> Iterator[str]:
        """Yield the line of the recipe that leaves out what has no place, if that leaves something."""
        left = [*self.faults.unmatched, *(name for name, _ in (*self.faults.misfits, *self.faults.strange))]
        entry, placed = self.lora.entry, set(self.ledger.modules)
        if not placed:
            return
        elsewhere = ((named := self._components_named(name)) and placed.isdisjoint(named) for name in left)
        if entry.components is None and all(elsewhere):
            yield f"To bake without them, add to this LoRA: components: [{', '.join(sorted(placed))}]"
            return
        others = {info.key for info in self.lora.tensors.unknown}
        kept = (self.modules.keys() | others) - set(left)
        if line := line_for(left, sorted(kept), entry.ignore or ()):
            yield f"To bake without them, add to this LoRA: {line}"

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
            is_sought = title.startswith("no such") and count < 2
            hint = self.matcher.nearest(names[0], self._components_named(names[0])) if is_sought else ""
            lines += lines_of(f"    {pattern} ×{len(names)}", (f": {reason}" if reason else "") + visible(hint))
        return lines


@cache
def every_prefix() -> Prefixes:
    """Collect the prefixes of the components of all families."""
    return Prefixes(part for each in architectures() for part in each.components)


def sort_of(module: Module) -> Sort:
    """Return the sort of a module of the base."""
    view = module.views.get("weight")
    return module.component, pattern_of(module.name), view.shape if view else ()


def _unwrapped(name: str) -> str:
    """Return the module that PEFT wraps once for each of its tensors."""
    return re.sub(r"(?:\.base_layer)+\Z", "", name)


def _cause(shapes: Mapping[str, tuple[int, ...]], view: View) -> str:
    down = shapes.get("down", ())
    if len(down) == 4 and len(view.shape) == 4 and down[1] != view.shape[1] and down[2:] == view.shape[2:]:
        return f" (it reads {down[1]} channels, the base {view.shape[1]}: an inpainting or other special base?)"
    up = shapes.get("up", ())
    if up and view.shape and up[0] == view.shape[0] and matrix(down)[1] != view.columns:
        return " (same outputs, other inputs: another version of the model?)"
    return " (another family, or another size of this one?)" if up else ""


def _nearest(name: str, names: list[str]) -> str:
    near = nearest(name, names)
    return f"; nearest: {near}" if near else ""
