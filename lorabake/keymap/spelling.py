"""Spellings: how LoRA files write a module's name and the role of each tensor.

A LoRA key is a module's name followed by a suffix; each adapter kind says which suffixes fill which of its slots.
The other direction is never parsed: `spell` writes every module of the base in each spelling that a trainer
could have used, and the LoRA's names are looked up among them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from lorabake.keymap.table import Component, KeyMap, Module
from lorabake.tensors.safetensors import TensorInfo

# A pattern at a key's end, and the slot that it fills.
Suffix = tuple[str, str]

# Suffix -> kind, for kinds that this version does not bake: they are named, never skipped. A kind that declares
# the same suffix goes before.
UNSUPPORTED = (
    (r"\.oft_blocks\.\d+", "OFT in more than four parts"),
    (r"\.oft_r", "OFT of PEFT before 0.14"),
    (r"\.(?:lora_[AB]|up_list|down_list)\.\d+", "DyLoRA in blocks"),
    (r"\.(?:[qp]_layer\.weight|lambda_layer)", "T-LoRA"),
    (r"\.lora_(?:down|up)", "nunchaku's LoRA"),
    (r"\.___\.(?:layer\.W_(?:down|up)|alpha)", "HCP-Diffusion's LoRA"),
)

# Kind -> why it is none that can be baked, and what helps.
REASONS = {
    "OFT of PEFT before 0.14": "PEFT before 0.14 laid OFT out otherwise, and today's cannot read it\n"
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

# What may stand around a module's path in a file: training wrappers.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|base_layer)\.")

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

PEFT_ROOT = "base_model.model."
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
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each slot's tensor."""
        return {slot: info.shape for slot, info in self.slots.items()}


@dataclass(frozen=True, slots=True)
class LoraTensors:
    """Sort a LoRA file's tensors: by module; of unsupported kinds, by kind; and those of no known form.

    `common` counts those that several modules share.
    """

    modules: dict[str, LoraModule]
    unsupported: dict[str, list[TensorInfo]]
    unknown: list[TensorInfo]
    common: int = 0


def sort_tensors(
    tensors: Iterable[TensorInfo], suffixes: tuple[Suffix, ...], shared: tuple[tuple[str, str, str], ...] = ()
) -> LoraTensors:
    """Read each key of a LoRA file as (module, slot), by the suffixes that the adapter kinds declare.

    `shared` lists the keys of tensors that modules have in common: pattern, slot, and the slot that needs it.
    """
    slots: dict[str, dict[str, TensorInfo]] = {}
    unsupported: dict[str, list[TensorInfo]] = {}
    unknown: list[TensorInfo] = []
    rows, pattern = (*suffixes, *UNSUPPORTED), _any_suffix(suffixes)
    common, in_common = list[TensorInfo](), re.compile("|".join(key for key, _, _ in shared) or r"(?!)")
    for info in tensors:
        if in_common.fullmatch(info.key):
            common.append(info)
            continue
        match = pattern.search(info.key)
        row = int(match.lastgroup.removeprefix("row")) if match and match.lastgroup else -1
        if match is None or (row < len(suffixes) and not match.start()):
            unknown.append(info)
        elif row >= len(suffixes):
            unsupported.setdefault(rows[row][1], []).append(info)
        else:
            module = _WRAPPERS.sub("", info.key[: match.start()])
            if slots.setdefault(module, {}).setdefault(rows[row][1], info) is not info:
                unknown.append(info)
    borrowed: dict[str, set[str]] = {name: set() for name in slots}
    idle = []
    for info in common:
        needed = {by: slot for key, slot, by in shared if re.fullmatch(key, info.key)}
        takers = [(name, needed[by]) for name, found in slots.items() for by in needed.keys() & found.keys()]
        if not takers:
            idle.append(info)
        for name, slot in takers:
            if slots[name].setdefault(slot, info) is info:
                borrowed[name].add(slot)
    modules = {name: LoraModule(name, found, frozenset(borrowed[name])) for name, found in slots.items()}
    return LoraTensors(modules, unsupported, unknown + idle, len(common) - len(idle))


@cache
def _any_suffix(suffixes: tuple[Suffix, ...]) -> re.Pattern[str]:
    """Join all suffixes in one pattern: its leftmost match that reaches the key's end is the longest of them."""
    rows = enumerate((*suffixes, *UNSUPPORTED))
    where = r"(?:\A|(?=[.:]|_lora))"  # no suffix begins elsewhere; to try all at every letter takes long
    return re.compile(where + "(?:" + "|".join(f"(?P<row{row}>{suffix})" for row, (suffix, _) in rows) + r")\Z")


def spell(component: Component, prefix: str, path: str) -> Iterator[str]:
    """Write one module path of a component in every spelling that a LoRA file could use.

    `prefix` is where the base keeps the component: a file may also use the base's own keys.
    """
    paths = [path]
    paths += [path.removesuffix(new) + old for new, old in ENDINGS if path.endswith(new)]
    paths += [each.removeprefix(word) for word in component.optional for each in paths if each.startswith(word)]
    paths += [word + each for word in component.optional for each in tuple(paths)]
    for each in paths:
        flat = each.replace(".", "_")
        for start in component.flat:
            yield start + flat
            if start == "lora_unet_":
                yield "oft_unet_" + flat  # kohya's OFT
        yield "lycoris_" + flat
        yield each
        yield PEFT_ROOT + each
        for start in component.dotted:
            yield start + each
            yield start + PEFT_ROOT + each
            yield PEFT_ROOT + start + each
    yield prefix + path


def spell_all(key_map: KeyMap) -> dict[str, list[Module]]:
    """Write every module of the base in every spelling: spelling -> modules (several where it is ambiguous)."""
    spelled: dict[str, list[Module]] = {}
    for word, module in _spell_each(key_map):
        known = spelled.setdefault(word, [])
        if all(module.views != other.views for other in known):
            known.append(module)
    return spelled


def _spell_each(key_map: KeyMap) -> Iterator[tuple[str, Module]]:
    for component in key_map.architecture.components:
        if component.name in key_map.placed:
            _, prefix = key_map.placed[component.name]
            for path, module in key_map.modules[component.name].items():
                yield from ((word, module) for word in spell(component, prefix, path))
            unprefixed = Component(component.name, (), optional=component.optional)
            for module in key_map.in_memory[component.name]:
                yield from ((word, module) for word in spell(unprefixed, "", module.name))
    for module in key_map.outside:
        yield from ((word, module) for word in spell(Component("", ()), "", module.name))


def components_named(key: str, components: Iterable[Component]) -> set[str]:
    """Return the components whose prefix, the longest one, a LoRA key starts with."""
    if indexed := INDEXED.match(key):
        return {indexed["component"]}
    longest: dict[str, int] = {}
    for component in components:
        for prefix in (*component.flat, *component.dotted):
            if key.startswith((prefix, PEFT_ROOT + prefix)):
                longest[component.name] = max(longest.get(component.name, 0), len(prefix))
    best = max(longest.values(), default=0)
    return {name for name, length in longest.items() if length == best}


def pattern_of(name: str) -> str:
    """Write a name with its numbers as `N`; those in words like `conv1` stay."""
    return re.sub(r"(?<![a-zA-Z0-9])\d+", "N", name)


def patterns(names: Iterable[str]) -> str:
    """List names by their patterns, the most frequent three with their counts."""
    counts = Counter(map(pattern_of, names))
    shown = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in counts.most_common(3))
    return shown + (f" and {len(counts) - 3} more patterns" if len(counts) > 3 else "")


def flatten(name: str) -> str:
    """Write a module's name as family marks do: numbers as `N`, dots as underscores."""
    return re.sub(r"[./]", "_", pattern_of(name))
