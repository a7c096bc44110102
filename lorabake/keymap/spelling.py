"""Spellings: how LoRA files write a module's name and the role of each tensor.

A LoRA key is a module's name followed by a suffix; each adapter kind says which suffixes fill which of its slots.
The other direction is never parsed: a module of the base has its path in each layout, each path may follow any of
the prefixes that trainers write, and the LoRA's names are looked up among these.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby

from lorabake.keymap.table import Component, KeyMap, Module
from lorabake.tensors.header import TensorInfo

# A pattern at a key's end, and the slot that it fills.
Suffix = tuple[str, str]

# Suffix -> kind, for kinds that this version does not bake: they are named, never skipped. A kind that declares
# the same suffix goes before.
UNSUPPORTED = (
    (r"\.oft_blocks\.\d+", "OFT in more than four parts"),
    (r"\.oft_r", "OFT of PEFT before 0.16"),
    (r"\.(?:lora_[AB]|up_list|down_list)\.\d+", "DyLoRA in blocks"),
    (r"\.(?:[qp]_layer\.weight|lambda_layer)", "T-LoRA"),
    (r"\.lora_(?:down|up)", "nunchaku's LoRA"),
    (r"\.___\.(?:layer\.W_(?:down|up)|alpha)", "HCP-Diffusion's LoRA"),
)

# Kind -> why it is none that can be baked, and what helps.
REASONS = {
    "OFT of PEFT before 0.16": "PEFT before 0.16 laid OFT out otherwise, and today's cannot read it\n"
    "Merge it with the PEFT that trained it.",
    "DyLoRA in blocks": "DyLoRA's blocks as they are in training, before the trainer saves them as one LoRA\n"
    "Load it with the program that trained it, and save it as its scripts do.",
    "T-LoRA": "its rank depends on the timestep, and its change on where its training began: the file does not say",
    "nunchaku's LoRA": "nunchaku packs a LoRA for one kernel; bake the LoRA that it was made of",
    "HCP-Diffusion's LoRA": "HCP-Diffusion's scale cannot be told from the file\n"
    "Convert it with hcpdiff.tools.lora_convert (--to_webui), and bake that.",
}
# A tensor that says of the whole file that it is no LoRA -> what it is.
MARKERS = {"lora_controlnet": "a Control-LoRA: it makes a ControlNet out of a UNet, and changes no checkpoint"}

# What wraps a module while it is trained, and names none: torch.compile, FSDP and its older self, activation
# checkpoints, Lightning Fabric, TorchRec. Data parallel training (DDP, DeepSpeed) calls it `module`, as a model may.
_WRAPPERS = "orig_mod|fsdp_wrapped_module|fpw_module|checkpoint_wrapped_module|forward_module|dmp_wrapped_module"
_WRAPPED = re.compile(rf"(?:\A|(?<=[._]))_(?:{_WRAPPERS})[._]|(?:\A|(?<=\.))base_layer\.")
_PARALLEL = re.compile(r"(?:\A|(?<=\.))module\.")
_STEPS = re.compile(rf"(?:\A|(?<=_))(?:{_WRAPPERS}|module)(?:_|\Z)")

# What a name has that is more than words with one dot or underscore between them.
_UNEVEN = re.compile(rf"[._/]{{2}}|/|\A[._]|[._]\Z|module|{_WRAPPERS}")

# A part of a model may be PEFT's own inside: `language_model.base_model.model.layers.0`.
_INNER_ROOT = re.compile(r"(?<=[._])base_model[._](?:module[._])?model[._]")

# Names that trainers gave to modules which have another name today: (today's ending, older ending).
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

# How trainers end the key of a parameter that has no weight's name, and its full name with what is done to it.
_PARAMETERS = ((".diff_m", ".modulation.diff"),)  # LightX2V

_END = 6
"""Words at the end of a name that tell most modules of a base from each other: layers.3.self_attn.q_proj."""

PEFT_ROOT = "base_model.model."
_NUMBER = re.compile(r"(?<![a-zA-Z0-9])\d+")
# A number that is none of a suffix: no suffix asks for a certain one before its last dot.
_NUMBER_WITHIN = re.compile(r"(?<![a-zA-Z0-9])\d+(?=[^.]*\.)")
INDEXED = re.compile(r"(?P<component>\w+):(?P<index>\d+)\Z")


@dataclass(frozen=True, slots=True)
class LoraModule:
    """Hold the tensors that a LoRA file has for one module, by slot; those in `shared` serve other modules, too."""

    name: str
    slots: Mapping[str, TensorInfo]
    shared: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """Count the tensors of this module alone."""
        return len(self.slots) - len(self.shared)

    @property
    def own_keys(self) -> list[str]:
        """List the keys of its own tensors."""
        return [info.key for slot, info in self.slots.items() if slot not in self.shared]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each slot's tensor."""
        return {slot: info.shape for slot, info in self.slots.items()}


@dataclass(frozen=True, slots=True)
class LoraTensors:
    """Sort a LoRA file's tensors: by module; of unsupported kinds, by kind; and those of no known form.

    `common` counts those that several modules share; `unlike` are pairs of such a one and a module's own copy of it,
    of another shape.
    """

    modules: dict[str, LoraModule]
    unsupported: dict[str, list[TensorInfo]]
    unknown: list[TensorInfo]
    common: int = 0
    unlike: tuple[tuple[TensorInfo, TensorInfo], ...] = ()


def sort_tensors(
    tensors: Iterable[TensorInfo], suffixes: tuple[Suffix, ...], shared: tuple[tuple[str, str, str], ...] = ()
) -> LoraTensors:
    """Read each key of a LoRA file as (module, slot), by the suffixes that the adapter kinds declare.

    `shared` lists the keys of tensors that modules have in common: pattern, slot, and the slot that needs it.
    """
    slots: dict[str, dict[str, TensorInfo]] = {}
    unsupported: dict[str, list[TensorInfo]] = {}
    unknown: list[TensorInfo] = []
    rows = (*suffixes, *UNSUPPORTED)
    seen: dict[str, int | None] = {}
    common, in_common = list[TensorInfo](), re.compile("|".join(key for key, _, _ in shared) or r"(?!)")
    for info in tensors:
        if in_common.fullmatch(info.key):
            common.append(info)
            continue
        key = info.key
        for ending, parameter in _PARAMETERS:
            key = key.removesuffix(ending) + parameter if key.endswith(ending) else key
        template = _NUMBER_WITHIN.sub("0", key)
        if template not in seen:
            seen[template] = _row_of(template, suffixes)
        row = seen[template]
        match = _suffix(rows[row][0]).search(key) if row is not None else None
        if row is None or match is None or (row < len(suffixes) and not match.start()):
            unknown.append(info)
        elif row >= len(suffixes):
            unsupported.setdefault(rows[row][1], []).append(info)
        else:
            module = _WRAPPED.sub("", key[: match.start()])
            if slots.setdefault(module, {}).setdefault(rows[row][1], info) is not info:
                unknown.append(info)
    borrowed: dict[str, set[str]] = {name: set() for name in slots}
    idle, unlike = [], []
    for info in common:
        needed = {by: slot for key, slot, by in shared if re.fullmatch(key, info.key)}
        takers = [(name, needed[by]) for name, found in slots.items() for by in needed.keys() & found.keys()]
        if not takers:
            idle.append(info)
        for name, slot in takers:
            if (own := slots[name].setdefault(slot, info)) is info:
                borrowed[name].add(slot)
            elif own.shape != info.shape:
                unlike.append((info, own))
    modules = {name: LoraModule(name, found, frozenset(borrowed[name])) for name, found in slots.items()}
    return LoraTensors(modules, unsupported, unknown + idle, len(common) - len(idle), tuple(unlike))


def _row_of(key: str, suffixes: tuple[Suffix, ...]) -> int | None:
    """Return which of all suffixes a key has: the longest of those that it ends with."""
    match = _any_suffix(suffixes).search(key)
    return int(match.lastgroup.removeprefix("row")) if match and match.lastgroup else None


@cache
def _any_suffix(suffixes: tuple[Suffix, ...]) -> re.Pattern[str]:
    """Join all suffixes in one pattern: its leftmost match that reaches the key's end is the longest of them."""
    rows = enumerate((*suffixes, *UNSUPPORTED))
    return _suffix("|".join(f"(?P<row{row}>{suffix})" for row, (suffix, _) in rows))


@cache
def _suffix(suffix: str) -> re.Pattern[str]:
    where = r"(?:\A|(?=[.:]|_lora))"  # no suffix begins elsewhere; to try all at every letter takes long
    return re.compile(rf"{where}(?:{suffix})\Z")


def endings(path: str) -> list[str]:
    """List a module's path, and how it ends in older files."""
    return [path, *(path.removesuffix(new) + old for new, old in ENDINGS if path.endswith(new))]


def spell(component: Component, prefix: str, path: str) -> Iterator[str]:
    """Write one module path of a component in every spelling that a LoRA file could use.

    `prefix` is where the base keeps the component: a file may also use the base's own keys.
    """
    for each in _paths(component, path):
        yield from (start + each.replace(".", "_") for start in _flat_starts(component))
        yield from (start + each for start in _dotted_starts(component, prefix))


def _paths(component: Component, path: str) -> list[str]:
    """List what a module is called below any prefix: today, by older endings, with and without optional words."""
    paths = endings(path)
    paths += [each.removeprefix(word) for word in component.optional for each in paths if each.startswith(word)]
    return paths + [word + each for word in component.optional for each in tuple(paths)]


def _further_paths(component: Component, path: str) -> Iterator[str]:
    """Yield what a module is called where other roots take the place of its own."""
    for group in component.roots:
        for each in _paths(component, path):
            root = max((root for root in group if each.startswith(root)), key=len, default=None)
            if root is not None:
                yield from (other + each.removeprefix(root) for other in group if other != root)


def _flat_starts(component: Component) -> tuple[str, ...]:
    """List the prefixes of a path whose dots became underscores."""
    oft = ("oft_unet_",) if "lora_unet_" in component.flat else ()  # kohya's OFT
    return (*component.flat, *oft, "lycoris_")


def _dotted_starts(component: Component, prefix: str) -> tuple[str, ...]:
    """List the prefixes of a dotted path; `prefix` is the base's own."""
    roots = [each for start in component.dotted for each in (start, start + PEFT_ROOT, PEFT_ROOT + start)]
    return tuple(dict.fromkeys(("", PEFT_ROOT, *roots, prefix)))


def _at_last(component: Component) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """List the prefixes, of dotted and of flat paths, that count where a name is nothing else."""
    dotted = tuple(start for start in component.at_last if start.endswith("."))
    rooted = tuple(start + PEFT_ROOT for start in dotted)
    return dotted + rooted, tuple(start for start in component.at_last if not start.endswith("."))


class _Names:
    """Hold what may stand before a path, and the modules by path: dotted, or with `_` for each dot."""

    def __init__(self, starts: tuple[str, ...]) -> None:
        self.starts = starts
        self.modules: dict[str, list[Module]] = {}

    def find(self, name: str) -> Iterator[Module]:
        """Yield the modules of that name."""
        for start in self.starts:
            if name.startswith(start):
                yield from self.modules.get(name[len(start) :], ())

    def find_alike(self, name: str) -> Iterator[str]:
        """Yield the spellings that come to the same when loosened; `name` is loosened already."""
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
    """Hold one module under one of its names, and the component and the prefix by which its group is spelled."""

    group: int
    component: Component
    prefix: str
    module: Module

    def words(self) -> Iterator[str]:
        """Yield its spellings."""
        return spell(self.component, self.prefix, self.module.name)


class Spellings(Mapping[str, list[Module]]):
    """Map every spelling of every module of a base to the modules; there are several where it is ambiguous.

    `named` are further uses of tensors, which their names mean whatever else has them.

    A name that is no spelling is taken for one that differs from it in no more than dots and underscores, or in what
    wraps modules in training: `lora_unet_blocks_0.attn.q`, `module.blocks.0.attn.q`. If there is none either, other
    roots take the place of a path's own.
    """

    def __init__(self, key_map: KeyMap, named: Iterable[Module] = ()) -> None:
        self._key_map, self._named = key_map, tuple(named)
        self._all = [*self.samples()]
        self._names = _list(self._all, _paths)
        self._found: dict[str, dict[str, list[Module]]] = {}
        self._listed: dict[tuple[str, ...], tuple[list[_Names], list[_Names]]] = {}

    def words(self, name: str) -> Mapping[str, list[Module]]:
        """Return the spellings that a name may be taken for, with their modules.

        It is itself, if it is one; of those that it is like, each leads elsewhere.
        """
        found = self._found.get(name)
        if found is None:
            modules = self._exactly(name, self._names)
            found = {name: modules} if modules else self._words_like(name)
            if not found and (inner := _INNER_ROOT.sub("", name)) != name:
                found = dict(self.words(inner))
            self._found[name] = found
        return found

    def word(self, name: str) -> str:
        """Return the spelling that a name is taken for, without what wraps modules in training."""
        return next(iter(self.words(name)), _PARALLEL.sub("", name))

    def __getitem__(self, name: str) -> list[Module]:
        """Return the modules of that name."""
        if not (words := self.words(name)):
            raise KeyError(name)
        return [module for modules in words.values() for module in modules]

    def __iter__(self) -> Iterator[str]:
        """Yield every spelling."""
        return iter(dict.fromkeys(word for sample in self.samples() for word in sample.words()))

    def samples(self) -> Iterator[Sample]:
        """Yield every module with what its spellings are made of."""
        for group, (component, prefix, modules) in enumerate(self._groups()):
            for module in modules:
                yield Sample(group, component, prefix, module)

    def __len__(self) -> int:
        """Count the spellings."""
        return sum(1 for _ in self)

    def _words_like(self, name: str) -> dict[str, list[Module]]:
        """Return the spellings that a name is like; only modules that end as it does are spelled in all ways."""
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
        """Map how spellings end, in whichever way they begin, to the places of their modules."""
        found: dict[str, list[int]] = {}
        for place, sample in enumerate(self._all):
            paths = endings(sample.module.name)
            for end in dict.fromkeys(end for path in paths for end in _common_ends(sample.component, path)):
                found.setdefault(end, []).append(place)
        return found

    def _groups(self) -> Iterator[tuple[Component, str, Iterable[Module]]]:
        """Yield modules that are spelled alike: a component's, its names in memory, what lies in none."""
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
        """Return the spelling that a name is, or those that it is like."""
        if modules := self._exactly(name, listed):
            return {name: modules}
        found: dict[str, list[Module]] = {}
        loose = loosened(name)
        for word in (word for names in listed for word in names.find_alike(loose)):
            modules = self._exactly(word, listed)
            if all([each.views for each in modules] != [each.views for each in known] for known in found.values()):
                found[word] = modules
        return found

    def _exactly(self, name: str, listed: list[_Names]) -> list[Module]:
        """List the modules of that very name; those with the same views count as one."""
        found: list[Module] = []
        for module in (module for names in listed for module in names.find(name)):
            if any(module is use for use in self._named):
                return [module]
            if all(module.views != other.views for other in found):
                found.append(module)
        return found


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
            for each in paths(component, module.name):
                dotted.modules.setdefault(each, []).append(module)
                flat.modules.setdefault(each.replace(".", "_"), []).append(module)
        listed += [dotted, flat] if dotted.modules else []
    return listed


def _ends(loose: str) -> Iterator[str]:
    """Yield the last words of a loosened name: one, two, up to a few."""
    words = loose.split("_")
    for count in range(1, min(_END, len(words)) + 1):
        yield "_".join(words[-count:])


def _common_ends(component: Component, path: str) -> Iterator[str]:
    """Yield how a path's spellings end: in a few words, or in fewer if another beginning may stand before them."""
    begins = [*component.optional, *(root for group in component.roots for root in group)]
    rests = [path, *(path.removeprefix(begin) for begin in begins if begin and path.startswith(begin))]
    others = (group for group in component.roots if path in group)
    for rest in (*rests, *(root for group in others for root in group)):
        yield "_".join(loosened(rest).split("_")[-_END:])


class Prefixes:
    """Tell by its prefix which components a LoRA key is of."""

    def __init__(self, components: Iterable[Component]) -> None:
        self._components: dict[str, set[str]] = {}
        for component in components:
            for prefix in (*component.flat, *component.dotted):
                self._components.setdefault(prefix, set()).add(component.name)
        self._lengths = sorted({*map(len, self._components)}, reverse=True)

    def named(self, key: str) -> set[str]:
        """Return the components whose prefix, the longest one, the key starts with."""
        if indexed := INDEXED.match(key):
            return {indexed["component"]}
        key = unwrapped(key)
        starts = (key, key.removeprefix(PEFT_ROOT)) if key.startswith(PEFT_ROOT) else (key,)
        for length in self._lengths:
            if found := [self._components[start[:length]] for start in starts if start[:length] in self._components]:
                return set().union(*found)
        return set()


def unwrapped(name: str) -> str:
    """Write a name without what wraps modules in training before its prefix."""
    return _PARALLEL.sub("", _WRAPPED.sub("", name))


def pattern_of(name: str) -> str:
    """Write a name with its numbers as `N`; those in words like `conv1` stay."""
    return _NUMBER.sub("N", name)


def numbers_of(name: str) -> tuple[int, ...]:
    """List the numbers that `pattern_of` writes as `N`."""
    return tuple(map(int, _NUMBER.findall(name)))


def patterns(names: Iterable[str]) -> str:
    """List names by their patterns, the most frequent three with their counts."""
    counts = Counter(map(pattern_of, names))
    shown = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in counts.most_common(3))
    return shown + (f" and {len(counts) - 3} more patterns" if len(counts) > 3 else "")


def flatten(name: str) -> str:
    """Write a module's name as the lists of released models do: numbers as `N`, dots as underscores, no wrappers."""
    return _STEPS.sub("", re.sub(r"[./]", "_", pattern_of(name)))


def loosened(name: str) -> str:
    """Write a name without what trainers differ in: what separates its words, and what wraps modules in training."""
    if not _UNEVEN.search(name):  # as most are: a fifth of the time
        return name.replace(".", "_")
    return _STEPS.sub("", re.sub(r"[._/]+", "_", name).strip("_")).strip("_")
